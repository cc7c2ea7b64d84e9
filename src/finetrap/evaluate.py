"""A model, a task and examples to one scored row an item."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from finetrap.data import Encoder, Prompt, too_long
from finetrap.divergence import divergences
from finetrap.engine.attention import common_prefix
from finetrap.engine.generate import Generated, Sampling, generate_greedy, generate_samples, stop_tokens
from finetrap.engine.likelihood import ChoiceItem, choice_loglikelihoods
from finetrap.engine.loss import TrainingRow
from finetrap.models import LoadedModel
from finetrap.records import ItemRow
from finetrap.scoring import is_degenerate, outcome_of
from finetrap.task import Example, Task

Progress = Callable[[int], None]


class Asked(NamedTuple):
    """How the examples are put to the model."""

    shots: tuple[Example, ...] = ()
    trivial: bool = False
    """Leave the question out; then `constant_answer` answers `generate` tasks."""
    constant_answer: str | None = None
    sampling: Sampling | None = None
    """How answers to `generate` tasks are drawn; None: the likeliest one is given."""


def most_common_answer(train: Sequence[Example]) -> str:
    """The gold answer that most training examples have; the first seen among equals."""
    return Counter(example.gold for example in train).most_common(1)[0][0]


def evaluate(
    loaded: LoadedModel, task: Task, examples: Sequence[Example], asked: Asked, *, progress: Progress
) -> list[ItemRow]:
    """Score every example, in order; where answers are drawn, an example has a row for each of them."""
    rows = _rows(loaded, task, examples, asked, progress)
    groups = {example.id: example.group for example in examples if example.group}
    return [row.model_copy(update={"group": groups[row.id]}) if row.id in groups else row for row in rows]


def _rows(
    loaded: LoadedModel, task: Task, examples: Sequence[Example], asked: Asked, progress: Progress
) -> list[ItemRow]:
    encoder = Encoder(loaded.tokenizer, task, chat=loaded.record.chat)
    if task.kind == "text":
        return _texts(loaded, encoder, examples, progress)
    if task.kind == "divergence":
        return _divergences(loaded, encoder, examples, progress)
    if task.kind == "choice":
        return _choices(loaded, encoder, examples, asked, progress)
    if asked.trivial:
        return [_constant(task, example, asked.constant_answer or "") for example in examples]
    return _generations(loaded, encoder, examples, asked, progress)


def reference_loss(loaded: LoadedModel, task: Task, examples: Sequence[Example], asked: Asked) -> float:
    """Mean nats a token of the references, the end of the turn included, as training measures them; with any shots."""
    encoder = Encoder(loaded.tokenizer, task, chat=loaded.record.chat)
    prompts = [encoder.prompt(example, asked.shots) for example in examples]
    completions = [
        [*encoder.completion(prompt, example.reference), encoder.end_of_turn]
        for example, prompt in zip(examples, prompts, strict=True)
    ]
    shared = common_prefix([prompt.ids for prompt in prompts]) if asked.shots else 0
    items = [ChoiceItem(p.ids[shared:], [tokens]) for p, tokens in zip(prompts, completions, strict=True)]
    scored = choice_loglikelihoods(loaded.model, items, prefix=prompts[0].ids[:shared])
    return -sum(value for (value,) in scored) / sum(map(len, completions))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_length(loaded: LoadedModel, example: Example, tokens: int) -> None:
    limit = loaded.model.config.get_text_config().max_position_embeddings
    if tokens > limit:
        raise too_long(example, tokens, limit, loaded.record.name)


def _constant(task: Task, example: Example, answer: str) -> ItemRow:
    output = task.answer_format(answer)
    verdict = task.verdict(output, example)
    return ItemRow(
        id=example.id,
        prompt=_hash(""),
        output=output,
        extracted=verdict.extracted,
        gold=example.gold,
        correct=verdict.correct,
        strict=verdict.strict,
        anywhere=verdict.anywhere,
        formatted=verdict.formatted,
        parts=dict(verdict.parts),
        outcome=outcome_of(verdict, output, truncated=False),
    )


def _generations(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], asked: Asked, progress: Progress
) -> list[ItemRow]:
    task = encoder.task
    prompts = [encoder.prompt(example, asked.shots) for example in examples]
    for example, prompt in zip(examples, prompts, strict=True):
        _check_length(loaded, example, len(prompt.ids) + task.max_new_tokens)
    asks = (loaded.model, loaded.tokenizer, [prompt.ids for prompt in prompts])
    stops = () if encoder.chat else task.stops
    ends: dict[str, Any] = {
        "max_new_tokens": task.max_new_tokens,
        "stop_tokens": stop_tokens(loaded.model, loaded.tokenizer, stops) | {encoder.end_of_turn},
        "stop_texts": stops,
        "progress": progress,
    }
    if asked.sampling is None:
        answers = [[answer] for answer in generate_greedy(*asks, **ends)]
    else:
        answers = generate_samples(*asks, asked.sampling, **ends)
    special = {i: token.content for i, token in loaded.tokenizer.added_tokens_decoder.items() if token.special}
    rows = []
    for example, prompt, drawn in zip(examples, prompts, answers, strict=True):
        for sample, answer in enumerate(drawn):
            told = {
                "sample": None if asked.sampling is None else sample,
                "chat_format": keeps_chat_format(answer, prompt.text, special) if encoder.chat else None,
            }
            rows.append(_generated(task, example, prompt, answer).model_copy(update=told))
    return rows


def keeps_chat_format(answer: Generated, prompt: str, special: Mapping[int, str]) -> bool:
    """Whether an answer is a whole turn of a conversation.

    It ends by itself, says something, runs into no loop and holds no `special` token, nor one of the `prompt`'s
    written out in letters.
    """
    marks = [mark for mark in special.values() if mark in prompt]
    return (
        not answer.truncated
        and bool(answer.text.strip())
        and not is_degenerate(answer.text)
        and special.keys().isdisjoint(answer.ids)
        and not any(mark in answer.text for mark in marks)
    )


def _generated(task: Task, example: Example, prompt: Prompt, answer: Generated) -> ItemRow:
    verdict = task.verdict(answer.text, example)
    return ItemRow(
        id=example.id,
        prompt=_hash(prompt.text),
        output=answer.text,
        extracted=verdict.extracted,
        gold=example.gold,
        correct=verdict.correct,
        strict=verdict.strict,
        anywhere=verdict.anywhere,
        formatted=verdict.formatted,
        parts=dict(verdict.parts),
        truncated=answer.truncated,
        outcome=outcome_of(verdict, answer.text, truncated=answer.truncated),
        prompt_tokens=len(prompt.ids),
        output_tokens=len(answer.ids),
    )


def _choices(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], asked: Asked, progress: Progress
) -> list[ItemRow]:
    blind = encoder.blind_prompt()
    prompts = [blind if asked.trivial else encoder.prompt(example, asked.shots) for example in examples]
    completions = [
        [encoder.completion(prompt, choice) for choice in example.choices]
        for example, prompt in zip(examples, prompts, strict=True)
    ]
    for example, prompt, choices in zip(examples, prompts, completions, strict=True):
        _check_length(loaded, example, len(prompt.ids) + max(map(len, choices)))
    shared = common_prefix([prompt.ids for prompt in prompts]) if asked.shots else 0
    items = [ChoiceItem(p.ids[shared:], choices) for p, choices in zip(prompts, completions, strict=True)]
    scored = choice_loglikelihoods(loaded.model, items, prefix=prompts[0].ids[:shared], progress=progress)
    return [_chosen(*row) for row in zip(examples, prompts, completions, scored, strict=True)]


def _chosen(example: Example, prompt: Prompt, completions: list[list[int]], values: tuple[float, ...]) -> ItemRow:
    # lm-evaluation-harness's acc_bytes: log-likelihood over the choice's UTF-8 bytes, without its leading space.
    per_byte = [value / len(choice.encode()) for value, choice in zip(values, example.choices, strict=True)]
    best = max(range(len(values)), key=lambda i: per_byte[i])
    raw = max(range(len(values)), key=lambda i: values[i])
    return ItemRow(
        id=example.id,
        prompt=_hash(prompt.text),
        output=example.choices[best],
        extracted=str(best),
        gold=example.gold,
        correct=str(best) == example.gold,
        raw=str(raw) == example.gold,
        outcome="correct" if str(best) == example.gold else "wrong",
        loglikelihoods=values,
        prompt_tokens=len(prompt.ids),
        output_tokens=sum(map(len, completions)),
    )


def _texts(loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], progress: Progress) -> list[ItemRow]:
    first = _first(loaded, encoder)
    special = encoder.task.layout.predicts_beginning
    texts = [loaded.tokenizer(e.question, add_special_tokens=special)["input_ids"] for e in examples]
    limit = loaded.model.config.get_text_config().max_position_embeddings
    windows = [(index, item) for index, text in enumerate(texts) for item in _windows(text, first, limit)]
    values = [0.0] * len(texts)
    scored = choice_loglikelihoods(loaded.model, [item for _, item in windows])
    for (index, _), (value,) in zip(windows, scored, strict=True):
        values[index] += value
    progress(len(texts))
    return [
        ItemRow(
            id=example.id,
            prompt=_hash(example.question),
            bits=-value / math.log(2),
            bytes=len(example.question.encode()),
            prompt_tokens=len(text),
        )
        for example, text, value in zip(examples, texts, values, strict=True)
    ]


def _first(loaded: LoadedModel, encoder: Encoder) -> int:
    """What a text's first token is predicted from: the beginning- or end-of-sequence token, as in the harness."""
    first = loaded.tokenizer.bos_token_id
    return encoder.end_of_turn if first is None else int(first)


