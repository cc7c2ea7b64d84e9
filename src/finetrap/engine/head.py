"""From a packed row to logits of some of its tokens, a few at a time: all at once they would be the largest tensor."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrap.engine.attention import PackedRow, logits_at, pack_causal

LOGITS_AT_A_TIME = 1 << 25
"""Tokens times vocabulary: 128 MiB of float32."""
SCORED_AT_A_TIME = 64
"""Tokens on a CPU, where their logits are looked at several times: fewer would read the head's weights too often."""

_AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Settings by which families change their logits; a mild one could pass for rounding."""


def token_losses(
    logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Nats of each target, from logits in float32.

    Not torch's cross entropy: in float32 on a CPU it loses what is unlikely beside a token that is nearly sure, and the
    gradient of such tokens is off by a thousandth.
    """
    best = logits.detach().amax(dim=-1, keepdim=True)
    mass = (logits - best).exp().sum(dim=-1)
    return mass.log() + (best - logits.gather(1, targets[:, None]))[:, 0]


class Exponentials(NamedTuple):
    """What losses and likelihoods of some tokens are made of; nats of each target are log(mass) + behind."""

    relative: Float[Tensor, "tokens vocabulary"]
    """exp(logit - best logit)."""
    mass: Float[Tensor, "tokens 1"]
    """Its sum."""
    behind: Float[Tensor, "tokens 1"]
    """The best logit less the target's."""


def likeliest(logits: Float[Tensor, "rows vocabulary"]) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The greatest, and the first token that has it: argmax is slow over a whole vocabulary on a CPU.

    By blocks, then within the best of them.
    """
    size = math.isqrt(logits.shape[1])
    whole = logits.shape[1] // size * size
    blocks = logits[:, :whole].view(len(logits), -1, size)
    greatest, block = torch.cat([blocks.amax(dim=2), logits[:, whole:]], dim=1).max(dim=1)
    rows = torch.arange(len(logits), device=logits.device)
    within = blocks[rows, block.clamp(max=blocks.shape[1] - 1)].argmax(dim=1)
    return greatest, torch.where(block < blocks.shape[1], block * size + within, whole + block - blocks.shape[1])


def exponentials(
    logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"], best: Float[Tensor, "tokens 1"]
) -> Exponentials:
    """As in `token_losses`, without a gradient and in the place of the logits: memory is what takes time here.

    `best`: each token's greatest logit.
    """
    behind = best - logits.gather(1, targets[:, None])
    relative = logits.sub_(best).exp_()
    return Exponentials(relative, relative.sum(dim=-1, keepdim=True), behind)


class Head:
    """A model's body and its head apart; within `packed_attention_on`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.layer: Any = self.causal.get_output_embeddings()
        self.is_plain = self._is_plain()
        """Whether logits are what a linear head makes of the last hidden state. Some families cap or scale them after
        it, and an adapter may sit on the head."""

    def hidden(self, row: PackedRow) -> Float[Tensor, "tokens hidden"]:
        """The last hidden states of a row."""
        states: Tensor = self.causal.get_decoder()(
            input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False, packed=row
        ).last_hidden_state
        return states[0]

    def logits(
        self, row: PackedRow, positions: Int[Tensor, " kept"], *, at_a_time: int | None = None
    ) -> Iterator[tuple[slice, Float[Tensor, "part vocabulary"]]]:
        """Logits at some positions in float32, in parts, each with the part of `positions` that it is of.

        `at_a_time`: positions of a part; by default as many as `LOGITS_AT_A_TIME` allows, on a CPU few.
        """
        fitting = max(1, LOGITS_AT_A_TIME // len(self.layer.weight))
        size = at_a_time or (min(SCORED_AT_A_TIME, fitting) if self.causal.device.type == "cpu" else fitting)
        states = self.hidden(row)[positions] if self.is_plain else logits_at(self.model, row, positions)
        for start in range(0, len(positions), size):
            part = slice(start, min(start + size, len(positions)))
            yield part, self.layer(states[part]).float() if self.is_plain else states[part]

    @torch.no_grad()
    def _is_plain(self) -> bool:
        config = self.causal.config.get_text_config()
        if type(self.layer) is not torch.nn.Linear or any(getattr(config, name, None) for name in _AFTER_THE_HEAD):
            return False
        device = self.causal.device
        row = pack_causal([list(range(8))], device)
        logits = logits_at(self.model, row, torch.arange(8, device=device))
        plain = self.layer(self.hidden(row)).float()
        # The same layer on the same states; what is left is another order of additions.
        return float((logits - plain).square().mean()) <= 1e-6 * float(logits.square().mean())
