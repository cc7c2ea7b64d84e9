"""Run a study: plan, execute what is missing, keep records, answer."""

import gc
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from finetrap.answer import build_results
from finetrap.config import Study
from finetrap.data import Encoder, draw_shots
from finetrap.errors import StudyError
from finetrap.method import build, is_trained
from finetrap.models import LoadedModel, Source, check_checkpoint, find
from finetrap.plan import (
    Estimate,
    TaskItems,
    estimate,
    load_tasks,
    measured_flops,
    missing,
    plan,
    task_record,
    test_items,
)
from finetrap.progress import Reporter
from finetrap.records import FailureRecord, Plan, Planned
from finetrap.results import Results
from finetrap.store import Store, disk_errors, is_disk_error


class Prepared(NamedTuple):
    """A study checked and planned; nothing is written yet."""

    store: Store
    sources: list[Source]
    tasks: dict[str, TaskItems]
    plan: Plan
    device: str
    dtype: str


def prepare(study: Study, folder: Path, *, command: str | None = None) -> Prepared:
    """Check everything that can be checked before the first byte is written.

    Raises:
        StudyError: the input is wrong.
    """
    store = Store(folder)
    store.check(study)
    sources = [find(spec) for spec in study.models]
    for arm in study.parsed_arms():
        checkpoint = build(arm.method, arm.settings).checkpoint
        if checkpoint is not None:
            check_checkpoint(checkpoint)
    tasks = load_tasks(study)

    from finetrap.models import choose_device, choose_dtype
    from finetrap.provenance import environment

    device = choose_device(study.device)
    dtype = str(choose_dtype(study.dtype, device)).removeprefix("torch.")
    planned = plan(study, sources, tasks, dtype=dtype)
    _check_lengths(study, sources, tasks, planned, store)
    dropped = {name: len(items.splits.dropped) for name, items in tasks.items()}
    resolved = Plan(
        command=command,
        environment=environment(device=device, dtype=dtype),
        dropped_train_rows=dropped,
        planned=tuple(planned),
        tasks={name: task_record(study, items) for name, items in tasks.items()},
    )
    return Prepared(store, sources, tasks, resolved, device, dtype)


def _check_lengths(
    study: Study, sources: Sequence[Source], tasks: dict[str, TaskItems], planned: Sequence[Planned], store: Store
) -> None:
    """Check that the prompts that are still to be answered fit into the models that are to answer them."""
    from finetrap.models import load_reader

    for source in sources:
        asked = {
            (p.trial.task, evaluation.task, p.trial.seed, build(p.trial.method, p.trial.settings).shots)
            for p in planned
            if p.trial.model == source.record
            for evaluation in missing(p, store)
            if evaluation.purpose != "retention"
        }
        if not asked:
            continue
        reader = load_reader(source)
        for name, evaluated, seed, shots in sorted(asked):
            encoder = Encoder(reader.tokenizer, study.task(evaluated), chat=source.record.chat)
            examples = test_items(study, encoder.task, "target").examples
            solved = draw_shots(tasks[name].splits, shots, seed)
            encoder.check_fits(examples, solved, limit=reader.context, model=source.record.name)


def estimates(study: Study, prepared: Prepared) -> list[tuple[Planned, Estimate]]:
    """Every trial with what is left of it."""
    flops = measured_flops(dtype=prepared.dtype, device=prepared.device)
    return [
        (planned, estimate(study, planned, prepared.tasks[planned.trial.task], prepared.store, flops))
        for planned in prepared.plan.planned
    ]


def run(
    study: Study,
    folder: Path,
    *,
    reporter: Reporter | None = None,
    command: str | None = None,
    retry_failed: bool = False,
) -> Results:
    """Run all of a study that is missing in `folder`, then answer.

    A trial that fails is recorded and the others go on. An interrupt loses the trial's current training or
    evaluation and nothing else.

    Raises:
        StudyError: the input is wrong.
    """
    reporter = reporter or Reporter()
    prepared = prepare(study, folder, command=command)
    store = prepared.store
    _check_resources(study, prepared)
    from finetrap.quiet import quiet_libraries

    with store.open(study), quiet_libraries():
        store.save_plan(prepared.plan)
        _save_items(study, prepared)
        todo = [
            planned
            for planned in prepared.plan.planned
            if missing(planned, store) and (retry_failed or store.failure(planned.trial) is None)
        ]
        reporter.say(_announcement(prepared, len(todo)))
        with reporter.trials(len(todo)):
            for source in prepared.sources:
                _run_model(study, prepared, source, [p for p in todo if p.trial.model == source.record], reporter)
        results = answer(study, store)
        _drop_weights(study, prepared.plan, results, store)
    return results


