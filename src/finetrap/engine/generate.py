"""Decoding: a shared prefix once, longest prompts first, and a waiting one in the place of each that is done."""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
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


class _Answer(NamedTuple):
    prompt: int
    sample: int


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
    new: dict[_Answer, list[int]] = {}
    results: list[dict[int, Generated]] = [{} for _ in prompts]
    alive: list[_Answer] = []
    with decoding_attention_on(model):
        rows.read_prefix(prompts[0][:shared])
        logits = torch.empty(0, 0)
        while waiting or alive:
            chosen = choose(logits, alive, new) if alive else []
            free = rows.rows - len(alive)
            places = free // samples if free >= rows.rows * REFILL or not alive else 0
            started = [waiting.popleft() for _ in range(min(places, len(waiting)))]
            new |= {_Answer(prompt, sample): [] for prompt in started for sample in range(samples)}
            for part in by_token_budget([len(prompts[i]) - shared for i in started], limits.tokens):
                read = [started[i] for i in part]
                begun = [_Answer(prompt, sample) for prompt in read for sample in range(samples)]
                chosen += choose(rows.read([prompts[i][shared:] for i in read], copies=samples), begun, new)
                alive += begun
            ended = set()
            for row, (answer, token) in enumerate(zip(alive, chosen, strict=True)):
                done = _finish(tokenizer, new[answer], token, stop)
                if done is not None:
                    ended.add(row)
                    results[answer.prompt][answer.sample] = done
            if ended:
                progress(sum(len(results[i]) == samples for i in {alive[row].prompt for row in ended}))
                order = rows.drop(ended)
                alive, chosen = [alive[row] for row in order], [chosen[row] for row in order]
            if alive:
                logits = rows.step(torch.tensor(chosen, device=model.device))
    return [[of_prompt[sample] for sample in range(samples)] for of_prompt in results]


class _Chooser:
    """The next token of every row."""

    def __init__(self, sampling: Sampling | None, limit: int) -> None:
        self._sampling = sampling
        self._limit = limit
        self._draws: dict[_Answer, np.ndarray] = {}

    def __call__(
        self,
        logits: Float[Tensor, "rows vocabulary"],
        answers: Sequence[_Answer],
        new: Mapping[_Answer, Sequence[int]],
    ) -> list[int]:
        """By what each of the answers has so far."""
        if self._sampling is None:
            return list(likeliest(logits)[1].tolist())
        # Inversion: a number in [0, 1) an answer and step, whatever rows stand beside it.
        drawn = [self._draws_of(answer)[len(new[answer])] for answer in answers]
        shares = (logits.float() / self._sampling.temperature).softmax(dim=-1)
        # In float64, which not every device has.
        up_to = shares.cpu().cumsum(dim=-1, dtype=torch.float64)
        wanted = torch.tensor(drawn, dtype=torch.float64)[:, None] * up_to[:, -1:]
        return list(torch.searchsorted(up_to, wanted, right=True)[:, 0].tolist())

    def _draws_of(self, answer: _Answer) -> np.ndarray:
        if answer not in self._draws:
            assert self._sampling is not None
            self._draws[answer] = np.random.default_rng((self._sampling.seed, *answer)).random(self._limit)
        return self._draws[answer]


def _bytes_a_token(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def _finish(tokenizer: PreTrainedTokenizerBase, new: list[int], token: int, stop: _Stop) -> Generated | None:
    """Add `token` to the `new` ones; the answer if that ends it."""
    if token in stop.tokens:
        return Generated(new, str(tokenizer.decode(new, skip_special_tokens=True)), truncated=False)
    new.append(token)
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
