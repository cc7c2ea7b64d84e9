"""Generated tokens against those of `model.generate`: left-padded, at the same batch size, attention sdpa and eager."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from finetrap.engine.generate import Generated, generate_greedy
from same_answers.cells import TIE, Cell, Outcome
from same_answers.subjects import ADAPTING, SMOLLM2, SPECIAL, TINY, WORDLESS, Pair, adapted, base, questions

PAD = 0
SHOTS = (0, 1, 5)
ASKED = {1: 4, 7: 16, 64: 72}
"""Prompts at each batch size: more than go at a time, so that places are used again."""
ASKED_SMOLLM2 = {1: 3, 7: 10, 64: 66}
NEW = 16


class Answer(NamedTuple):
    """What `model.generate` wrote, its padding cut off."""

    ids: list[int]
    """New tokens, without what ended them."""
    best: list[tuple[float, int]]
    """At each step the distance between the two best logits, and the second best token."""
    stopped: bool


class _Watch(LogitsProcessor):
    """Keeps the two best logits of every step, and changes none."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        top = scores.float().topk(2)
        self.values.append(top.values)
        self.tokens.append(top.indices)
        return scores


def transformers_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    rows: int,
    new: int,
    stops: Collection[int],
    attention: str = "sdpa",
) -> list[Answer]:
    """By `model.generate`, greedily, `rows` at a time."""
    model.set_attn_implementation(attention)
    answers = []
    for start in range(0, len(prompts), rows):
        group = prompts[start : start + rows]
        length = max(map(len, group))
        watch = _Watch()
        output = model.generate(
            input_ids=torch.tensor([[PAD] * (length - len(prompt)) + list(prompt) for prompt in group]),
            attention_mask=torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in group]),
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=list(stops) or None,
            pad_token_id=PAD,
            logits_processor=[watch],
        )
        gaps = torch.stack([values[:, 0] - values[:, 1] for values in watch.values], dim=1).tolist()
        seconds = torch.stack([tokens[:, 1] for tokens in watch.tokens], dim=1).tolist()
        for row, ids in enumerate(output[:, length:].tolist()):
            end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
            best = list(zip(gaps[row], seconds[row], strict=True))
            answers.append(Answer(ids[:end], best, stopped=end < len(ids)))
    return answers


def compare(
    ours: Sequence[Generated], theirs: Sequence[Answer], *, stops: Collection[int], new: int
) -> tuple[Outcome, list[int]]:
    """How far answers lie apart, and which of them are the same to the end.

    A token may differ where the reference's two best lie within `TIE`, and is then the second of them; what follows
    it is another answer, and is not compared.
    """
    differing: list[str] = []
    same: list[int] = []
    worst, tokens = 0.0, 0
    for index, (mine, answer) in enumerate(zip(ours, theirs, strict=True)):
        ended = [*mine.ids, *([] if mine.truncated else [-1])]
        expected = [*answer.ids, *([-1] if answer.stopped else [])]
        step = next((i for i, (a, b) in enumerate(zip(ended, expected, strict=False)) if a != b), None)
        tokens += len(answer.ids)
        if step is None:
            if len(ended) == len(expected) and len(mine.ids) <= new:
                same.append(index)
            else:
                differing.append(f"item {index}: {mine.ids} instead of {answer.ids}")
            continue
        gap, second = answer.best[step]
        worst = max(worst, gap)
        chosen_second = ended[step] == second or (ended[step] == -1 and second in stops)
        if gap >= TIE or not chosen_second:
            differing.append(f"item {index}, token {step}: {ended[step]} instead of {expected[step]}, gap {gap:.2g}")
    outcome = Outcome(len(ours), tokens, len(differing), worst, None, not differing, "; ".join(differing[:3]))
    return outcome, same


def same_tokens(
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    rows: int,
    new: int,
    stops: Collection[int],
    attentions: Sequence[str] = ("sdpa", "eager"),
) -> Outcome:
    """Tokens, whether the limit ended them, and the text that they are."""
    ours = generate_greedy(pair.ours, tokenizer, prompts, max_new_tokens=new, stop_tokens=stops, rows_at_a_time=rows)
    outcomes = []
    for attention in attentions:
        theirs = transformers_answers(pair.reference, prompts, rows=rows, new=new, stops=stops, attention=attention)
        outcome, same = compare(ours, theirs, stops=stops, new=new)
        texts = [i for i in same if ours[i].text != tokenizer.decode(theirs[i].ids, skip_special_tokens=True)]
        said = f"attention {attention}: {outcome.says}" if outcome.says else ""
        said += f" texts of items {texts} are not their tokens'" if texts else ""
        differing = outcome.differing + len(texts)
        outcomes.append(outcome._replace(differing=differing, passed=differing == 0, says=said))
    worst = max(outcomes, key=lambda outcome: (outcome.differing, outcome.worst_gap))
    return worst if len(prompts) else worst._replace(passed=False, says="nothing was compared")


def _stops(model: str) -> set[int]:
    """Tokens that end answers early and at different steps, so that rows leave the batch and others come in."""
    if model != SMOLLM2:
        return set(range(0, 256, 16))
    tokenizer = base(model).tokenizer
    return {*tokenizer("<|im_end|>")["input_ids"], *tokenizer(".")["input_ids"]}


def _asked(model: str, method: str, adapter: str | None, rows: int, shots: int) -> Outcome:
    loaded = base(model)
    real = model == SMOLLM2
    count = (ASKED_SMOLLM2 if real else ASKED)[rows]
    return same_tokens(
        adapted(model, method, merged=adapter == "merged"),
        loaded.tokenizer,
        questions(loaded, count, shots),
        rows=rows,
        new=10 if real and rows == 64 else 24 if real else NEW,
        stops=_stops(model),
        attentions=("sdpa",) if real and rows > 1 else ("sdpa", "eager"),
    )


