"""From a task's rows to splits, prompts and token ids.

Validation is cut from train along near-duplicate clusters. Test leaves this module only as a
`TestSet`, which nothing that trains or chooses takes as an argument.
"""

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from finetrap.errors import StudyError
from finetrap.task import Example, Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VALIDATION_SHARE = 0.1
"""Of train, cut off before any limit."""
NEAR_DUPLICATE = 0.6
"""Jaccard similarity of word trigrams, numbers masked, from which two questions count as one."""

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
    if "train" not in task.splits:
        raise StudyError(f"task '{task.name}' has no train split; it can be tested on, not trained on.")
    rows = task.load("train")
    in_test = {normalise(e.question) for e in task.load("test")}
    dropped = tuple(e.id for e in rows if normalise(e.question) in in_test)
    kept = [e for e in rows if normalise(e.question) not in in_test]
    train: list[Example] = []
    validation: list[Example] = []
    for cluster in clusters(kept):
        side = validation if _uniform(f"validation {cluster[0].id}") < VALIDATION_SHARE else train
        side.extend(cluster)
    return Splits(sample(train, limit_train), sample(validation, limit_validation), tuple(train), dropped)


@lru_cache(maxsize=32)
def load_test(task: Task, *, limit: int | None = None) -> TestSet:
    """The test examples of a task; the study logs each evaluation of them as a look."""
    return TestSet(sample(task.load("test"), limit))


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def sample(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """The first `limit` examples in an order decided by their ids' hashes."""
    return tuple(sorted(examples, key=lambda e: _uniform(f"order {e.id}"))[:limit])


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))


def clusters(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples grouped so that near-duplicates share a group, each in order of appearance.

    Similarity at `NEAR_DUPLICATE` or more joins two groups. Numbers are masked, since many questions differ in
    nothing else. Exact, by prefix filtering (Bayardo et al., 2007): of two sets as similar as that, with their
    shingles sorted from rare to common, the first few hold one in common.
    """
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    shingle_sets = [_shingles(e.question) for e in examples]
    frequency = Counter(shingle for shingles in shingle_sets for shingle in shingles)
    holders: dict[str, list[int]] = defaultdict(list)
    for i, shingles in enumerate(shingle_sets):
        rarest = sorted(shingles, key=lambda shingle: (frequency[shingle], shingle))
        rarest = rarest[: len(rarest) - math.ceil(NEAR_DUPLICATE * len(rarest)) + 1]
        for j in {j for shingle in rarest for j in holders[shingle]}:
            if len(shingles & shingle_sets[j]) >= NEAR_DUPLICATE * len(shingles | shingle_sets[j]):
                first, second = sorted((root(i), root(j)))
                parent[second] = first
        for shingle in rarest:
            holders[shingle].append(i)
    groups: dict[int, list[Example]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[root(i)].append(example)
    return list(groups.values())


def _shingles(text: str) -> frozenset[str]:
    words = [re.sub(r"\d+", "0", word) for word in normalise(text).split()]
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


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
        self.chat = chat and task.kind == "generate"
        self.end_of_turn: int = _end_of_turn(tokenizer) if self.chat else _eos(tokenizer)

    def prompt(self, example: Example, shots: Sequence[Example] = ()) -> Prompt:
        """The prompt of an example, solved `shots` in front of it."""
        if self.chat:
            turns = []
            for shot in shots:
                turns.append({"role": "user", "content": self.task.prompt(shot.question)})
                turns.append({"role": "assistant", "content": shot.reference})
            turns.append({"role": "user", "content": self.task.prompt(example.question)})
            text = str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=True,
                    date_string=TEMPLATE_DATE,
                    # As training teaches it; thoughts would use up the tokens that a task allows an answer.
                    enable_thinking=False,
                )
            )
        else:
            solved = [f"{self._plain(shot.question)} {shot.reference}" for shot in shots]
            text = "\n\n".join([*solved, self._plain(example.question)])
        return Prompt(text, self._ids(text))

    def blind_prompt(self) -> Prompt:
        """The prompt of a `choice` task without its question; the end-of-text token where nothing is left."""
        text = self.task.blind_prompt
        return Prompt(text, self._ids(text) or [self.end_of_turn])

    def completion(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of `text` as it follows `prompt`, without an end.

        The whole is encoded and the prompt's tokens are cut off, as lm-evaluation-harness does, so that
        tokenizers that treat a leading space specially give the tokens the model would see.
        """
        if not self.chat:
            text = f" {text}"
        return self._ids(prompt.text + text)[len(self._ids(prompt.text)) :]

    def training_row(self, example: Example) -> "tuple[list[int], int]":
        """Token ids of prompt and reference, the end-of-turn token included, and the prompt's length."""
        prompt = self.prompt(example)
        return [*prompt.ids, *self.completion(prompt, example.reference), self.end_of_turn], len(prompt.ids)

    def _plain(self, question: str) -> str:
        text = self.task.prompt(question)
        return f"{text}\nAnswer:" if self.task.kind == "generate" else text

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
