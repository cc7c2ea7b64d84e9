"""What a task is. Each task is one function in `tasks/`, found by being there."""

import gzip
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from finetrap.errors import StudyError
from finetrap.registry import Plugin, Registry
from finetrap.scoring import Verdict

Split = Literal["train", "test"]
Kind = Literal["generate", "choice", "text", "divergence"]


class Turn(NamedTuple):
    """A turn of a conversation."""

    role: str
    content: str


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
    turns: tuple[Turn, ...] = ()
    """What was said before the question, where the example is a conversation."""
    apart: str = ""
    """What tells it from another example that asks the same: the choices, in data of one's own."""
    group: str = ""
    """What it belongs to, such as the text that it is a question on. Examples of one group are one test item."""

    @property
    def asked(self) -> str:
        """All that is asked, as one text; it decides which examples are alike. A system message is asked of none."""
        said = [turn.content for turn in self.turns if turn.role != "system"]
        return "\n".join([*said, self.question, *filter(None, [self.apart])])


class Layout(NamedTuple):
    """How a prompt is written where there is no chat template."""

    cue: str = "\nAnswer:"
    """After the question of a `generate` task."""
    answer: str = " "
    """In front of an answer."""
    shot: str = "\n\n"
    """After a solved example."""
    system: str = "\n\n"
    """After the system message."""
    predicts_beginning: bool = False
    """Of a `text` task: whether the tokenizer's beginning-of-sequence token counts as part of a text."""


PLAIN = Layout()


class HubData(NamedTuple):
    """What the card of a Hub data set says of it, so that a study can be planned without it."""

    repository: str
    rows: int
    text_bytes: int
    """Of all rows."""
    download_bytes: int
    test_share: float
    """Of the rows, where test is cut from them."""


@dataclass(frozen=True)
class Task:
    """Data, prompt, answer extraction and metric."""

    name: str
    summary: str
    kind: Kind
    """`generate`: text scored by `score`; `choice`: by log-likelihood; `text`: bits per byte;
    `divergence`: KL from the untouched model, of texts and of answers to questions."""
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
    judge: Callable[[str, Example], Verdict] | None = None
    """In place of `score`, where more of the example decides than its gold answer."""
    answer_format: Callable[[str], str] = str
    """A bare answer in the stated format, for the trivial arm of a `generate` task."""
    rule: str = "choice with the highest log-likelihood per byte"
    """How the accuracy is decided, in words."""
    states_format: bool = True
    """Whether its references are right strictly. Where a solution is taught that only ends in the answer, they are not,
    and the strict rule says nothing of an arm."""
    classes: tuple[str, ...] = ()
    """The labels of a classification; with them, macro-F1 stands beside accuracy."""
    max_new_tokens: int = 0
    system: str = ""
    """A system message in front of every conversation; in front of a plain prompt where there is no chat template."""
    stops: tuple[str, ...] = ("\nQuestion:",)
    """Where a base model, prompted plainly, goes on to another question of its own."""
    layout: Layout = PLAIN
    chat_only: bool = False
    """Of a retention task: whether only models that are prompted through a chat template are asked."""
    carved: bool = False
    """Whether test was cut from train, for want of a test set."""
    hub: HubData | None = None
    """The data set of the Hub that it reads, where it reads one."""
    version: int = 1
    """Raised when a change can move a number."""
    siblings: frozenset[str] = frozenset()
    """Tasks too close to this one to count as general ability when it is the target."""

    @property
    def converses(self) -> bool:
        """Whether it is put through the chat template of a model that has one."""
        return self.kind in ("generate", "divergence")

    def verdict(self, text: str, example: Example) -> Verdict:
        """What an answer to an example of a `generate` task says, and how it scores."""
        if self.judge is not None:
            return self.judge(text, example)
        assert self.score is not None
        return self.score(text, example.gold)

    def is_near(self, name: str) -> bool:
        """Whether a task is this one or a sibling, lm-evaluation-harness's own of that name included."""
        return name == self.name or name.removeprefix(LM_EVAL) in (self.name.removeprefix(LM_EVAL), *self.siblings)


LM_EVAL = "lm_eval:"
"""In front of the name of a task of lm-evaluation-harness."""

task = Registry("task", "finetrap.tasks", Task)


def get_task(name: str, data_dir: Path | None = None) -> Task:
    """The task called `name`; one that reads a Hub data set may find it below `data_dir`.

    Raises:
        StudyError: there is none; the message names the nearest.
    """
    if name.startswith(LM_EVAL):
        from finetrap.lm_eval_tasks import harness_task

        return harness_task(name)
    return _made(task[name], name, data_dir, task.plugin_of(name))


@lru_cache(maxsize=64)
def _made(make: Callable[..., Task], name: str, data_dir: Path | None, plugin: Plugin | None) -> Task:
    """Made once for each function that makes it, so that what is computed of a task is computed once."""
    takes_folder = "data_dir" in inspect.signature(make).parameters
    made = task.make(name, data_dir) if takes_folder else task.make(name)
    # A plugin's version changes with its file.
    return made if plugin is None else replace(made, version=int(plugin.digest[:8], 16))


def packaged_rows(name: str, split: Split) -> list[dict[str, Any]]:
    """The rows of a data set that finetrap carries (`datasets/NAME/SPLIT.jsonl.gz`)."""
    path = files("finetrap").joinpath("datasets", name, f"{split}.jsonl.gz")
    if not path.is_file():
        raise StudyError(f"task '{name}' has no {split} split; use a task that has one (`finetrap tasks`).")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
