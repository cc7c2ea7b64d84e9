"""Rows of a user's own, as the tests of own data, of check-data and of plugins write them."""

import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def question(index: int) -> str:
    """A question that is near to no other."""
    return " ".join("".join(random.Random(f"{index} {word}").choices("abcdefghij", k=4)) for word in range(6))


def rows(count: int, answers: Sequence[Any] = ("red", "blue", "red"), **more: Any) -> list[dict[str, Any]]:
    """Rows with different questions, whose answers take turns."""
    return [{"prompt": question(i), "answer": answers[i % len(answers)], **more} for i in range(count)]


def chat_rows(count: int, system: str = "") -> list[dict[str, Any]]:
    """Conversations of two questions, the last of which is `question(index)`."""
    first = [{"role": "system", "content": system}] if system else []
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    return [
        {
            "messages": [
                *first,
                *said,
                {"role": "user", "content": question(i)},
                {"role": "assistant", "content": ("red", "blue")[i % 2]},
            ]
        }
        for i in range(count)
    ]


def write(path: Path, values: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as the kind of file that the path's ending says."""
    table = [dict(row) for row in values]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(table), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in table
            )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return str(path)