# --- prompts that a task would not give ------------------------------------------------------------------------------


def _random(count: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (lengths[i % len(lengths)],), generator=generator).tolist() for i in range(count)]


def _within_each_other() -> list[list[int]]:
    (whole,) = _random(1, [40])
    return [whole[:length] for length in (40, 1, 17, 39, 8, 9, 40, 16)]


ODD_PROMPTS: dict[str, Callable[[], list[list[int]]]] = {
    "no common prefix, of 1 to 60 tokens": lambda: _random(24, [1, 60, 7, 8, 9, 33, 2, 17]),
    "no common prefix, one of 700 tokens among short ones": lambda: _random(12, [5, 9, 700, 3]),
    "a common prefix of 1 token": lambda: [[65, *p] for p in _random(12, [1, 20, 8])],
    "a common prefix of 8 tokens": lambda: [[*range(65, 73), *p] for p in _random(12, [1, 20, 8])],
    "a common prefix of 600 tokens, 1 to 60 follow": lambda: [
        [*_random(1, [600], 1)[0], *p] for p in _random(24, [1, 60, 7, 8, 9, 33, 2, 17])
    ],
    "all the same": lambda: _random(1, [30]) * 9,
    "one begins as the other ends": _within_each_other,
    "one token each": lambda: [[token] for token in range(0, 250, 19)],
    "only one": lambda: _random(1, [50]),
}


def _odd(model: str, prompts: Callable[[], list[list[int]]], rows: int, stops: Collection[int]) -> Outcome:
    pair, tokenizer = adapted(model, "none", merged=False), base(model).tokenizer
    return same_tokens(pair, tokenizer, prompts(), rows=rows, new=NEW, stops=stops)


def _texts_in(answers: Sequence[str]) -> list[str]:
    """Out of the midst of every second answer one to three characters, and a text that stands in none."""
    texts = {"\nQuestion:"}
    for index, text in enumerate(answers[::2]):
        pieces = [text[i : i + size] for size in (1 + index % 3, 1) for i in range(len(text) // 3, len(text) - size)]
        texts.update([piece for piece in pieces if piece.isascii() and piece.isprintable()][:1])
    return sorted(texts)


def _stop_texts(model: str, rows: int) -> Outcome:
    """Against a free run of `model.generate`, decoded token by token until one of the texts stands in it."""
    loaded, pair = base(model), adapted(model, "none", merged=False)
    tokenizer, prompts, new = loaded.tokenizer, questions(loaded, 20, 1), 40
    theirs = transformers_answers(pair.reference, prompts, rows=rows, new=new, stops=())
    texts = _texts_in([str(tokenizer.decode(answer.ids)) for answer in theirs])
    ours = generate_greedy(
        pair.ours, tokenizer, prompts, max_new_tokens=new, stop_tokens=(), stop_texts=texts, rows_at_a_time=rows
    )
    differing, tokens, cut, worst = [], 0, 0, 0.0
    for index, (mine, answer) in enumerate(zip(ours, theirs, strict=True)):
        lengths = range(1, len(answer.ids) + 1)
        # As lm-evaluation-harness does: what a special token reads as can end an answer, and is no part of its text.
        whole = {length: str(tokenizer.decode(answer.ids[:length])) for length in lengths}
        end = next((n for n, text in whole.items() if any(stop in text for stop in texts)), None)
        text = str(tokenizer.decode(answer.ids[: end or new], skip_special_tokens=True))
        text = text[: min((text.index(stop) for stop in texts if stop in text), default=len(text))]
        tokens += end or new
        cut += end is not None
        if (mine.ids, mine.text, mine.truncated) == (answer.ids[: end or new], text, end is None):
            continue
        step = next((i for i, (a, b) in enumerate(zip(mine.ids, answer.ids, strict=False)) if a != b), None)
        gap, second = answer.best[step] if step is not None else (float("inf"), -1)
        worst = max(worst, gap)
        if step is None or gap >= TIE or mine.ids[step] != second:
            differing.append(f"item {index}: {mine.text!r} instead of {text!r}")
    if cut < 5:
        differing.append(f"no more than {cut} answers were cut: nothing was tested")
    return Outcome(len(ours), tokens, len(differing), worst, None, not differing, "; ".join(differing[:3]))


def cells(models: Sequence[str]) -> Iterator[Cell]:
    """Every model, adapter, batch size and number of shots; then the odd prompts."""
    for model in models:
        adapters = [("none", None), *((method, "merged") for method in ADAPTING)]
        adapters += [(method, "in place") for method in ("lora", "dora")]
        if model in SPECIAL:
            adapters = [("none", None), ("dora", "merged")]
        for method, adapter in adapters:
            for rows in ASKED:
                for shots in SHOTS:
                    if model == SMOLLM2 and adapter == "in place" and rows != 7:
                        continue
                    compute = partial(_asked, model, method, adapter, rows, shots)
                    yield Cell("generated tokens", model, method, compute, rows, shots, adapter)
        if model in TINY:
            for name, prompts in ODD_PROMPTS.items():
                compute = partial(_odd, model, prompts, 5, _stops(model))
                yield Cell(f"generated tokens, prompts: {name}", model, "none", compute, 5)
            everything = partial(_odd, model, ODD_PROMPTS["only one"], 5, range(base(model).model.config.vocab_size))
            yield Cell("generated tokens, the first one ends it", model, "none", everything, 5)
        if model != WORDLESS:
            yield Cell("stop texts", model, "none", partial(_stop_texts, model, 7), 7)
