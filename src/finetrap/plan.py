"""From a study to its trials, and how long they will take. Resuming is planning: what is done is not planned again."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from finetrap.config import Study
from finetrap.data import Splits, TestSet, draw_shots, load_splits, load_test, sealed
from finetrap.duplicates import near_overlap
from finetrap.method import Arm, Method, build
from finetrap.method import method as method_registry
from finetrap.models import Source
from finetrap.own_data import OwnData
from finetrap.records import Evaluation, Planned, Purpose, TaskRecord, Trial, digest, items_digest
from finetrap.store import Store
from finetrap.task import Example, Task


class TaskItems(NamedTuple):
    """A task, sealed, with what training may see of it."""

    task: Task
    splits: Splits


def load_tasks(study: Study) -> dict[str, TaskItems]:
    """The study's target tasks.

    Where train is limited, validation is no more than a quarter of that: it is read five times in a run, and would
    cost more than the training that it watches.
    """
    study.check_targets()
    validation = study.limit_validation
    if study.limit_train is not None:
        validation = min(validation, max(10, study.limit_train // 4))
    return {
        name: TaskItems(
            sealed(study.task(name)),
            load_splits(study.task(name), limit_train=study.limit_train, limit_validation=validation),
        )
        for name in study.task_names
    }


def task_record(study: Study, items: TaskItems) -> TaskRecord:
    """What a report says of a task, when its data may have gone."""
    task = study.task(items.task.name)
    own = any(isinstance(entry, OwnData) and entry.task_name == task.name for entry in study.tasks)
    return TaskRecord(
        rule=task.rule,
        states_format=task.states_format,
        # What finetrap brings was looked at once; what the user brings is new.
        near_overlap=near_overlap(task.load("train"), task.load("test")) if own and not task.carved else 0,
        classes=task.classes,
        train=len(items.splits.train),
        validation=len(items.splits.validation),
        test_available=len(load_test(task).examples),
        test_carved=task.carved,
    )


def test_items(study: Study, task: Task, purpose: Purpose) -> TestSet:
    """The test items of an evaluation. Called where the final evaluation is planned and where it is run."""
    limit = study.limit_retention if purpose == "retention" else study.limit_test
    return load_test(task, limit=limit)


test_items.__test__ = False  # type: ignore[attr-defined]  # not a test case, whatever pytest makes of the name


def plan(study: Study, sources: Sequence[Source], tasks: dict[str, TaskItems], *, dtype: str) -> list[Planned]:
    """Every trial of a study with its evaluations, reference arms first."""
    planned = []
    for source in sources:
        for items in tasks.values():
            for arm in study.parsed_arms():
                method = build(arm.method, arm.settings)
                for seed in _seeds(study, method):
                    planned.append(_planned(study, source, items, arm, method, seed, dtype))
    return planned


def _seeds(study: Study, method: Method) -> tuple[int, ...]:
    if method.training is not None:
        return study.seeds
    return study.shot_seeds if method.shots > 0 else (0,)


def _planned(
    study: Study, source: Source, items: TaskItems, arm: Arm, method: Method, seed: int, dtype: str
) -> Planned:
    splits = items.splits
    reads_train = method.training is not None or method.shots > 0
    train = splits.carved if method.trivial else splits.train if reads_train else ()
    trial = Trial(
        model=source.record,
        task=items.task.name,
        task_version=items.task.version,
        arm=arm.name,
        method=arm.method,
        settings=arm.settings,
        seed=seed,
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        train_items=items_digest(train),
        validation_items=items_digest(splits.validation if method.training is not None else ()),
        checkpoint=_checkpoint_digest(method),
        plugin=plugin.digest if (plugin := method_registry.plugin_of(arm.method)) else None,
    )
    shots = draw_shots(items.splits, method.shots, seed)
    evaluations = [_evaluation(study, source, study.task(items.task.name), "target", shots)]
    for name in study.out_of_distribution:
        if name != items.task.name:
            evaluations.append(_evaluation(study, source, study.task(name), "out_of_distribution", shots))
    if not method.trivial and not method.shots:
        for name in study.retention:
            if not items.task.is_near(name):
                evaluations.append(_evaluation(study, source, study.task(name), "retention", ()))
    return Planned(trial=trial, evaluations=tuple(evaluations))


def _evaluation(study: Study, source: Source, task: Task, purpose: Purpose, shots: tuple[Example, ...]) -> Evaluation:
    examples = test_items(study, task, purpose).examples
    return Evaluation(
        purpose=purpose,
        task=task.name,
        task_version=task.version,
        kind=task.kind,
        items=items_digest(examples),
        n=len(examples),
        chat=source.record.chat and task.kind == "generate",
        shots=tuple(shot.id for shot in shots),
        max_new_tokens=task.max_new_tokens,
    )


def _checkpoint_digest(method: Method) -> str | None:
    if method.checkpoint is None:
        return None
    from finetrap.presets import file_sha256

    files = sorted(method.checkpoint.glob("*.safetensors")) + sorted(method.checkpoint.glob("*config.json"))
    return digest({path.name: file_sha256(path) for path in files})


def missing(planned: Planned, store: Store) -> list[Evaluation]:
    """The evaluations of a trial that are not done."""
    return [e for e in planned.evaluations if store.evaluation(planned.trial, e) is None]


class Estimate(NamedTuple):
    """What is left of a trial, roughly."""

    seconds: float
    disk_bytes: int


CHARACTERS_A_TOKEN = 4
SHARE_OF_PEAK = 0.5
"""Of the measured rate of matrix products that a whole trial reaches."""


def estimate(study: Study, planned: Planned, items: TaskItems, store: Store, flops: float) -> Estimate:
    """Time and disk that a trial still takes, from its texts' lengths and a machine's `flops` a second.

    A forward pass takes 2 operations a weight and token, training three times that (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1). Rough: half or twice as long is usual.
    """
    trial, todo = planned.trial, missing(planned, store)
    if not todo:
        return Estimate(0.0, 0)
    method = build(trial.method, trial.settings)
    tokens = 0.0
    disk = 0
    if method.training is not None and store.artifact(trial) is None:
        passes = 3 * method.training.epochs
        tokens += passes * _tokens(items.splits.train) + 4 * _tokens(items.splits.validation)
        disk = trial.model.parameters * (2 if trial.dtype == "bfloat16" else 4) // (10 if method.adapter else 1)
    for evaluation in todo:
        if method.trivial and evaluation.kind == "generate":
            continue
        task = study.task(evaluation.task)
        examples = test_items(study, task, evaluation.purpose).examples
        shots = 0 if evaluation.kind == "choice" else method.shots
        tokens += _tokens(examples) + shots * evaluation.n * _tokens(items.splits.train) / len(items.splits.train)
        # A decoded token costs as much as several that are read: the weights are loaded for each.
        tokens += 3 * evaluation.n * evaluation.max_new_tokens / 2
    return Estimate(max(1.0, 2 * trial.model.parameters * tokens / (SHARE_OF_PEAK * flops)), disk)


def _tokens(examples: Sequence[Example]) -> float:
    characters = sum(len(e.question) + sum(map(len, e.choices or (e.reference,))) for e in examples)
    return characters / CHARACTERS_A_TOKEN + 5 * len(examples)


def measured_flops(*, dtype: str, device: str) -> float:
    """Floating-point operations a second of a matrix product of a small model's size on this machine."""
    import torch

    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a, b = (torch.randn(2048, 1024, dtype=kind, device=device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        (a @ b.T).sum().item()
        best = max(best, 2 * 2048 * 1024 * 2048 / (time.perf_counter() - started))
    return best
