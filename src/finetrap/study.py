"""Run a study: plan, execute what is missing, keep records, answer."""

import gc
import signal
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finetrap.answer import build_results
from finetrap.config import Study
from finetrap.errors import StudyError
from finetrap.files import disk_errors, is_disk_error
from finetrap.looks import log_answers
from finetrap.method import build, is_trained, tunable
from finetrap.models import LoadedModel, Source
from finetrap.plan import drops_at_once, missing, most_disk_bytes, test_items
from finetrap.prepare import Prepared, estimates, planned_anew, prepare
from finetrap.progress import Reporter
from finetrap.records import FailureRecord, Planned
from finetrap.results import Recommendation, Results
from finetrap.size import sized_text
from finetrap.store import Store
from finetrap.tune import tuning_of


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
    study, store = prepared.study, prepared.store
    seconds = _check_resources(prepared)
    from finetrap.quiet import quiet_libraries

    with store.open(study), quiet_libraries():
        if retry_failed:
            prepared = _retried(prepared)
        _save_items(study, prepared)
        prepared = _run_missing(prepared, reporter, seconds, retry_failed=retry_failed)
        rescuing = planned_anew(prepared) if study.rescue else prepared
        if len(rescuing.plan.planned) > len(prepared.plan.planned):
            seconds = _check_resources(rescuing)
            # Without what failed above, which has been tried.
            prepared = _run_missing(rescuing, reporter, seconds, retry_failed=False)
        results = answer(study, store)
        _drop_weights(study, prepared.plan.planned, results.recommendations, store)
    return results


def _todo(prepared: Prepared, *, retry_failed: bool) -> list[Planned]:
    """Candidates and final trials that are left."""
    store = prepared.store
    return [
        planned
        for planned in (*prepared.plan.candidates, *prepared.plan.planned)
        if missing(planned, store) and (retry_failed or store.failure(planned.trial) is None)
    ]


def _retried(prepared: Prepared) -> Prepared:
    """The plan in which candidates that failed are still to be tried."""
    for planned in prepared.plan.candidates:
        prepared.store.forget_failure(planned.trial)
    return planned_anew(prepared)


def _run_missing(prepared: Prepared, reporter: Reporter, seconds: float, *, retry_failed: bool) -> Prepared:
    """Run what of a plan is not done, weights that have gone and are gone on from included."""
    study, store = prepared.study, prepared.store
    estimate = store.estimated_seconds() if store.planned else seconds
    prepared = prepared._replace(plan=prepared.plan.model_copy(update={"estimated_seconds": estimate}))
    store.save_plan(prepared.plan)
    gone_on_from = {p.trial.parent for p in _todo(prepared, retry_failed=retry_failed)}
    for trial in (p.trial for p in prepared.plan.planned if p.trial.training_key in gone_on_from):
        if is_trained(trial.method) and store.training(trial) is not None and store.artifact(trial) is None:
            # Its scores are to be of the same weights as those that go on from it.
            store.forget_evaluations(trial)
    todo = _todo(prepared, retry_failed=retry_failed)
    reporter.say(_announcement(prepared, todo))
    if study.size is not None:
        reporter.say(sized_text(study, seconds))
    with reporter.trials(len(todo)):
        for source in prepared.sources:
            prepared = _run_model(study, prepared, source, reporter, retry_failed=retry_failed)
    return prepared


def _save_items(study: Study, prepared: Prepared) -> None:
    """Keep the questions whose answers the report shows."""
    shown = (e for p in prepared.plan.planned for e in p.evaluations if e.purpose != "retention")
    for evaluation in {e.items: e for e in shown}.values():
        examples = test_items(study, study.task(evaluation.task), evaluation.purpose).examples
        prepared.store.save_items(evaluation, examples)


def _check_resources(prepared: Prepared) -> float:
    """Check before anything is written that disk and memory hold what is left to do; returns the seconds of it."""
    from finetrap.cost import check_memory

    left = estimates(prepared)
    prepared.store.check_space(most_disk_bytes(prepared.study, left), keeps=prepared.study.keep != "none")
    for planned, rest in left:
        trial = planned.trial
        if rest.disk_bytes and is_trained(trial.method) and not build(trial.method, trial.settings).adapter:
            model = trial.model
            check_memory(model.parameters, dtype=prepared.dtype, device=prepared.device, name=model.name)
    return sum(rest.seconds for _, rest in left)


def answer(study: Study, store: Store) -> Results:
    """Derive the answer from the records, and write results.json, report.html and report.md.

    Raises:
        StudyError: a record is damaged, or the folder cannot be written to.
    """
    from finetrap.report.markdown import write_report
    from finetrap.report.page import write_page
    from finetrap.report.sections import sections

    resolved = store.plan()
    with disk_errors(store.folder):
        log_answers(study, resolved, store)
    results = build_results(study, resolved, store).within(store.folder)
    with disk_errors(store.folder):
        store.write("results.json", results.to_json())
        found = sections(results, store)
        write_report(results, study, store, found)
        write_page(results, study, store, found)
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
    from finetrap.engine.attention import check_packing
    from finetrap.models import choose_dtype, load

    loaded = load(source, dtype=choose_dtype(study.dtype, prepared.device), device=prepared.device)
    check_packing(loaded.model)
    prepared = _tune(study, prepared, source, loaded, reporter)
    for planned in left(prepared):
        _run_one(study, prepared, planned, loaded, reporter)
        if drops_at_once(study):
            _drop_weights(study, [p for p in prepared.plan.planned if _beside(p, planned)], (), prepared.store)
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
            prepared = planned_anew(prepared)
            store.save_plan(prepared.plan)
    return prepared


def _beside(one: Planned, other: Planned) -> bool:
    return (one.trial.model, one.trial.task) == (other.trial.model, other.trial.task)


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
        _collect_garbage()  # a wrapped model holds itself in cycles, and memory is what limits the next one


def _collect_garbage() -> None:
    """Collect garbage. An interrupt meanwhile is raised afterwards: one within a finaliser would be lost."""
    interrupted = threading.Event()
    python_handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not python_handles or threading.current_thread() is not threading.main_thread():
        gc.collect()
        return
    signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        gc.collect()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


def _drop_weights(
    study: Study, trials: Sequence[Planned], recommendations: Sequence[Recommendation], store: Store
) -> None:
    """Keep of the weights of trials what `keep` says, and what another one of them waits for."""
    recommended = {
        (r.model, r.task, arm) for r in recommendations for arm in (r.method, r.leader if r.undecided else None)
    }
    kept = {
        key
        for p in trials
        if (p.trial.model.label, p.trial.task, p.trial.arm) in recommended
        for key in (p.trial.training_key, p.trial.parent)
    }
    waited_for = {p.trial.parent for p in trials if p.trial.parent and missing(p, store)}
    for planned in trials:
        trial = planned.trial
        if study.keep == "all" or store.artifact(trial) is None or missing(planned, store):
            continue
        if trial.training_key in waited_for:
            continue
        adapter = build(trial.method, trial.settings).adapter
        if study.keep == "none" or not (adapter or trial.training_key in kept):
            store.drop_weights(trial)
