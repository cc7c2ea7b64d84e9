"""Decoding: a shared prefix once, longest prompts first, and a waiting one in the place of each that is done.

Likeliest tokens are drafted where that costs less than it saves (`finetrap.engine.lookup`): the model computes an
answer's last token and its draft in one step, and those of the draft stand that it would have written itself.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetrap.cost import free_memory_bytes
from finetrap.engine.attention import by_token_budget, common_prefix
from finetrap.engine.decoding import Rows, decoding_attention_on
from finetrap.engine.head import likeliest
from finetrap.engine.lookup import Lookup


class Limits(NamedTuple):
    """How much is computed at a time."""

    rows: int
    """Answers that are written side by side."""
    cache_bytes: int
    """Of keys and values, at most, and no more than a quarter of the free memory; it bounds the rows."""
    tokens: int
    """Of prompts that are read in one pass."""


LIMITS = {"cpu": Limits(128, 2 << 30, 4096), "cuda": Limits(2048, 32 << 30, 32768)}
"""By the kind of device; any other takes the CPU's. A step of a small model costs a GPU its launches, whatever the
rows."""
REFILL = 1 / 8
"""Share of the rows that are to be free before waiting prompts are read: a few together cost less than one by one."""

DRAFTING = {torch.float32: 16, torch.bfloat16: 64}
"""Tokens of a step on a CPU up to which answers have drafts, by precision: beyond, a step takes twice as long for twice
the tokens."""

Progress = Callable[[int], None]
"""Is told how many more prompts have their answers."""


class Generated(NamedTuple):
    """One answer."""

    ids: list[int]
    """New tokens, without what ended them."""
    text: str
    """Decoded, cut before the first stop text, special tokens left out."""
    truncated: bool
    """Whether the limit of new tokens ended it."""


class Sampling(NamedTuple):
    """Answers that are drawn, not the likeliest one."""

    samples: int
    """Of each prompt."""
    temperature: float = 1.0
    """By which logits are divided before the softmax."""
    seed: int = 0
    """Decides with a prompt's place what is drawn."""


class _Answer:
    """One that is being written."""

    def __init__(self, prompt: int, sample: int, lookup: Lookup | None) -> None:
        """`lookup`: what its prompt says, to draft from; None for no drafts."""
        self.prompt = prompt
        self.sample = sample
        self.new: list[int] = []
        self.fed: list[int] = []
        """Its last token and a draft of what follows, which the model is given next."""
        self._lookup = lookup

    def add(self, token: int) -> None:
        """Go on by a token."""
        self.new.append(token)
        if self._lookup is not None:
            self._lookup.add([token])

    def feed(self, drafted: int) -> None:
        """Take the last token, and a draft of so many at most."""
        draft = self._lookup.draft(drafted) if self._lookup is not None and drafted > 0 else []
        self.fed = [self.new[-1], *draft]

    def agreed(self, chosen: Sequence[int]) -> list[int]:
        """The tokens chosen after each that was fed, up to the first that the draft does not have."""
        pairs = zip(self.fed[1:], chosen, strict=False)
        right = next((i for i, (drafted, token) in enumerate(pairs) if drafted != token), len(self.fed) - 1)
        return list(chosen[: right + 1])


