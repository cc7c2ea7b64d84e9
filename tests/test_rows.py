"""Rows come out of every kind of file that people have, and say where they stand."""

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetrap.errors import StudyError
from finetrap.rows.read import dataset_rows, read_rows

ROWS = [{"prompt": "Où?", "answer": "ici, là"}, {"prompt": 'a "quote"\nand a line', "answer": "ß"}]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "answer"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    assert [row.values for row in read_rows(str(write(tmp_path, kind)), split="train")] == ROWS


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,answer\r\na,b\r\n")
    assert read_rows(str(path), split="train")[0].values == {"prompt": "a", "answer": "b"}


def test_rows_say_in_which_line_they_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,answer\n"one\ntwo",b\nc,d\n')
    assert [row.where for row in read_rows(str(path), split="train")] == [f"{path}:3", f"{path}:4"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), min_size=1, max_size=5))
def test_any_text_survives_json_lines_and_csv(tmp_path: Path, values: list[str]) -> None:
    lines = tmp_path / "any.jsonl"
    lines.write_text("\n".join(json.dumps({"x": v}, ensure_ascii=False) for v in values), encoding="utf-8", newline="")
    assert [row.values["x"] for row in read_rows(str(lines), split="train")] == values
    table = tmp_path / "any.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["x"], *([v] for v in values)])
    assert [row.values["x"] for row in read_rows(str(table), split="train")] == values


@pytest.mark.parametrize("saved", ["to_disk", "dictionary", "files"])
def test_a_copy_of_a_hub_data_set_is_found_below_the_data_folder(tmp_path: Path, saved: str) -> None:
    data = datasets.Dataset.from_list(ROWS)
    folder = tmp_path / ("word-problems" if saved == "files" else "someone/word-problems")
    if saved == "to_disk":
        data.save_to_disk(folder)
    elif saved == "dictionary":
        datasets.DatasetDict({"train": data}).save_to_disk(folder)
    else:
        (folder / "data").mkdir(parents=True)
        data.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    assert dataset_rows("someone/word-problems", "train", tmp_path) == ROWS
    if saved != "to_disk":
        with pytest.raises(StudyError, match="has no split 'test'"):
            dataset_rows("someone/word-problems", "test", tmp_path)


def test_a_data_set_that_is_nowhere_is_one_clear_line() -> None:
    with pytest.raises(StudyError, match="'someone/nothing' has no split 'train' that can be read on the Hub"):
        read_rows("someone/nothing", split="train")
    with pytest.raises(StudyError, match="there is no file or folder nothing"):
        read_rows("nothing", split="train")
