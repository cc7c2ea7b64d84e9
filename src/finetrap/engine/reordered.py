"""Weights of linear layers in oneDNN's own order, made once where they do not change.

It would else be made within every product, which costs most where rows are few, and keeps products of thousands of rows
some percent slower. Only for bfloat16 on a CPU that has instructions for it; what is reordered stands in memory twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

TYPICAL_ROWS = 32
"""For which oneDNN chooses the order; the one for thousands of rows is hardly another."""


class Frozen:
    """Products with a weight, or its transpose, that hardly ever changes: where it does, it is reordered again."""

    def __init__(self, weight: Float[Tensor, "out in"], *, transposed: bool = False) -> None:
        self._weight = weight
        self._transposed = transposed
        self._reordered_of: tuple[int, int] | None = None
        """Where the reordered weight lay, and how often it had been written to."""

    def __call__(self, rows: Float[Tensor, "*rows in"], bias: Tensor | None = None) -> Float[Tensor, "*rows out"]:
        """Rows W^T + bias, or rows W + bias for the transpose, without a gradient."""
        weight = self._weight.detach().T if self._transposed else self._weight.detach()
        if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not _can_reorder():
            return linear(rows, weight, bias)
        state = (weight.data_ptr(), self._weight._version)
        if state != self._reordered_of:
            self._reordered = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
            self._reordered_of = state
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._reordered, bias, "none", [], "")
        return product


@cache
def _can_reorder() -> bool:
    """Whether oneDNN is there, and finds instructions for bfloat16."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=torch.bfloat16), TYPICAL_ROWS)
    except (RuntimeError, AttributeError):
        return False
    return True


@contextmanager
def reordered_weights(model: torch.nn.Module) -> Iterator[None]:
    """Within it, the linear layers of `model` compute with reordered weights, and without a gradient."""
    linears = [module for module in model.modules() if type(module) is torch.nn.Linear]
    try:
        for module in linears:
            module.forward = partial(Frozen(module.weight), bias=module.bias)  # type: ignore[method-assign]
        yield
    finally:
        for module in linears:
            module.__dict__.pop("forward", None)
