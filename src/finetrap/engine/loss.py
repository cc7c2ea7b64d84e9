"""The loss of completion tokens: rows packed, the prompt that they share computed once, logits only where the loss is.

What bounds memory is here too: how many tokens are computed at a time, and how many of their logits exist at once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from finetrap.cost import free_memory_bytes, is_out_of_memory
from finetrap.engine import head
from finetrap.engine.attention import by_token_budget, common_prefix, logits_at, pack_causal
from finetrap.engine.blocks import KEYS_KEPT

T = TypeVar("T")

TOKENS_AT_A_TIME = 4096
"""Of a micro-batch, at most: large enough for the matrix products to run at full speed on a CPU."""
TOKENS_AT_A_TIME_CUDA = 65536
"""Likewise: a pass of a small model takes a GPU hardly longer than its launches."""
ACTIVATION_BYTES = 3 << 30
"""Of a micro-batch on a CPU, at most, by a generous count: full fine-tuning of 630M weights is to fit into 16 GB."""

LOGITS_COPIES = 4
"""Of logits that are not computed in chunks: as they are, in float32, their exponentials and their gradient."""


class _SummedCrossEntropy(torch.autograd.Function):
    """Its gradients are computed with it, chunk by chunk, so that no chunk's logits are kept or computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        trained = [ctx.needs_input_grad[i] for i in range(3)]
        d_hidden = torch.empty_like(hidden) if trained[0] else None
        # Many chunks add up here; in bfloat16 the later ones would be lost.
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if trained[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and trained[2] else None
        total = hidden.new_zeros((), dtype=torch.float32)
        size = max(1, head.LOGITS_AT_A_TIME // len(weight))
        for start in range(0, len(targets), size):
            part, wanted = hidden[start : start + size], targets[start : start + size]
            logits = linear(part, weight, bias).float()
            relative, mass, behind = head.exponentials(logits, wanted, logits.amax(dim=-1, keepdim=True))
            total += (mass.log() + behind).sum()
            if not any(trained):
                continue
            d_logits = relative.div_(mass).scatter_add_(1, wanted[:, None], mass.new_full(mass.shape, -1.0))
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0)
            d_logits = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[start : start + size])
            if d_weight is not None:
                d_weight += d_logits.T @ part
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if part is None else (part * gradient).to(ctx.dtype) for part in ctx.saved_tensors]
        return (*scaled, None)


class TrainingRow(NamedTuple):
    """A sequence to learn from."""

    ids: list[int]
    """Prompt, completion and end-of-turn token."""
    prompt_length: int
    """Tokens at the beginning that carry no loss."""

    @property
    def completion_length(self) -> int:
        """Tokens that carry loss."""
        return len(self.ids) - self.prompt_length


class CompletionLoss:
    """The loss of a model on training rows, in micro-batches that fit into memory; within `packed_attention_on`."""

    def __init__(self, model: torch.nn.Module, *, reserved_bytes: int = 0) -> None:
        """`reserved_bytes`: of the free memory, what something else is going to need."""
        self.model = model
        self.head = head.Head(model)
        self.device: torch.device = self.head.causal.device
        free = free_memory_bytes(str(self.device)) - reserved_bytes
        cuda = self.device.type == "cuda"
        bytes_at_a_time, most = (free // 2, TOKENS_AT_A_TIME_CUDA) if cuda else (ACTIVATION_BYTES, TOKENS_AT_A_TIME)
        # Where logits are changed after the head, all of a micro-batch exist at once.
        logits = 0 if self.head.is_plain else LOGITS_COPIES * 4 * len(self.head.layer.weight)
        fitting = min(bytes_at_a_time, free // 2) // (_activation_bytes_a_token(self.head.causal) + logits)
        self.tokens_at_a_time = max(1, min(most, fitting))

    def backward(self, batch: Sequence[TrainingRow], *, forget: Callable[[], None]) -> float:
        """Add up the gradients of a batch's mean loss a completion token, and return it.

        What does not fit into memory is tried again from the start with half the tokens at a time, after `forget` has
        dropped the gradients of the attempt: the arithmetic is the same.
        """
        count = sum(row.completion_length for row in batch)

        def attempt() -> float:
            forget()
            total = 0.0
            for part in self._micro_batches(batch):
                loss = self.summed(part) / count
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            return total

        return self._within_memory(attempt, batch)

    @torch.no_grad()
    def mean(self, rows: Sequence[TrainingRow]) -> float:
        """Mean nats a completion token."""
        count = sum(row.completion_length for row in rows)
        return self._within_memory(lambda: sum(self.summed(p).item() for p in self._micro_batches(rows)) / count, rows)

    def summed(self, rows: Sequence[TrainingRow]) -> Float[Tensor, ""]:
        """Nats of the completion tokens of some rows in all, one packed pass."""
        device = self.device
        # A chat template's system message, above all: computed once, its gradient that of all rows.
        # The kernels of a GPU take whole sequences, and save more than that.
        shares = len(rows) > 1 and device.type != "cuda"
        prefix = common_prefix([row.ids[: row.prompt_length] for row in rows]) if shares else 0
        packed = pack_causal([row.ids for row in rows], device, prefix=prefix)
        predicting: list[int] = []
        targets: list[int] = []
        for span, row in zip(packed.spans[-len(rows) :], rows, strict=True):
            predicting.extend(range(span.stop - 1 - row.completion_length, span.stop - 1))
            targets.extend(row.ids[row.prompt_length :])
        positions, wanted = torch.tensor(predicting, device=device), torch.tensor(targets, device=device)
        if not self.head.is_plain:
            return head.token_losses(logits_at(self.model, packed, positions), wanted).sum()
        hidden, layer = self.head.hidden(packed)[positions], self.head.layer
        weight, bias = layer.weight, layer.bias
        if not torch.is_grad_enabled():  # the function below cannot know: within it, no gradient is ever recorded
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        total: Tensor = _SummedCrossEntropy.apply(hidden, weight, bias, wanted)  # type: ignore[no-untyped-call]
        return total

    def _micro_batches(self, rows: Sequence[TrainingRow]) -> list[list[TrainingRow]]:
        lengths = [len(row.ids) for row in rows]
        # As equal as rows allow: a small rest would be computed slowly.
        equal = math.ceil(sum(lengths) / math.ceil(sum(lengths) / self.tokens_at_a_time))
        groups = by_token_budget(lengths, min(self.tokens_at_a_time, equal + max(lengths)))
        return [[rows[i] for i in group] for group in groups]

    def _within_memory(self, attempt: Callable[[], T], rows: Sequence[TrainingRow]) -> T:
        while True:
            try:
                return attempt()
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(self._micro_batches(rows)) == len(rows):
                    raise
            self.tokens_at_a_time = min(self.tokens_at_a_time, sum(len(row.ids) for row in rows)) // 2


def _activation_bytes_a_token(model: Any) -> int:
    """What a training pass keeps of a token.

    Some twenty vectors of a layer's width, six of its feed-forward's, and on a CPU the attention that is kept, as of
    rows of as many keys as are kept at most.
    """
    config = model.config.get_text_config()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    wide = max(wide) if isinstance(wide, list | tuple) else wide
    heads = 0 if model.device.type == "cuda" else getattr(config, "num_attention_heads", 0)
    kept = heads * KEYS_KEPT * 3 // 4
    return int(config.num_hidden_layers * (20 * config.hidden_size + 6 * wide + kept) * model.dtype.itemsize)
