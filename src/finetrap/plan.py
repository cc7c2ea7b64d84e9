"""From a study to its trials, and how long they will take. Resuming is planning: what is done is not planned again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from finetrap.config import Study
from finetrap.data import Splits, TestSet, draw_shots, load_splits, load_test, sealed
from finetrap.method import Arm, Method, build
from finetrap.method import method as method_registry
from finetrap.models import Source
from finetrap.records import Evaluation, Planned, Purpose, Sampled, TaskRecord, Trial, digest, items_digest
from finetrap.replay import mixed_in, untested
from finetrap.rows.duplicates import count_items, near_overlap
from finetrap.rows.own_data import OwnData
from finetrap.store import Store
from finetrap.task import Example, Task


class TaskItems(NamedTuple):
    """A task, sealed, with what training may see of it."""

    task: Task
    splits: Splits
    general: tuple[str, ...] = ()
    """General texts that may be mixed into training; none that the study tests on."""

    def replayed(self, method: Method, seed: int) -> tuple[str, ...]:
        """The general texts that a method mixes into its training rows."""
        share = method.training.replay if method.training is not None else 0.0
        return mixed_in(self.general, len(self.splits.train), share, seed=seed)

    def first(self, rows: int | None) -> "TaskItems":
        """The same with the first `rows` training examples, or all."""
        return self._replace(splits=replace(self.splits, train=self.splits.train[:rows]))

    def shots(self, method: Method, seed: int) -> tuple[Example, ...]:
        """What a method shows in front of each question."""
        return draw_shots(self.splits, method.shots, seed)


def load_tasks(study: Study) -> dict[str, TaskItems]:
    """The study's target tasks.

    Where train is limited, validation is no more than a quarter of that: it is read four times in a run, and would
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
            _general(study, name),
        )
        for name in study.task_names
    }


def _general(study: Study, target: str) -> tuple[str, ...]:
    if not (study.rescue or any(arm.settings.get("replay") for arm in study.parsed_arms())):
        return ()
    purposes: list[tuple[Purpose, str]] = [
        *(("target", name) for name in (target, *study.out_of_distribution)),
        *(("retention", name) for name in study.retention),
    ]
    return untested(e for purpose, name in purposes for e in test_items(study, study.task(name), purpose).examples)


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
        test_available=count_items(load_test(task).examples),
        grouped=any(example.group for example in load_test(task).examples),
        test_carved=task.carved,
    )


def test_items(study: Study, task: Task, purpose: Purpose) -> TestSet:
    """The test items of an evaluation. Called where the final evaluation is planned and where it is run."""
    limit = study.limit_test
    if purpose == "retention":
        generated = task.kind == "generate"
        limit = min(study.limit_retention, study.limit_instructions) if generated else study.limit_retention
    return load_test(task, limit=limit)


test_items.__test__ = False  # type: ignore[attr-defined]  # not a test case, whatever pytest makes of the name


def examples_of(study: Study, items: TaskItems, evaluation: Evaluation) -> tuple[Example, ...]:
    """What an evaluation asks: the task's validation items where it tunes, else test items."""
    return _examples(study, items, study.task(evaluation.task), evaluation.purpose)


def _examples(study: Study, items: TaskItems, task: Task, purpose: Purpose) -> tuple[Example, ...]:
    return items.splits.validation if purpose == "validation" else test_items(study, task, purpose).examples


Settled = Callable[[Source, TaskItems, Arm], Arm | None]
"""From an arm to that with the settings that were chosen for a model and task; None where none could be."""


def plan(
    study: Study,
    sources: Sequence[Source],
    tasks: dict[str, TaskItems],
    *,
    dtype: str,
    settled: Settled = lambda source, items, arm: arm,
) -> list[Planned]:
    """Every final trial of a study with its evaluations, reference arms first."""
    planned = []
    for source in sources:
        for items in tasks.values():
            arms = [arm for stated in study.parsed_arms() if (arm := settled(source, items, stated)) is not None]
            planned += plan_arms(study, source, items, arms, dtype=dtype)
    return planned


def plan_arms(
    study: Study,
    source: Source,
    items: TaskItems,
    arms: Sequence[Arm],
    *,
    dtype: str,
    parents: Sequence[Planned] = (),
) -> list[Planned]:
    """The trials of some arms on a model and task; what goes on from another arm comes after it.

    `parents` are trials of arms that are planned already. What goes on from an arm that is not planned yet, since it
    is still tuned, is not planned either.
    """
    planned: list[Planned] = []
    for arm in sorted(arms, key=lambda arm: build(arm.method, arm.settings).of is not None):
        method = build(arm.method, arm.settings)
        of = {p.trial.seed: p.trial for p in (*parents, *planned) if p.trial.arm == method.of}
        for seed in of if method.of is not None else _seeds(study, method):
            trial = trial_of(source, items, arm, method, seed, dtype, parent=of.get(seed))
            planned.append(Planned(trial=trial, evaluations=_evaluations(study, source, items, method, seed)))
    return planned


def _seeds(study: Study, method: Method) -> tuple[int, ...]:
    if method.training is not None:
        return study.seeds
    return study.shot_seeds if method.shots > 0 else (0,)


