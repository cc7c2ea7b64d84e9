"""Run a study: plan, execute what is missing, keep records, answer."""

import gc
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from finetrap.answer import build_results
from finetrap.config import Study
from finetrap.data import Encoder, draw_shots
from finetrap.errors import StudyError
from finetrap.method import Arm, build, is_trained, tunable
from finetrap.models import LoadedModel, Source, check_checkpoint, find
from finetrap.plan import (
    Estimate,
    TaskItems,
    estimate,
    load_tasks,
    measured_flops,
    missing,
    plan,
    plan_arms,
    task_record,
    test_items,
)
from finetrap.progress import Reporter
from finetrap.records import TUNING_SEED, FailureRecord, Plan, Planned
from finetrap.rescue import rescue_arms
from finetrap.results import Results
from finetrap.store import Store, disk_errors, is_disk_error
from finetrap.tune import Search, search_of, tuning_of


class Prepared(NamedTuple):
    """A study checked and planned; nothing is written yet."""

    store: Store
    sources: list[Source]
    tasks: dict[str, TaskItems]
    plan: Plan
    device: str
    dtype: str
    searches: dict[tuple[str, str, str], Search]
    """By model, task and arm: how the arms that are tuned are."""


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
    resolved = Plan(
        command=command,
        environment=environment(device=device, dtype=dtype),
        dropped_train_rows={name: len(items.splits.dropped) for name, items in tasks.items()},
        planned=(),
        tasks={name: task_record(study, items) for name, items in tasks.items()},
    )
    searches = _searches(study, sources, tasks)
    prepared = _planned_anew(study, Prepared(store, sources, tasks, resolved, device, dtype, searches))
    _check_lengths(study, sources, tasks, prepared.plan.planned, store)
    return prepared


def _planned_anew(study: Study, prepared: Prepared) -> Prepared:
    """The plan as the records now make it: with what tuning has chosen by now, and rescues of what has done harm."""
    candidates: list[Planned] = []

    def settled(source: Source, items: TaskItems, arm: Arm) -> Arm | None:
        search = prepared.searches.get((source.record.label, items.task.name, arm.name))
        if search is None:
            return arm
        tuning = tuning_of(study, source, items, arm, search, dtype=prepared.dtype, store=prepared.store)
        candidates.extend(tuning.candidates)
        return tuning.arm

    planned = plan(study, prepared.sources, prepared.tasks, dtype=prepared.dtype, settled=settled)
    resolved = prepared.plan.model_copy(update={"planned": tuple(planned), "candidates": tuple(candidates)})
    prepared = prepared._replace(plan=resolved)
    if study.rescue and (rescues := _rescues(study, prepared)):
        resolved = resolved.model_copy(update={"planned": (*planned, *rescues)})
    return prepared._replace(plan=resolved)


def _searches(
    study: Study, sources: Sequence[Source], tasks: dict[str, TaskItems]
) -> dict[tuple[str, str, str], Search]:
    """How each arm that is tuned is, by model, task and arm."""
    from finetrap.models import load_reader

    tuned = [arm for arm in study.parsed_arms() if arm.tunes is not None]
    searches = {}
    for source in sources if tuned else ():
        reader = load_reader(source)
        for name, items in tasks.items():
            encoder = Encoder(reader.tokenizer, study.task(name), chat=source.record.chat)
            fits = partial(_shots_fit, study, items, encoder, reader.context)
            for arm in tuned:
                search = search_of(arm, study.tune, width=reader.width, fits=fits)
                if search is not None:
                    searches[source.record.label, name, arm.name] = search
    return searches


def _shots_fit(study: Study, items: TaskItems, encoder: Encoder, context: int, shots: int) -> bool:
    """Whether a model can read so many solved examples in front of every question, whatever the seed."""
    asked = {seed: test_items(study, encoder.task, "target").examples for seed in study.seeds}
    try:
        for seed, examples in {**asked, TUNING_SEED: items.splits.validation}.items():
            solved = draw_shots(items.splits, shots, seed)
            encoder.check_fits(examples, solved, limit=context, model="")
    except StudyError:
        return False
    return True


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
        for planned in (*prepared.plan.candidates, *prepared.plan.planned)
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
        if retry_failed:
            prepared = _retried(study, prepared)
        _save_items(study, prepared)
        prepared = _run_missing(study, prepared, reporter, retry_failed=retry_failed)
        rescuing = _planned_anew(study, prepared)
        if len(rescuing.plan.planned) > len(prepared.plan.planned):
            _check_resources(study, rescuing)
            # Without what failed above, which has been tried.
            prepared = _run_missing(study, rescuing, reporter, retry_failed=False)
        results = answer(study, store)
        _drop_weights(study, prepared.plan, results, store)
    return results


def _todo(prepared: Prepared, *, retry_failed: bool) -> list[Planned]:
    """Candidates and final trials that are left."""
    store = prepared.store
    return [
        planned
        for planned in (*prepared.plan.candidates, *prepared.plan.planned)
        if missing(planned, store) and (retry_failed or store.failure(planned.trial) is None)
    ]


def _retried(study: Study, prepared: Prepared) -> Prepared:
    """The plan in which candidates that failed are still to be tried."""
    for planned in prepared.plan.candidates:
        prepared.store.forget_failure(planned.trial)
    return _planned_anew(study, prepared)


