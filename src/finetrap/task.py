"""What a task is. Each task is one function in `tasks/`, found by being there."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from finetrap.errors import StudyError
from finetrap.registry import Registry
from finetrap.scoring import Verdict

Split = Literal["train", "test"]
Kind = Literal["generate", "choice", "text"]


@dataclass(frozen=True)
class Example:
    """One item of a task."""

    id: str
    """Unique within the task, and stable."""
    question: str
    """What is asked; for a `text` task the text itself."""
    reference: str = ""
    """The completion that training teaches and shots show."""
    gold: str = ""
    """The answer that scoring expects; for a `choice` task the index of the right choice."""
    choices: tuple[str, ...] = ()
    """The answers to choose from, empty unless the task is multiple choice."""


@dataclass(frozen=True)
class Task:
    """Data, prompt, answer extraction and metric."""

    name: str
    summary: str
    kind: Kind
    """`generate`: text scored by `score`; `choice`: by log-likelihood; `text`: bits per byte."""
    license: str
    load: Callable[[Split], tuple[Example, ...]]
    """All examples of a split. Nothing but `finetrap.data` calls it."""
    splits: tuple[Split, ...] = ("train", "test")
    prompt: Callable[[str], str] = str
    """The question as it is put to the model: what an untouched and a trained model both see."""
    blind_prompt: str = "Answer:"
    """The prompt without its question, for the trivial arm of a `choice` task."""
    score: Callable[[str, str], Verdict] | None = None
    """(text, gold) to verdict; `generate` tasks only."""
    answer_format: Callable[[str], str] = str
    """A bare answer in the stated format, for the trivial arm of a `generate` task."""
    max_new_tokens: int = 0
    version: int = 1
    """Raised when a change can move a number."""
    siblings: frozenset[str] = frozenset()
    """Tasks too close to this one to count as general ability when it is the target."""


task: Registry[Callable[[], Task]] = Registry("task", "finetrap.tasks")


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        StudyError: there is none; the message names the nearest.
    """
    return task[name]()


def packaged_rows(name: str, split: Split) -> list[dict[str, Any]]:
    """The rows of a data set that finetrap carries (`datasets/NAME/SPLIT.jsonl.gz`)."""
    path = files("finetrap").joinpath("datasets", name, f"{split}.jsonl.gz")
    if not path.is_file():
        raise StudyError(f"task '{name}' has no {split} split; use a task that has one (`finetrap tasks`).")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