class _Stop(NamedTuple):
    tokens: frozenset[int]
    texts: tuple[str, ...]
    limit: int

    @property
    def window(self) -> int:
        """Tokens at the end of an answer in which a stop text can have become whole: each is a byte at least."""
        return max([16, *(len(text.encode()) for text in self.texts)])


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str] = ()) -> set[int]:
    """The tokens that end an answer: the model's, the tokenizer's, and those of `texts` that are one token."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ends = configured if isinstance(configured, list) else [configured]
    # A stop such as <|im_end|> is a token, and is not in the text.
    named = [token for text, token in tokenizer.get_added_vocab().items() if text in texts]
    return {int(token) for token in (*ends, tokenizer.eos_token_id, *named) if isinstance(token, int)}


def generate_greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    stop_texts: Sequence[str] = (),
    rows_at_a_time: int | None = None,
    progress: Progress = lambda done: None,
) -> list[Generated]:
    """The likeliest token at every step, until a stop token, a stop text or `max_new_tokens`."""
    stop = _Stop(frozenset(stop_tokens), tuple(stop_texts), max_new_tokens)
    answers = _generate(model, tokenizer, prompts, stop, None, rows_at_a_time, progress)
    return [answer for (answer,) in answers]


def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop_tokens: Collection[int],
    stop_texts: Sequence[str] = (),
    rows_at_a_time: int | None = None,
    progress: Progress = lambda done: None,
) -> list[list[Generated]]:
    """`sampling.samples` answers of each prompt, which is read once for all of them."""
    stop = _Stop(frozenset(stop_tokens), tuple(stop_texts), max_new_tokens)
    return _generate(model, tokenizer, prompts, stop, sampling, rows_at_a_time, progress)


@torch.no_grad()
def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    stop: _Stop,
    sampling: Sampling | None,
    rows_at_a_time: int | None,
    progress: Progress,
) -> list[list[Generated]]:
    if not prompts:
        return []
    if not all(prompts):
        raise ValueError("a prompt without a token has nothing to go on from; give it a beginning-of-sequence token.")
    samples = sampling.samples if sampling else 1
    shared = common_prefix(prompts)
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    capacity = max(map(len, prompts)) - shared + stop.limit
    limits = LIMITS.get(model.device.type, LIMITS["cpu"])
    cache_bytes = min(limits.cache_bytes, free_memory_bytes(str(model.device)) // 4)
    fitting = min(rows_at_a_time or limits.rows, cache_bytes // (_bytes_a_token(model) * capacity)) // samples
    rows = Rows(model, rows=samples * max(1, min(len(prompts), fitting)), capacity=capacity)
    choose = _Chooser(sampling, stop.limit)
    results: list[dict[int, Generated]] = [{} for _ in prompts]
    alive: list[_Answer] = []
    drafting = 0 if sampling or rows.one_a_row else DRAFTING.get(model.dtype, 0)
    # What all prompts say, the shots above all, is followed by something else too often.
    own = slice(shared if len(prompts) > 1 else 0, None)

    def begin(prompt: int, sample: int) -> _Answer:
        return _Answer(prompt, sample, Lookup(prompts[prompt][own]) if drafting else None)

    with decoding_attention_on(model):
        rows.read_prefix(prompts[0][:shared])
        logits = torch.empty(0, 0)
        while waiting or alive:
            certain = _certain(rows, choose, logits, alive) if alive else []
            free = rows.rows - len(alive)
            places = free // samples if free >= rows.rows * REFILL or not alive else 0
            started = [waiting.popleft() for _ in range(min(places, len(waiting)))]
            for part in by_token_budget([len(prompts[i]) - shared for i in started], limits.tokens):
                read = [started[i] for i in part]
                begun = [begin(prompt, sample) for prompt in read for sample in range(samples)]
                first = choose(rows.read([prompts[i][shared:] for i in read], copies=samples), begun)
                certain += [[token] for token in first]
                alive += begun
            ended = set()
            for row, (answer, tokens) in enumerate(zip(alive, certain, strict=True)):
                for token in tokens:
                    done = _finish(tokenizer, answer, token, stop)
                    if done is not None:
                        ended.add(row)
                        results[answer.prompt][answer.sample] = done
                        break
            if ended:
                progress(sum(len(results[i]) == samples for i in {alive[row].prompt for row in ended}))
                alive = [alive[row] for row in rows.drop(ended)]
            if alive:
                _feed(alive, drafting, stop.limit)
                logits = rows.step([answer.fed for answer in alive])
    return [[of_prompt[sample] for sample in range(samples)] for of_prompt in results]


def _feed(answers: Sequence[_Answer], drafting: int, limit: int) -> None:
    """Let each take what the model is given next, `drafting` tokens in all if that leaves room for drafts."""
    room = drafting - len(answers)
    for answer in answers:
        # Whatever is drafted, one token more is written.
        answer.feed(max(0, min(room, limit - len(answer.new) - 1)))
        room -= len(answer.fed) - 1


def _certain(
    rows: Rows, choose: "_Chooser", logits: Float[Tensor, "tokens vocabulary"], answers: Sequence[_Answer]
) -> list[list[int]]:
    """What each answer goes on with, one token at least; what was fed in vain is taken back."""
    chosen = choose(logits, answers)
    if len(chosen) == len(answers):  # no draft is among them
        return [[token] for token in chosen]
    in_order = iter(chosen)
    certain = [answer.agreed(list(islice(in_order, len(answer.fed)))) for answer in answers]
    vain = [len(answer.fed) - len(tokens) for answer, tokens in zip(answers, certain, strict=True)]
    if any(vain):
        rows.take_back(vain)
    return certain


class _Chooser:
    """The next tokens of every row."""

    def __init__(self, sampling: Sampling | None, limit: int) -> None:
        self._sampling = sampling
        self._limit = limit
        self._draws: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, logits: Float[Tensor, "tokens vocabulary"], answers: Sequence[_Answer]) -> list[int]:
        """What is chosen after every token; where tokens are drawn, one of each answer."""
        if self._sampling is None:
            return list(likeliest(logits)[1].tolist())
        # Inversion: a number in [0, 1) an answer and step, whatever rows stand beside it.
        drawn = [self._draws_of(answer)[len(answer.new)] for answer in answers]
        shares = (logits.float() / self._sampling.temperature).softmax(dim=-1)
        # In float64, which not every device has.
        up_to = shares.cpu().cumsum(dim=-1, dtype=torch.float64)
        wanted = torch.tensor(drawn, dtype=torch.float64)[:, None] * up_to[:, -1:]
        return list(torch.searchsorted(up_to, wanted, right=True)[:, 0].tolist())

    def _draws_of(self, answer: _Answer) -> np.ndarray:
        place = answer.prompt, answer.sample
        if place not in self._draws:
            assert self._sampling is not None
            self._draws[place] = np.random.default_rng((self._sampling.seed, *place)).random(self._limit)
        return self._draws[place]


def _bytes_a_token(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def _finish(tokenizer: PreTrainedTokenizerBase, answer: _Answer, token: int, stop: _Stop) -> Generated | None:
    """Add `token` to the answer; the answer if that ends it."""
    new = answer.new
    if token in stop.tokens:
        return Generated(new, str(tokenizer.decode(new, skip_special_tokens=True)), truncated=False)
    answer.add(token)
    if stop.texts:
        # Only the end of the answer can have completed one, and special tokens may be part of it.
        tail = str(tokenizer.decode(new[-stop.window :]))
        if any(text in tail for text in stop.texts):
            text = str(tokenizer.decode(new, skip_special_tokens=True))
            cut = min((text.index(s) for s in stop.texts if s in text), default=len(text))
            return Generated(new, text[:cut], truncated=False)
    if len(new) >= stop.limit:
        return Generated(new, str(tokenizer.decode(new, skip_special_tokens=True)), truncated=True)
    return None