def _run_missing(study: Study, prepared: Prepared, reporter: Reporter, *, retry_failed: bool) -> Prepared:
    """Run what of a plan is not done, weights that have gone and are gone on from included."""
    store = prepared.store
    store.save_plan(prepared.plan)
    gone_on_from = {p.trial.parent for p in _todo(prepared, retry_failed=retry_failed)}
    for trial in (p.trial for p in prepared.plan.planned if p.trial.training_key in gone_on_from):
        if is_trained(trial.method) and store.training(trial) is not None and store.artifact(trial) is None:
            # Its scores are to be of the same weights as those that go on from it.
            store.forget_evaluations(trial)
    todo = _todo(prepared, retry_failed=retry_failed)
    reporter.say(_announcement(prepared, todo))
    with reporter.trials(len(todo)):
        for source in prepared.sources:
            prepared = _run_model(study, prepared, source, reporter, retry_failed=retry_failed)
    return prepared


def _rescues(study: Study, prepared: Prepared) -> list[Planned]:
    """The second stage, when the first is done: trials of the arms that may remove what harm it shows."""
    if any(missing(p, prepared.store) for p in prepared.plan.planned):
        return []
    results = build_results(study, prepared.plan, prepared.store)
    planned = []
    for source in prepared.sources:
        for name, items in prepared.tasks.items():
            first = [p for p in prepared.plan.planned if p.trial.model == source.record and p.trial.task == name]
            group = [arm for arm in results.arms if (arm.model, arm.task) == (source.record.label, name)]
            for of, arms in rescue_arms(group, first).items():
                trials = plan_arms(study, source, items, arms, dtype=prepared.dtype, parents=first)
                planned += [p.model_copy(update={"rescue_of": of}) for p in trials]
    return planned


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

    results = build_results(study, store.plan(), store).within(store.folder)
    with disk_errors(store.folder):
        store.write("results.json", results.to_json())
        write_report(results, study, store)
        write_page(results, study, store)
    return results


def _announcement(prepared: Prepared, todo: Sequence[Planned]) -> str:
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
    if prepared.plan.candidates:
        tuned = ", ".join(dict.fromkeys(p.trial.arm for p in prepared.plan.candidates))
        left = sum(planned.rung is not None for planned in todo)
        lines.append(f"tuned on validation: {tuned}; {left} of {len(prepared.plan.candidates)} candidates to try")
    final, total = sum(planned.rung is None for planned in todo), len(prepared.plan.planned)
    lines.append(f"{final} of {total} trials to run in {prepared.store.folder}")
    return "\n".join(lines)


def _run_model(study: Study, prepared: Prepared, source: Source, reporter: Reporter, *, retry_failed: bool) -> Prepared:
    """Tune what is tuned on a model, then run its final trials; returns the plan with what was chosen."""

    def left(prepared: Prepared) -> list[Planned]:
        return [p for p in _todo(prepared, retry_failed=retry_failed) if p.trial.model == source.record]

    if not left(prepared):
        return prepared
    from finetrap.attention import check_packing
    from finetrap.models import choose_dtype, load

    loaded = load(source, dtype=choose_dtype(study.dtype, prepared.device), device=prepared.device)
    check_packing(loaded.model)
    prepared = _tune(study, prepared, source, loaded, reporter)
    for planned in left(prepared):
        _run_one(study, prepared, planned, loaded, reporter)
    return prepared


def _tune(study: Study, prepared: Prepared, source: Source, loaded: LoadedModel, reporter: Reporter) -> Prepared:
    """Try candidates until every search on a model is over."""
    store = prepared.store
    for (label, task, name), search in prepared.searches.items():
        if label != source.record.label:
            continue
        arm = next(arm for arm in study.parsed_arms() if arm.name == name)
        look = partial(tuning_of, study, source, prepared.tasks[task], arm, search, dtype=prepared.dtype, store=store)
        tuning, tried = look(), False
        while tuning.following is not None:
            _run_one(study, prepared, tuning.following, loaded, reporter)
            tuning, tried = look(), True
        if tried:
            value = "nothing: every candidate failed" if tuning.arm is None else tuning.arm.settings[search.setting]
            reporter.say(f"chosen  {name} on {task}: {search.setting} {value}")
            prepared = _planned_anew(study, prepared)
            store.save_plan(prepared.plan)
    return prepared


def _title(planned: Planned) -> str:
    trial = planned.trial
    if planned.rung is None:
        return f"{trial.arm} (seed {trial.seed}) on {trial.task}"
    setting = tunable(trial.method) or ""
    return f"{trial.arm} ({setting} {trial.settings.get(setting)}, rung {planned.rung}) on {trial.task}"


def _run_one(study: Study, prepared: Prepared, planned: Planned, loaded: LoadedModel, reporter: Reporter) -> None:
    from finetrap.trial import run_trial

    store, trial = prepared.store, planned.trial
    with reporter.trial(_title(planned)):
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
            reporter.say(f"{'done' if planned.rung is None else 'tried':<7} {_title(planned)}")
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
    if is_trained(trial.method):
        gc.collect()  # a wrapped model holds itself in cycles, and memory is what limits the next one


def _drop_weights(study: Study, resolved: Plan, results: Results, store: Store) -> None:
    """Keep of the weights what `keep` says."""
    recommended = {
        (r.model, r.task, arm) for r in results.recommendations for arm in (r.method, r.leader if r.undecided else None)
    }
    kept = {
        key
        for p in resolved.planned
        if (p.trial.model.label, p.trial.task, p.trial.arm) in recommended
        for key in (p.trial.training_key, p.trial.parent)
    }
    waited_for = {p.trial.parent for p in resolved.planned if missing(p, store)}
    for planned in resolved.planned:
        trial = planned.trial
        if study.keep == "all" or not is_trained(trial.method) or missing(planned, store):
            continue
        if trial.training_key in waited_for:
            continue
        adapter = build(trial.method, trial.settings).adapter
        if study.keep == "none" or not (adapter or trial.training_key in kept):
            store.drop_weights(trial)