def trial_of(
    source: Source,
    items: TaskItems,
    arm: Arm,
    method: Method,
    seed: int,
    dtype: str,
    *,
    parent: Trial | None = None,
) -> Trial:
    """One trial: an arm on a model and a task's items, with a seed."""
    splits = items.splits
    replayed = items.replayed(method, seed)
    reads_train = method.training is not None or method.shots > 0
    train = splits.carved if method.trivial else splits.train if reads_train else ()
    return Trial(
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
        best_checkpoint=arm.tunes is not None and method.training is not None,
        parent=parent.training_key if parent is not None else None,
        replayed=digest(replayed) if replayed else None,
    )


def _evaluations(study: Study, source: Source, items: TaskItems, method: Method, seed: int) -> tuple[Evaluation, ...]:
    """What a final trial is asked."""
    shots = items.shots(method, seed)

    def asked(name: str, purpose: Purpose, shots: tuple[Example, ...] = ()) -> Evaluation:
        task = study.task(name)
        # Forgetting is measured on likeliest answers; and what does not read the question gives one answer.
        greedy = purpose == "retention" or method.trivial
        examples = _examples(study, items, task, purpose)
        return evaluation_of(source, task, purpose, examples, shots, sampled=None if greedy else study.sampled)

    evaluations = [asked(items.task.name, "target", shots)]
    others = [name for name in study.out_of_distribution if name != items.task.name]
    evaluations += [asked(name, "out_of_distribution", shots) for name in others]
    if not (method.trivial or method.shots or method.instruction):
        general = [name for name in study.retention if not items.task.is_near(name)]
        chat = source.record.chat
        evaluations += [asked(name, "retention") for name in general if chat or not study.task(name).chat_only]
    return tuple(evaluations)


def evaluation_of(
    source: Source,
    task: Task,
    purpose: Purpose,
    examples: Sequence[Example],
    shots: Sequence[Example] = (),
    *,
    sampled: Sampled | None = None,
) -> Evaluation:
    """What an artifact is asked: `examples` of a task, solved `shots` in front of each.

    Answers are `sampled` where the task's are generated.
    """
    return Evaluation(
        purpose=purpose,
        task=task.name,
        task_version=task.version,
        kind=task.kind,
        items=items_digest(examples),
        n=len(examples),
        chat=source.record.chat and task.converses,
        shots=tuple(shot.id for shot in shots),
        max_new_tokens=task.max_new_tokens,
        sampled=sampled if task.kind == "generate" else None,
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
    items = items.first(planned.train_rows)
    tokens = 0.0
    if method.training is not None and store.artifact(trial) is None:
        passes = 3 * method.training.epochs / (1 - method.training.replay)
        tokens += passes * tokens_of(items.splits.train) + 4 * tokens_of(items.splits.validation)
    for evaluation in todo:
        if method.trivial and evaluation.kind == "generate":
            continue
        examples = examples_of(study, items, evaluation)
        shots = 0 if evaluation.kind == "choice" else method.shots
        if evaluation.kind == "divergence":
            # Nothing is generated: the untouched model and the adapted one read the texts, unless they are the same.
            tokens += 0 if trial.method == "zero_shot" else 2 * tokens_of(examples)
            continue
        tokens += tokens_of(examples) + shots * tokens_of(items.splits.train) / len(items.splits.train)
        # A decoded token costs as much as several that are read: the weights are loaded for each.
        drawn = evaluation.sampled.samples if evaluation.sampled is not None else 1
        tokens += 3 * evaluation.n * drawn * evaluation.max_new_tokens / 2
    seconds = 2 * trial.model.parameters * tokens / (SHARE_OF_PEAK * flops)
    return Estimate(max(1.0, seconds), _disk_bytes(study, planned, method, store))


def _disk_bytes(study: Study, planned: Planned, method: Method, store: Store) -> int:
    """Of the weights that a trial will write."""
    trial = planned.trial
    trains = method.training is not None and planned.rung is None and store.artifact(trial) is None
    if not trains and (method.of is None or study.keep == "none"):
        return 0
    return trial.model.parameters * (2 if trial.dtype == "bfloat16" else 4) // (10 if method.adapter else 1)


def most_disk_bytes(study: Study, left: Sequence[tuple[Planned, Estimate]]) -> int:
    """What the weights of trials take while the study runs.

    With `keep` none they go with their trial, but for those that another trial goes on from.
    """
    if not drops_at_once(study):
        return sum(rest.disk_bytes for _, rest in left)
    gone_on_from = {planned.trial.parent for planned, _ in left}
    stay = [rest.disk_bytes for planned, rest in left if planned.trial.training_key in gone_on_from]
    return sum(stay) + max((rest.disk_bytes for _, rest in left), default=0)


def drops_at_once(study: Study) -> bool:
    """Whether weights go as soon as nothing is missing of their trial; a rescue may still go on from them."""
    return study.keep == "none" and not study.rescue


def tokens_of(examples: Sequence[Example]) -> float:
    """About how many tokens examples take."""
    characters = sum(len(e.question) + sum(map(len, e.choices or (e.reference,))) for e in examples)
    return characters / CHARACTERS_A_TOKEN + 5 * len(examples)


@cache
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
