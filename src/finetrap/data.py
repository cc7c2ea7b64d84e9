"""From a task's rows to splits, prompts and token ids.

Validation is cut from train along near-duplicate clusters. Test leaves this module only as a
`TestSet`, which nothing that trains or chooses takes as an argument.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from finetrap.errors import StudyError
from finetrap.rows.duplicates import carve, normalise, sample, sample_items
from finetrap.task import Example, Split, Task, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VALIDATION_SHARE = 0.1
"""Of train, cut off before any limit."""
TEMPLATE_DATE = "26 Jul 2024"
"""What templates that write today's date write instead (Llama 3.2's own default): a prompt is the same every day."""


@dataclass(frozen=True)
class Splits:
    """What training, tuning and prompting may see."""

    train: tuple[Example, ...]
    """What is trained on and drawn for shots: a sample of `carved` where the study limits it."""
    validation: tuple[Example, ...]
    carved: tuple[Example, ...]
    """All of train that is neither validation nor dropped; the trivial arm counts its answers."""
    dropped: tuple[str, ...]
    """Ids of train rows left out because their question stands in test."""


@dataclass(frozen=True)
class TestSet:
    """What the final evaluation sees, and nothing else does."""

    examples: tuple[Example, ...]

    __test__ = False  # not a test case, whatever pytest makes of the name


@lru_cache(maxsize=8)
def load_splits(task: Task, *, limit_train: int | None = None, limit_validation: int | None = None) -> Splits:
    """Train and validation of a task; each a seeded-hash sample that a larger limit extends.

    Raises:
        StudyError: the task has no train split.
    """
    whole = _carved(task)
    return replace(
        whole, train=sample(whole.carved, limit_train), validation=sample(whole.validation, limit_validation)
    )


@lru_cache(maxsize=8)
def _carved(task: Task) -> Splits:
    """All of train and validation."""
    if "train" not in task.splits:
        raise StudyError(f"task '{task.name}' has no train split; it can be tested on, not trained on.")
    rows = task.load("train")
    in_test = {normalise(e.asked) for e in task.load("test")}
    dropped = tuple(e.id for e in rows if normalise(e.asked) in in_test)
    kept = [e for e in rows if normalise(e.asked) not in in_test]
    if not kept:
        raise StudyError(f"task '{task.name}': every question of train stands in test; nothing is left to train on.")
    train, validation = carve(kept, VALIDATION_SHARE, "validation")
    if not train:
        raise StudyError(f"task '{task.name}': its rows of train are all near-duplicates; give rows that differ more.")
    return Splits(tuple(train), tuple(validation), tuple(train), dropped)


@lru_cache(maxsize=32)
def load_test(task: Task, *, limit: int | None = None) -> TestSet:
    """The test examples of a task; the study logs each evaluation of them as a look."""
    return TestSet(sample_items(task.load("test"), limit))


def draw_shots(splits: Splits, shots: int, seed: int) -> tuple[Example, ...]:
    """Solved examples from train, the same for every model.

    Raises:
        StudyError: train has fewer than that.
    """
    if shots > len(splits.train):
        raise StudyError(f"{shots} shots asked for, but train has {len(splits.train)} examples.")
    return tuple(random.Random(seed).sample(splits.train, shots))


def sealed(task: Task) -> Task:
    """The task without its data: what training gets, so that it cannot read test."""

    def load(split: Split) -> tuple[Example, ...]:
        raise RuntimeError(f"what trains or chooses reads no data by itself, least of all {split}")

    return replace(task, load=load)


def too_long(example: Example, tokens: int, limit: int, model: str) -> StudyError:
    """The error for a prompt that, with its answer, does not fit into a model's context."""
    return StudyError(
        f"example {example.id} with its prompt and answer takes {tokens} tokens, and {model} can read {limit}; "
        f"use fewer shots (--arm few_shot:shots=2) or shorter examples."
    )


class Prompt(NamedTuple):
    """What the model is given, as text and as token ids."""

    text: str
    ids: list[int]


