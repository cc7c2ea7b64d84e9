"""Rows out of what people have: JSON lines, CSV, Parquet, a Hub data set or a local copy of one."""

import csv
import io
import json
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from finetrap.errors import StudyError
from finetrap.quiet import quiet_hub

if TYPE_CHECKING:
    from datasets import Dataset

FILE_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

csv.field_size_limit(2**31 - 1)


class Row(NamedTuple):
    """A row, and where it stands, for messages."""

    where: str
    values: dict[str, Any]


def read_rows(source: str, *, split: str, data_dir: Path | None = None) -> list[Row]:
    """All rows of a file, or of a split of a data set.

    `source` is a file of one of `FILE_KINDS`, a folder that `datasets` can load, or a Hub id (`ORG/NAME` or
    `ORG/NAME:CONFIGURATION`), which is first looked for below `data_dir`.

    Raises:
        StudyError: there is no such source, or it is empty, damaged, or not what its name says.
    """
    path = Path(os.path.expanduser(source))
    if data_dir is not None and not data_dir.is_dir():
        raise StudyError(f"there is no folder {data_dir} (--data-dir).")
    if os.path.isfile(path):
        rows = list(_read_file(path))
        if not rows:
            raise StudyError(f"{source} is empty; give a file with one example a row.")
        return rows
    if path.suffix.lower() in FILE_KINDS and not os.path.isdir(path):
        raise StudyError(f"there is no file {_sought(path, source)}.")
    return [Row(f"{source}, row {index}", row) for index, row in enumerate(_dataset(source, split, data_dir), start=1)]


def no_column(rows: list[Row], source: str, field: str, option: str) -> StudyError:
    """The error for a column that no row has, with the nearest one, or what to do with a layout that is well known."""
    columns = list(map(str, rows[0].values))
    said = f"{source} has no column '{field}'; it has {', '.join(map(repr, columns))}."
    by_name = {column.casefold(): column for column in reversed(columns)}
    near = get_close_matches(field.casefold(), by_name, n=1)
    if near:
        return StudyError(f"{said} Name the right one with {option}: did you mean {option} {quote(by_name[near[0]])}?")
    if "conversations" in columns:
        turns = rows[0].values["conversations"]
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
            return StudyError(f"{said} These are conversations: --prompt-field conversations.")
        return StudyError(
            f"{said} These look like ShareGPT's: rename the column to messages, and in each turn 'from' to 'role' "
            f"(human: user, gpt: assistant) and 'value' to 'content'."
        )
    if {"instruction", "output"} <= set(columns):
        joined = "; where 'input' is filled, join it to the instruction first" if "input" in columns else ""
        return StudyError(f"{said} Use --prompt-field instruction --answer-field output{joined}.")
    return StudyError(f"{said} Name the right one with {option}.")


def dataset_rows(repository: str, split: str, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a split of a Hub data set, or of its copy below `data_dir`.

    Raises:
        StudyError: it is not there.
    """
    return [row.values for row in read_rows(repository, split=split, data_dir=data_dir)]


def _read_file(path: Path) -> Iterator[Row]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path)
    text = _text(path)
    if kind in (".csv", ".tsv"):
        return _csv(path, text)
    if kind == ".json" and text.lstrip().startswith("["):
        return _json_list(path, text)
    if kind in FILE_KINDS:
        return _json_lines(path, text)
    raise StudyError(f"{path} has no ending that says what it is; give one of {', '.join(FILE_KINDS)}.")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror}.") from None


def _text(path: Path) -> str:
    data = _bytes(path)
    if b"\0" in data[:8192]:
        raise StudyError(
            f"{path} is not text, though it is named {path.suffix}: it holds zero bytes; save UTF-16 as UTF-8."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StudyError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 "
            f"(iconv -f WINDOWS-1252 -t UTF-8)."
        ) from None


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StudyError(f"{path}:{number}: not JSON: {error}.") from None
        yield _object(f"{path}:{number}", values)


def _json_list(path: Path, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is not JSON: {error}.") from None
    for number, values in enumerate(rows, start=1):
        yield _object(f"{path}, row {number}", values)


def _object(where: str, values: object) -> Row:
    if not isinstance(values, dict):
        raise StudyError(f"{where}: expected an object with named fields, got {type(values).__name__}.")
    return Row(where, values)


def _csv(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    try:
        header = next(reader, None)
        if header is None:
            return
        other = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
        if other is not None:
            raise StudyError(f"{path}:1: its columns are separated by {other!r}; save it with commas, or tabs as .tsv.")
        if len(set(header)) < len(header):
            raise StudyError(f"{path}:1: two columns have the same name.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise StudyError(
                    f"{path}:{reader.line_num}: {len(cells)} values, and the header names {len(header)} columns; "
                    f"put values with commas or line breaks in quotes."
                )
            yield Row(f"{path}:{reader.line_num}", dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise StudyError(f"{path}:{reader.line_num}: not CSV: {error}.") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(_bytes(path)))
    except (OSError, ValueError) as error:
        # pyarrow's errors are ValueErrors.
        raise StudyError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(f"{path}, row {number}", values)


def _dataset(source: str, split: str, data_dir: Path | None) -> "Dataset":
    """A split, by `datasets`: from a folder, a copy below `data_dir`, or the Hub."""
    import datasets

    name, _, configuration = source.partition(":")
    local = _local_copy(name, data_dir)
    if local is None and ("/" not in name or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        sought = _sought(Path(os.path.expanduser(name)), source)
        raise StudyError(f"there is no file or folder {sought}; no data set of the Hub is called so (ORG/NAME).")
    try:
        if local is not None and (local / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(local))[split]
        if local is not None and (local / "state.json").is_file():
            return datasets.load_from_disk(str(local))
        with quiet_hub():
            return datasets.load_dataset(str(local or name), configuration or None, split=split)
    except Exception as error:
        # datasets and the hub's client raise a dozen unrelated types; each is an input that the user can mend.
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        place = f"in {local}" if local is not None else "on the Hub (a copy of it can lie below --data-dir)"
        raise StudyError(f"the data set '{source}' has no split '{split}' that can be read {place}: {said}.") from error


def here(repository: str, data_dir: Path | None) -> bool:
    """Whether a data set of the Hub is on this machine: below `data_dir`, or in the cache of the Hub's client."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}" / "snapshots"
    return _local_copy(repository, data_dir) is not None or cached.is_dir()


def _sought(path: Path, source: str) -> str:
    """A path that is not there, and where it was looked for if that is not plain."""
    return source if path.is_absolute() else f"{source} in {Path.cwd()}; a relative path starts where finetrap is run"


def _local_copy(name: str, data_dir: Path | None) -> Path | None:
    """The folder of a data set: `name` itself, or ORG/NAME or NAME below `data_dir`."""
    places = [Path(os.path.expanduser(name))]
    if data_dir is not None:
        # The repository's name alone, too: that is what `git clone` makes.
        places = [data_dir / name, data_dir / name.rpartition("/")[2], *places]
    return next((place for place in places if place.is_dir()), None)
