"""What the tests of the command line share: a study file, a call, what a folder holds."""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from finetrap.cli import app, call
from finetrap.records import Evaluation, EvaluationRecord
from finetrap.task import get_task, task

SMALL = {
    "tasks": ["arc_easy"],
    "arms": ["lora:rank=2"],
    "limit_train": 16,
    "limit_test": 10,
    "retention": ["hellaswag", "arc_easy", "wikitext2"],
    "limit_retention": 10,
    "dtype": "float32",
    "device": "cpu",
}
"""A study of seconds; float32 so that the same work gives the same numbers."""


@contextmanager
def short_answers(tokens: int = 8) -> Iterator[None]:
    """Answers end after a few tokens: a random model says nothing of more worth in the hundreds that are allowed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gsm8k", "svamp", "ifeval"):
            patch.setitem(task._entries, name, partial(replace, get_task(name), max_new_tokens=tokens))
        yield


class Called(NamedTuple):
    """What came of a command."""

    code: int
    out: str
    err: str


def called(capsys: pytest.CaptureFixture[str], *arguments: object) -> Called:
    """Run a command in this process."""
    capsys.readouterr()
    code = call(app, [str(argument) for argument in arguments])
    return Called(code, *capsys.readouterr())


def evaluation_record(evaluation: Evaluation) -> EvaluationRecord:
    """That an evaluation is done."""
    return EvaluationRecord(
        evaluation=evaluation,
        eval_seconds=1,
        peak_memory_bytes=1,
        prompt_tokens=1,
        output_tokens=1,
        environment="e",
        finished="now",
    )


def study_file(folder: Path, model: Path | str, **settings: object) -> Path:
    """Write a small study into `folder`; a setting that is None is left out."""
    values = {"models": [str(model)], **SMALL, **settings}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


def model_copy(model: Path, target: Path, **config: object) -> Path:
    """A copy of a model's folder, with settings of its config.json changed."""
    shutil.copytree(model, target)
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **config}))
    return target


def without_chat_template(model: Path, target: Path) -> Path:
    """A copy of a model's folder, as a base model has it."""
    shutil.copytree(model, target)
    (target / "chat_template.jinja").unlink()
    return target


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def rows_in(folder: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of every evaluation that is done in a study's folder, by its folder, which its keys name."""
    return {
        str(result.parent.relative_to(folder)): [
            json.loads(line) for line in gzip.decompress((result.parent / "rows.jsonl.gz").read_bytes()).splitlines()
        ]
        for result in sorted(folder.glob("trials/*/*/result.json"))
    }


def written_at(folder: Path, name: str = "result.json") -> dict[str, int]:
    """When each file called `name` of a study's trials was written, in ns."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.glob(f"trials/**/{name}"))}


def trial_folder(folder: Path, arm: str) -> Path:
    """The only trial of an arm."""
    (found,) = folder.glob(f"trials/*--{arm}--seed*")
    return found


class Page(HTMLParser):
    """What a report.html holds, read as a browser reads it: tags, tables, texts of script and style."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: dict[str, str] = {}
        """By id; the page's own has none."""
        self.style = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self._rows.append([])
        if tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        within = self._open[-1] if self._open else ""
        if within == "script":
            self.scripts[self.tags[-1][1].get("id", "")] = data
        elif within == "style":
            self.style = data
        elif "caption" in self._open:
            self._rows = self.tables.setdefault(data, [])
        elif data.strip():
            self.words.append(data.strip())
            if "th" in self._open or "td" in self._open:
                self._rows[-1][-1] += data

    def values(self, attribute: str) -> list[str]:
        """Every value of an attribute, in order."""
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]

    def items(self, name: str) -> dict[str, Any]:
        """What the browser of outputs called `name` reads."""
        loaded: dict[str, Any] = json.loads(self.scripts[f"items-{name}"])
        return loaded


def page_of(folder: Path) -> Page:
    """The report.html of a study's folder."""
    return Page((folder / "report.html").read_text(encoding="utf-8"))


class Place(NamedTuple):
    """Where a case is set up: an empty folder that is also the current one, and a model that is right."""

    folder: Path
    model: Path

    def compare(self, *arguments: object, model: object = None, task: str = "arc_easy") -> list[object]:
        return ["compare", "--model", model or self.model, "--task", task, "--limit-test", 10, *arguments]

    def run(self, text: str) -> list[object]:
        """`finetrap run` of a study file of these lines, after the model and the task."""
        path = self.folder / "mine.yaml"
        path.write_text(f"models: {self.model}\ntasks: arc_easy\n{text}", encoding="utf-8")
        return ["run", path]

    def own(self, train: object, *arguments: object) -> list[object]:
        """`finetrap compare` of data of the user's own."""
        return ["compare", "--model", self.model, "--train", train, "--limit-test", 10, *arguments]

    def broken_model(self, name: str, content: str | bytes | None) -> list[object]:
        """`finetrap compare` of a copy of the model in which one file is another, or not there."""
        path = model_copy(self.model, self.folder / "model") / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.compare(model=path.parent)


Case = tuple[str, Callable[[Place], list[object]], str]


def check(capsys: pytest.CaptureFixture[str], place: Place, arguments: list[object]) -> Called:
    """The contract of every bad input."""
    before = contents(place.folder)
    done = called(capsys, *arguments)
    assert done.code == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert contents(place.folder) == before
    return done


def error_of(done: Called) -> str:
    """What a command said that refused its input: one line."""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    return done.err


def cases(*given: Case) -> Callable[..., object]:
    return pytest.mark.parametrize(
        ("arguments", "says"), [case[1:] for case in given], ids=[case[0].replace(" ", "_") for case in given]
    )
