"""What a study would take: its trials, time, disk and downloads. Nothing is fetched, and nothing written.

A model or data set that is not on this machine is stood in for by what is known of it beforehand, so that a study can
be planned where the Hub cannot be reached.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from finetrap.config import ModelSpec, Study
from finetrap.data import Splits
from finetrap.method import PRIOR_WIDTH, Arm
from finetrap.models import Source, find, on_this_machine
from finetrap.plan import Estimate, TaskItems, estimate, load_tasks, measured_flops, most_disk_bytes
from finetrap.presets import PRESETS
from finetrap.records import ModelRecord, Planned
from finetrap.rows.read import here as data_here
from finetrap.size import in_words, seconds_of, sized_text
from finetrap.store import Store
from finetrap.task import Example, HubData, Split, Task
from finetrap.tune import Search, plan_with_tuning, search_of

BYTES_A_WEIGHT = 2
"""Of the presets on the Hub: all are stored in bfloat16."""


class Download(NamedTuple):
    """What the study would fetch first."""

    name: str
    source: str
    bytes: int | None
    """About; None where it is not known beforehand."""


class Outline(NamedTuple):
    """A study before it starts."""

    trials: list[tuple[Planned, Estimate]]
    downloads: list[Download]
    unknown: list[str]
    """Models of unknown size: their trials are not in the time."""
    study: Study
    """With what follows from its size."""


class _Sketch(Study):
    """The study, with rows of typical length in place of data that is not here."""

    def task(self, name: str) -> Task:
        return _stand_in_rows(task) if _absent(task := super().task(name), self) else task


def outline(study: Study, folder: Path) -> Outline:
    """Plan a study as far as it can be without its downloads.

    Raises:
        StudyError: the input is wrong.
    """
    from finetrap.prepare import estimates, prepare

    absent = [spec for spec in study.models if not on_this_machine(spec)]
    names = (*study.task_names, *study.retention, *study.out_of_distribution)
    data = {name: task.hub for name in names if _absent(task := study.task(name), study)}
    downloads = [*map(_model_download, absent), *(_data_download(name, hub) for name, hub in data.items() if hub)]
    if not downloads:
        prepared = prepare(study, folder)
        return Outline(estimates(prepared), [], [], prepared.study)
    trials = _sketched(study, Store(folder), absent, data)
    unknown = [spec.name for spec in absent if not _stand_in(spec).record.parameters]
    return Outline(trials, downloads, unknown, study)


def _sketched(
    study: Study, store: Store, absent: Sequence[ModelSpec], data: dict[str, HubData | None]
) -> list[tuple[Planned, Estimate]]:
    from finetrap.models import choose_device, choose_dtype

    store.check(study)
    sketch = _Sketch.model_construct(**dict(study))
    there = [name for name in study.tasks if name not in data]
    tasks = load_tasks(study.model_copy(update={"tasks": tuple(there)}))
    items = {name: tasks[name] if name in tasks else _stand_in_items(sketch, name) for name in study.task_names}
    sources = [_stand_in(spec) if spec in absent else find(spec) for spec in study.models]
    device = choose_device(study.device)
    dtype = str(choose_dtype(study.dtype, device)).removeprefix("torch.")
    flops = measured_flops(dtype=dtype, device=device)

    def search(source: Source, items: TaskItems, arm: Arm) -> Search | None:
        # The width decides which rates are tried, and not how many.
        return search_of(arm, study.tune, width=PRIOR_WIDTH)

    candidates, planned = plan_with_tuning(sketch, sources, items, search, dtype=dtype, store=store)
    return [(p, estimate(sketch, p, items[p.trial.task], store, flops)) for p in (*candidates, *planned)]


def _absent(task: Task, study: Study) -> bool:
    return task.hub is not None and not data_here(task.hub.repository, study.data_dir)


def _model_download(spec: ModelSpec) -> Download:
    preset = PRESETS.get(spec.name)
    if preset is None:
        return Download(spec.name, f"{spec.name} on the Hub", None)
    if preset.package is not None:
        return Download(spec.name, f"`finetrap models get {spec.name}`, before the study starts", None)
    return Download(spec.name, f"{preset.hub} on the Hub", BYTES_A_WEIGHT * preset.parameters)


def _data_download(name: str, hub: HubData) -> Download:
    return Download(name, f"{hub.repository} on the Hub", hub.download_bytes)


def _stand_in(spec: ModelSpec) -> Source:
    preset = PRESETS.get(spec.name) or next((p for p in PRESETS.values() if p.hub == spec.name), None)
    aligned = preset is not None and preset.aligned
    record = ModelRecord(
        name=spec.name,
        fingerprint="not on this machine",
        quantisation=preset.quantisation if preset else None,
        parameters=preset.parameters if preset else 0,
        aligned=aligned,
        chat=aligned if spec.chat is None else spec.chat,
    )
    return Source(record, Path(spec.name), spec.trust_remote_code)


@lru_cache(maxsize=8)
def _stand_in_rows(task: Task) -> Task:
    assert task.hub is not None
    text = "x" * (task.hub.text_bytes // task.hub.rows)
    rows = tuple(Example(str(index), "", text) for index in range(task.hub.rows))
    in_test = round(task.hub.rows * task.hub.test_share)

    def load(split: Split) -> tuple[Example, ...]:
        return rows[:in_test] if split == "test" else rows[in_test:]

    return replace(task, load=load)


def _stand_in_items(study: Study, name: str) -> TaskItems:
    task = study.task(name)
    rows = task.load("train")
    validation = min(study.limit_validation, max(10, (study.limit_train or len(rows)) // 4))
    train = rows[validation:][: study.limit_train]
    return TaskItems(task, Splits(train=train, validation=rows[:validation], carved=train, dropped=()))


def outline_text(outline: Outline, folder: Path) -> str:
    """For people: a line a trial, then what is fetched, then the sum."""
    models = list(dict.fromkeys(planned.trial.model.label for planned, _ in outline.trials))
    tasks = max(10, *(len(planned.trial.task) for planned, _ in outline.trials))
    lines = []
    for model in models:
        if len(models) > 1:
            lines.append(f"{model}{', of unknown size' if model in outline.unknown else ''}:")
        for planned, left in outline.trials:
            trial = planned.trial
            if trial.model.label != model:
                continue
            state = "unknown" if model in outline.unknown else in_words(left.seconds) if left.seconds else "done"
            asked = ", ".join(f"{e.task} ({e.n})" for e in planned.evaluations)
            what = "tuning" if planned.rung is not None else f"seed {trial.seed}"
            lines.append(f"{trial.arm:<16} {what:<7} {trial.task:<{tasks}} {state:>10}  evaluated on {asked}")
    for name, source, size in outline.downloads:
        lines.append(f"to fetch: {name} ({source}), {_size(size)}")
    known = [(p, left) for p, left in outline.trials if p.trial.model.label not in outline.unknown]
    seconds, disk = sum(left.seconds for _, left in known), most_disk_bytes(outline.study, known)
    left_out = f", and what {' and '.join(outline.unknown)} takes" if outline.unknown else ""
    lines.append(
        f"{len(outline.trials)} trials, roughly {in_words(seconds)} and {disk / 2**20:,.0f} MiB in {folder}{left_out}; "
        f"nothing was run."
    )
    dial = outline.study.size
    if dial is not None and outline.downloads and seconds_of(dial):
        lines.append(f"what fits into {dial} is decided when all of it is here; this is the study without that limit.")
    elif dial is not None:
        lines.append(sized_text(outline.study, seconds))
    return "\n".join(lines)


def outline_json(outline: Outline) -> dict[str, Any]:
    """For programs."""
    return {
        "trials": [{**planned.model_dump(mode="json"), **left._asdict()} for planned, left in outline.trials],
        "downloads": [download._asdict() for download in outline.downloads],
    }


def _size(size: int | None) -> str:
    return f"about {size / 1e6:,.0f} MB" if size is not None else "size unknown"