class Encoder:
    """Turns examples of a task into prompts and completions in a model's tokens.

    Multiple choice is always prompted plainly, as lm-evaluation-harness does; generation goes
    through the chat template where `chat` is true, shots as turns. Models that can think before they answer
    (Qwen3) are told not to.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", task: Task, *, chat: bool) -> None:
        self.tokenizer = tokenizer
        self.task = task
        self.chat = chat and task.converses
        self.end_of_turn: int = _end_of_turn(tokenizer) if self.chat else _eos(tokenizer)

    def prompt(self, example: Example, shots: Sequence[Example] = ()) -> Prompt:
        """The prompt of an example, solved `shots` in front of it."""
        text = self.text(example, shots)
        return Prompt(text, self._ids(self._context(text)))

    def text(self, example: Example, shots: Sequence[Example] = ()) -> str:
        """The prompt as text.

        Raises:
            StudyError: the model's chat template refuses the conversation.
        """
        # One system message, and in front: the conversation's own, else the task's.
        own = [turn.content for turn in example.turns if turn.role == "system"]
        if not self.chat:
            layout = self.task.layout
            solved = [f"{self._plain(shot)}{layout.answer}{shot.reference}{layout.shot}" for shot in shots]
            system = f"{self.task.system}{layout.system}" if self.task.system and not own else ""
            return "".join([system, *solved, self._plain(example)])
        turns = [Turn("system", text) for text in own or filter(None, [self.task.system])]
        for shot in shots:
            turns += [*self._turns(shot), Turn("assistant", shot.reference)]
        turns += self._turns(example)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [turn._asdict() for turn in turns],
                    tokenize=False,
                    add_generation_prompt=True,
                    date_string=TEMPLATE_DATE,
                    # As training teaches it; thoughts would use up the tokens that a task allows an answer.
                    enable_thinking=False,
                )
            )
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in turns)
            raise StudyError(
                f"the model's chat template refuses {example.id}: {error}. Its turns are {roles}; leave the system "
                f"message out, or prompt it plainly (--no-chat)."
            ) from error

    def _turns(self, example: Example) -> list[Turn]:
        said = [turn for turn in example.turns if turn.role != "system"]
        return [*said, Turn("user", self.task.prompt(example.question))]

    def blind_prompt(self) -> Prompt:
        """The prompt of a `choice` task without its question; the end-of-text token where nothing is left."""
        text = self.task.blind_prompt
        return Prompt(text, self._ids(self._context(text)) or [self.end_of_turn])

    def completion(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of `text` as it follows `prompt`, without an end.

        The whole is encoded and the prompt's tokens are cut off, as lm-evaluation-harness does, so that
        tokenizers that treat a leading space specially give the tokens the model would see.
        """
        if not self.chat:
            text = f"{self.task.layout.answer}{text}"
        return self._ids(prompt.text + text)[len(self._ids(self._context(prompt.text))) :]

    def _context(self, text: str) -> str:
        """What of a prompt stands before the tokens of a choice: the space that ends it is the choice's, as there."""
        return text.rstrip() if self.task.kind == "choice" else text

    def check_fits(self, examples: Sequence[Example], shots: Sequence[Example], *, limit: int, model: str) -> None:
        """Check that every prompt, and the answer after it, fits into a model's context of `limit` tokens.

        Raises:
            StudyError: one does not.
        """
        for example in examples:
            text, choices = self.text(example, shots), example.choices
            room = self.task.max_new_tokens or max(len(choice.encode()) for choice in choices)
            if len(text.encode()) + room < limit:
                continue  # no token is shorter than a byte
            prompt = Prompt(text, self._ids(self._context(text)))
            room = self.task.max_new_tokens or max(len(self.completion(prompt, choice)) for choice in choices)
            if len(prompt.ids) + room > limit:
                raise too_long(example, len(prompt.ids) + room, limit, model)

    def training_row(self, example: Example) -> "tuple[list[int], int]":
        """Token ids of prompt and reference, the end-of-turn token included, and the prompt's length."""
        prompt = self.prompt(example)
        return [*prompt.ids, *self.completion(prompt, example.reference), self.end_of_turn], len(prompt.ids)

    def text_row(self, text: str) -> "list[int]":
        """Token ids of a general text, read as plain text after the token that begins one, or ends one."""
        first = self.tokenizer.bos_token_id
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [_eos(self.tokenizer) if first is None else int(first), *ids]

    def _plain(self, example: Example) -> str:
        said = [f"{turn.role.capitalize()}: {turn.content}" for turn in example.turns]
        text = self.task.prompt(example.question)
        if said:
            return "\n".join([*said, f"User: {text}", "Assistant:"])
        return f"{text}{self.task.layout.cue}" if self.task.converses else text

    def _ids(self, text: str) -> list[int]:
        # A chat template writes its own special tokens; a plain prompt gets the tokenizer's, once.
        ids: list[int] = self.tokenizer(text, add_special_tokens=not self.chat)["input_ids"]
        while (
            not self.chat
            and ids
            and ids[-1] == self.tokenizer.eos_token_id
            and not text.endswith(str(self.tokenizer.eos_token))
        ):
            ids = ids[:-1]
        return ids


def _eos(tokenizer: "PreTrainedTokenizerBase") -> int:
    if tokenizer.eos_token_id is None:
        raise StudyError(
            "the model's tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json."
        )
    return int(tokenizer.eos_token_id)


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends the assistant's turn: the first special one after its content in the chat template."""
    content = "a b c"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    tail = text[text.rindex(content) + len(content) :]
    ids: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    found = [token for token in ids if token in special]
    return found[0] if found else _eos(tokenizer)
