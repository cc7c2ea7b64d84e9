"""Check and plan a study before anything is written: data, models, tuning, size, and how long it will take."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from finetrap.answer import build_results
from finetrap.config import Study
from finetrap.data import Encoder, draw_shots
from finetrap.errors import StudyError
from finetrap.method import Arm, build
from finetrap.models import Source, check_checkpoint, find
from finetrap.plan import (
    Estimate,
    TaskItems,
    estimate,
    load_tasks,
    measured_flops,
    missing,
    plan_arms,
    task_record,
    test_items,
)
from finetrap.records import TUNING_SEED, Plan, Planned
from finetrap.rescue import rescue_arms
from finetrap.size import Size, fit, seconds_of
from finetrap.store import Store
from finetrap.tune import Search, plan_with_tuning, search_of

LONGEST = 20
"""Questions in front of which shots are tried for room: those of the most characters."""


class Prepared(NamedTuple):
    """A study checked and planned; nothing is written yet."""

    study: Study
    """With what follows from its size."""
    store: Store
    sources: list[Source]
    tasks: dict[str, TaskItems]
    plan: Plan
    device: str
    dtype: str
    searches: dict[tuple[str, str, str], Search]
    """By model, task and arm: how the arms that are tuned are."""
    speeds: Callable[[], dict[str, float]]
    """Operations a second with each model on this machine, measured when asked for."""


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
    from finetrap.models import choose_device, choose_dtype

    device = choose_device(study.device)
    dtype = str(choose_dtype(study.dtype, device)).removeprefix("torch.")
    speeds = cache(partial(_speeds, study, sources, device, dtype))

    def planned(study: Study) -> Prepared:
        return _planned(study, store, sources, device, dtype, command, speeds)

    prepared = planned(_fitted(study, store, lambda sized: sum(rest.seconds for _, rest in estimates(planned(sized)))))
    _check_lengths(prepared)
    return prepared


def _fitted(study: Study, store: Store, seconds: Callable[[Study], float]) -> Study:
    """The study with the limits of the largest size that fits into the time it is given, if it is given one.

    A study that has begun keeps what it began with: another probe would fit another size.
    """
    if study.size is None or seconds_of(study.size) is None:
        return study
    begun = store.study() if store.begun else None
    if begun is not None and begun.size == study.size:
        kept = {field.name: getattr(begun, field.name) for field in fields(Size)}
        return study.model_copy(update={k: v for k, v in kept.items() if k not in study.model_fields_set})
    given = study.model_fields_set
    return study.model_copy(update=fit(study.size, given, lambda sized: seconds(study.model_copy(update=sized))))


def _planned(
    study: Study,
    store: Store,
    sources: list[Source],
    device: str,
    dtype: str,
    command: str | None,
    speeds: Callable[[], dict[str, float]],
) -> Prepared:
    """A study with its trials."""
    from finetrap.provenance import environment

    tasks = load_tasks(study)
    resolved = Plan(
        command=command,
        environment=environment(device=device, dtype=dtype),
        dropped_train_rows={name: len(items.splits.dropped) for name, items in tasks.items()},
        planned=(),
        tasks={name: task_record(study, items) for name, items in tasks.items()},
    )
    searches = _searches(study, sources, tasks)
    return planned_anew(Prepared(study, store, sources, tasks, resolved, device, dtype, searches, speeds))


def _speeds(study: Study, sources: Sequence[Source], device: str, dtype: str) -> dict[str, float]:
    """Operations a second with each model: of a sample of the work where the study's size hangs on it."""
    if study.size is None:
        return dict.fromkeys((source.record.label for source in sources), measured_flops(dtype=dtype, device=device))
    from finetrap.models import choose_dtype, load
    from finetrap.probe import probed_flops

    items = next(iter(load_tasks(study).values()))
    methods = [build(arm.method, arm.settings) for arm in study.parsed_arms()]
    trained = next((method for method in methods if method.training is not None), None)
    return {
        source.record.label: probed_flops(
            load(source, dtype=choose_dtype(study.dtype, device), device=device), items, trained
        )
        for source in sources
    }


def planned_anew(prepared: Prepared) -> Prepared:
    """The plan as the records now make it: with what tuning has chosen by now, and rescues of what has done harm."""
    study = prepared.study

    def search(source: Source, items: TaskItems, arm: Arm) -> Search | None:
        return prepared.searches.get((source.record.label, items.task.name, arm.name))

    candidates, planned = plan_with_tuning(
        study, prepared.sources, prepared.tasks, search, dtype=prepared.dtype, store=prepared.store
    )
    resolved = prepared.plan.model_copy(update={"planned": tuple(planned), "candidates": tuple(candidates)})
    prepared = prepared._replace(plan=resolved)
    if study.rescue and (rescues := _rescues(prepared)):
        resolved = resolved.model_copy(update={"planned": (*planned, *rescues)})
    return prepared._replace(plan=resolved)


def _rescues(prepared: Prepared) -> list[Planned]:
    """The second stage, when the first is done: trials of the arms that may remove what harm it shows."""
    store = prepared.store
    if any(missing(p, store) and store.failure(p.trial) is None for p in prepared.plan.planned):
        return []
    study = prepared.study
    results = build_results(study, prepared.plan, store)
    planned = []
    for source in prepared.sources:
        for name, items in prepared.tasks.items():
            first = [p for p in prepared.plan.planned if p.trial.model == source.record and p.trial.task == name]
            group = [arm for arm in results.arms if (arm.model, arm.task) == (source.record.label, name)]
            for of, arms in rescue_arms(group, first).items():
                trials = plan_arms(study, source, items, arms, dtype=prepared.dtype, parents=first)
                planned += [p.model_copy(update={"rescue_of": of}) for p in trials]
    return planned


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
    asked = {seed: test_items(study, encoder.task, "target").examples for seed in study.shot_seeds}
    try:
        for seed, examples in {**asked, TUNING_SEED: items.splits.validation}.items():
            solved = draw_shots(items.splits, shots, seed)
            longest = sorted(examples, key=lambda example: len(example.asked))[-LONGEST:]
            encoder.check_fits(longest, solved, limit=context, model="")
    except StudyError:
        return False
    return True


def _check_lengths(prepared: Prepared) -> None:
    """Check that the prompts that are still to be answered fit into the models that are to answer them."""
    from finetrap.models import load_reader

    study, tasks = prepared.study, prepared.tasks
    for source in prepared.sources:
        asked = {
            (p.trial.task, evaluation.task, p.trial.seed, build(p.trial.method, p.trial.settings).shots)
            for p in prepared.plan.planned
            if p.trial.model == source.record
            for evaluation in missing(p, prepared.store)
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


def estimates(prepared: Prepared) -> list[tuple[Planned, Estimate]]:
    """Every candidate and trial with what is left of it."""
    every = (*prepared.plan.candidates, *prepared.plan.planned)
    if not any(missing(planned, prepared.store) for planned in every):
        return [(planned, Estimate(0.0, 0)) for planned in every]
    flops = prepared.speeds()
    return [
        (
            planned,
            estimate(
                prepared.study,
                planned,
                prepared.tasks[planned.trial.task],
                prepared.store,
                flops[planned.trial.model.label],
            ),
        )
        for planned in every
    ]