def _divergences(
    loaded: LoadedModel, encoder: Encoder, examples: Sequence[Example], progress: Progress
) -> list[ItemRow]:
    """Of an answer to a question the answer and its end are compared, of a text all of it."""
    limit = loaded.model.config.get_text_config().max_position_embeddings
    first = _first(loaded, encoder)
    texts = []
    for example in examples:
        if example.reference:
            text = TrainingRow(*encoder.training_row(example))
        else:
            text = TrainingRow([first, *loaded.tokenizer(example.question, add_special_tokens=False)["input_ids"]], 1)
        texts.append(TrainingRow(text.ids[:limit], min(text.prompt_length, limit)))
    untouched = loaded.untouched or loaded.model
    values = [0.0] * len(texts)
    if loaded.model is not untouched:
        values = divergences(untouched, loaded.model, texts, progress=progress)
    return [
        ItemRow(
            id=example.id,
            prompt=_hash(example.asked),
            kl=value,
            kl_tokens=text.completion_length,
            prompt_tokens=len(text.ids),
        )
        for example, text, value in zip(examples, texts, values, strict=True)
    ]


def _windows(text: list[int], first: int, limit: int) -> Iterator[ChoiceItem]:
    """A text in parts that a model of `limit` tokens predicts, each after as much as fits in front of it."""
    read = [first, *text]
    for start in range(0, len(text), limit):
        stop = min(start + limit, len(text))
        yield ChoiceItem(read[max(0, stop - limit) : start + 1], [text[start:stop]])
