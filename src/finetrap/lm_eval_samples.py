"""Files that lm-evaluation-harness writes with --log_samples: found in folders, read, and paired by item."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetrap.errors import StudyError, unknown
from finetrap.stats import Scores

Key = tuple[str, int]
"""An item: the hash of its row and which of several equal rows it is, or its number where a file has no hashes."""

METRICS = ("exact_match", "acc_bytes", "acc_norm", "acc")
"""Those that decide where a file has them, the first one there."""
FILTER = "flexible-extract"
"""The filter that decides where a file has it, else its first."""

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T[\d.-]+)\.jsonl")
_FIELDS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
_HASHES = {"doc_hash", "prompt_hash", "target_hash"}


class Sample(NamedTuple):
    """One item under one filter."""

    line: int
    doc_id: int
    doc_hash: str | None
    target: str
    metrics: Mapping[str, Any]


class Samples(NamedTuple):
    """One file: the run of a model on a task."""

    path: Path
    task: str | None
    """Out of the file's name; None where the file was renamed."""
    filters: Mapping[str, Sequence[Sample]]
    """By filter, in the order of the file."""

    def chosen_filter(self, wanted: str | None) -> str:
        """The filter that decides.

        Raises:
            StudyError: the file has not the one that is wanted.
        """
        if wanted is not None and wanted not in self.filters:
            raise StudyError(f"{self.path}: {unknown('filter', wanted, self.filters)}")
        return wanted or (FILTER if FILTER in self.filters else next(iter(self.filters)))

    def chosen_metric(self, wanted: str | None, filter_name: str) -> str:
        """The metric that decides.

        Raises:
            StudyError: the file has not the one that is wanted, or several and none that is taken by default.
        """
        names = list(self.filters[filter_name][0].metrics)
        if wanted is not None and wanted not in names:
            raise StudyError(f"{self.path}: {unknown('metric', wanted, names)}")
        default = next((name for name in METRICS if name in names), names[0] if len(names) == 1 else None)
        if wanted is None and default is None:
            raise StudyError(f"{self.path}: which metric decides? Choose one with --metric: {', '.join(names)}.")
        return wanted or str(default)

    def scores(self, metric: str, filter_name: str, *, hashed: bool) -> dict[Key, tuple[float, str]]:
        """By item its score, 0 or 1, and its target; keyed by the rows' hashes, or by their numbers.

        Raises:
            StudyError: a row has no such score.
        """
        seen: Counter[str] = Counter()
        found = {}
        for sample in sorted(self.filters[filter_name], key=lambda sample: sample.doc_id):
            value = sample.metrics.get(metric)
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise StudyError(
                    f"{self.path}:{sample.line}: '{metric}' is {json.dumps(value)}, and a verdict takes 0 or 1; "
                    f"choose another --metric."
                )
            name = sample.doc_hash if hashed and sample.doc_hash else str(sample.doc_id)
            found[name, seen[name]] = (float(value), sample.target)
            seen[name] += 1
        return found

    def has(self, metric: str, filter_name: str) -> bool:
        """Whether its rows have that metric under that filter."""
        return (
            all(metric in sample.metrics for sample in self.filters.get(filter_name, ()))
            and filter_name in self.filters
        )

    @property
    def hashed(self) -> bool:
        """Whether every row has the hash of its item, as files of older versions have not."""
        return all(sample.doc_hash for samples in self.filters.values() for sample in samples)


def task_of(path: Path) -> str | None:
    """The task that a file's name says it is of."""
    named = _NAME.fullmatch(path.name)
    return named["task"] if named else None


def find(path: Path) -> dict[str | None, Path]:
    """By task, the files of one run: a file is itself, of a folder every task's newest.

    Raises:
        StudyError: nothing is there, or the runs of several models are.
    """
    if path.is_file():
        return {task_of(path): path}
    if not path.is_dir():
        raise StudyError(f"there is no file or folder {path}; give what `lm_eval --log_samples` wrote.")
    files = [file for file in path.rglob("samples_*.jsonl") if _NAME.fullmatch(file.name)]
    if not files:
        raise StudyError(f"{path} has no samples_TASK_DATE.jsonl; run lm_eval with --log_samples and --output_path.")
    if len(folders := sorted({str(file.parent) for file in files})) > 1:
        raise StudyError(f"{path} has the runs of several models; give the folder of one: {', '.join(folders)}.")
    # The date sorts as text, and is the last part of the name.
    return {task_of(file): file for file in sorted(files, key=lambda file: file.name)}


def read(path: Path) -> Samples:
    """Read a file.

    Raises:
        StudyError: it is empty, or a line is not what lm-evaluation-harness writes; the message has its number.
    """
    filters: dict[str, list[Sample]] = {}
    lines: dict[tuple[str, int], int] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                name, sample = _sample(line, number, path)
                first = lines.setdefault((name, sample.doc_id), number)
                if first != number:
                    raise StudyError(
                        f"{path}:{number}: item {sample.doc_id} stands in line {first} already; two runs in one file? "
                        f"Give each its own."
                    )
                filters.setdefault(name, []).append(sample)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}.") from error
    if not filters:
        raise StudyError(f"{path} is empty; the run that wrote it was cut off.")
    return Samples(path, task_of(path), filters)


def _sample(line: str, number: int, path: Path) -> tuple[str, Sample]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise StudyError(
            f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); the run may have been cut off."
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("doc_id"), int):
        raise StudyError(f"{path}:{number}: no row of `lm_eval --log_samples`: it has no 'doc_id'.")
    names = row.get("metrics") or [name for name in row if name not in _FIELDS | _HASHES]
    metrics = {name: row[name] for name in names if name in row}
    if not metrics:
        raise StudyError(f"{path}:{number}: the row has no metric.")
    sample = Sample(number, row["doc_id"], row.get("doc_hash"), str(row.get("target")), metrics)
    return str(row.get("filter", "none")), sample


def paired(files: Sequence[Samples], metric: str, filter_name: str) -> list[Scores]:
    """The scores (n,) of each file, on the same items in the same order.

    Items pair by the hash of their row, which the order of a data set does not change; by number where a file has none.

    Raises:
        StudyError: two files have not the same items, or not the same targets.
    """
    hashed = all(file.hashed for file in files)
    first, *others = files
    expected = first.scores(metric, filter_name, hashed=hashed)
    columns = [expected]
    for file in others:
        found = file.scores(metric, filter_name, hashed=hashed)
        here = f"{len(found)} items of {file.path} and {len(expected)} of {first.path}"
        if not found.keys() & expected.keys():
            raise StudyError(f"none of the {here} is the same: they are of different tasks or splits.")
        if common := len(found.keys() ^ expected.keys()):
            raise StudyError(
                f"of the {here}, {common} stand in one file only; run both on the same items (--limit, --samples)."
            )
        if differ := [key for key in expected if found[key][1] != expected[key][1]]:
            raise StudyError(
                f"{len(differ)} items of {file.path} have another target than in {first.path}: versions of a task that "
                f"do not compare; the first: {found[differ[0]][1]!r:.60} for {expected[differ[0]][1]!r:.60}."
            )
        columns.append(found)
    return [np.array([column[key][0] for key in expected]) for column in columns]