def _save_items(study: Study, prepared: Prepared) -> None:
    """Keep the questions whose answers the report shows."""
    shown = (e for p in prepared.plan.planned for e in p.evaluations if e.purpose != "retention")
    for evaluation in {e.items: e for e in shown}.values():
        examples = test_items(study, study.task(evaluation.task), evaluation.purpose).examples
        prepared.store.save_items(evaluation, examples)


def _check_resources(study: Study, prepared: Prepared) -> None:
    """Check before anything is written that disk and memory hold what is left to do."""
    from finetrap.cost import check_memory

    left = estimates(study, prepared)
    prepared.store.check_space(sum(rest.disk_bytes for _, rest in left))
    for planned, rest in left:
        trial = planned.trial
        if rest.disk_bytes and is_trained(trial.method) and not build(trial.method, trial.settings).adapter:
            model = trial.model
            check_memory(model.parameters, dtype=prepared.dtype, device=prepared.device, name=model.name)


def answer(study: Study, store: Store) -> Results:
    """Derive the answer from the records, and write results.json, report.html and report.md.

    Raises:
        StudyError: a record is damaged, or the folder cannot be written to.
    """
    from finetrap.page import write_page
    from finetrap.report import write_report
    from finetrap.sections import sections

    results = build_results(study, store.plan(), store).within(store.folder)
    with disk_errors(store.folder):
        store.write("results.json", results.to_json())
        found = sections(results, store)
        write_report(results, study, store, found)
        write_page(results, study, store, found)
    return results


def _announcement(prepared: Prepared, todo: int) -> str:
    lines = []
    for source in prepared.sources:
        record = source.record
        prompting = "its chat template" if record.chat else "plain text"
        lines.append(
            f"{record.label}: {record.parameters / 1e6:.0f}M parameters on {prepared.device} in {prepared.dtype}, "
            f"prompted through {prompting} where it generates"
        )
    for name, items in prepared.tasks.items():
        dropped = len(items.splits.dropped)
        left_out = f" ({dropped} train rows that stand in test left out)" if dropped else ""
        lines.append(f"{name}: {len(items.splits.train)} train, {len(items.splits.validation)} validation{left_out}")
    total = len(prepared.plan.planned)
    lines.append(f"{todo} of {total} trials to run in {prepared.store.folder}")
    return "\n".join(lines)


def _run_model(study: Study, prepared: Prepared, source: Source, todo: Sequence[Planned], reporter: Reporter) -> None:
    if not todo:
        return
    from finetrap.attention import check_packing
    from finetrap.models import choose_dtype, load

    loaded = load(source, dtype=choose_dtype(study.dtype, prepared.device), device=prepared.device)
    check_packing(loaded.model)
    for planned in todo:
        with reporter.trial(_title(planned)):
            _run_one(study, prepared, planned, loaded, reporter)
        if is_trained(planned.trial.method):
            gc.collect()  # a wrapped model holds itself in cycles, and memory is what limits the next one


def _title(planned: Planned) -> str:
    trial = planned.trial
    return f"{trial.arm} (seed {trial.seed}) on {trial.task}"


def _run_one(study: Study, prepared: Prepared, planned: Planned, loaded: LoadedModel, reporter: Reporter) -> None:
    from finetrap.trial import run_trial

    store, trial = prepared.store, planned.trial
    try:
        run_trial(
            planned,
            study,
            loaded=loaded,
            items=prepared.tasks[trial.task],
            store=store,
            environment=prepared.plan.environment,
            reporter=reporter,
        )
        reporter.say(f"done    {_title(planned)}")
    except Exception as error:
        if is_disk_error(error):
            raise
        # The one place where a trial's failure becomes a record: the other trials go on.
        said = (str(error).strip() or "no message").splitlines()[0]
        failure = FailureRecord(
            trial=trial.folder,
            error=said if isinstance(error, StudyError) else f"{type(error).__name__}: {said}",
            traceback=traceback.format_exc(),
        )
        store.save_failure(trial, failure)
        reporter.say(f"failed  {_title(planned)}: {failure.error}")


def _drop_weights(study: Study, resolved: Plan, results: Results, store: Store) -> None:
    """Keep of the weights what `keep` says."""
    recommended = {
        (r.model, r.task, arm) for r in results.recommendations for arm in (r.method, r.leader if r.undecided else None)
    }
    kept = {
        store.trial_folder(p.trial)
        for p in resolved.planned
        if (p.trial.model.label, p.trial.task, p.trial.arm) in recommended
    }
    for planned in resolved.planned:
        trial = planned.trial
        if study.keep == "all" or not is_trained(trial.method) or missing(planned, store):
            continue
        adapter = build(trial.method, trial.settings).adapter
        if study.keep == "none" or not (adapter or store.trial_folder(trial) in kept):
            store.drop_weights(trial)
