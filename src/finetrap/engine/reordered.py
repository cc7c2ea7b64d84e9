"""Weights of linear layers in oneDNN's own order, made once where they do not change.

Products of few rows gain most by it: in bfloat16 the order would else be made within each of them, and in float32
another library computes them, at half the speed where the head of a vocabulary is. Products of thousands of rows gain
little. Only on a CPU, in bfloat16 on one that has instructions for it, and in float32 where memory is ample: what is
reordered stands in memory twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from finetrap.cost import free_memory_bytes

TYPICAL_ROWS = 32
"""For which oneDNN chooses the order; the one for thousands of rows is hardly another."""


class Frozen:
    """Products with a weight that hardly ever changes: where it does, it is reordered again."""

    def __init__(self, weight: Float[Tensor, "out in"], *, in_float32: bool = False) -> None:
        """`in_float32`: reorder float32 weights too, which gives thousands of rows little for the memory."""
        self._weight = weight
        self._reorders = (torch.bfloat16, torch.float32) if in_float32 else (torch.bfloat16,)
        self._reordered_of: tuple[int, int] | None = None
        """Where the reordered weight lay, and how often it had been written to."""

    def __call__(self, rows: Float[Tensor, "*rows in"], bias: Tensor | None = None) -> Float[Tensor, "*rows out"]:
        """Rows W^T + bias, without a gradient."""
        weight = self._weight.detach()
        if weight.device.type != "cpu" or weight.dtype not in self._reorders or not _can_reorder(weight.dtype):
            return linear(rows, weight, bias)
        state = (weight.data_ptr(), self._weight._version)
        if state != self._reordered_of:
            self._reordered = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
            self._reordered_of = state
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._reordered, bias, "none", [], "")
        return product


@cache
def _can_reorder(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, and finds instructions for this precision."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), TYPICAL_ROWS)
    except (RuntimeError, AttributeError):
        return False
    return True


@contextmanager
def reordered_weights(model: torch.nn.Module) -> Iterator[None]:
    """Within it, the linear layers of `model` compute with reordered weights, and without a gradient."""
    linears = [module for module in model.modules() if type(module) is torch.nn.Linear]
    twice = sum(module.weight.numel() * module.weight.itemsize for module in linears)
    ample = twice <= free_memory_bytes("cpu") // 4
    try:
        for module in linears:
            module.forward = partial(Frozen(module.weight, in_float32=ample), bias=module.bias)  # type: ignore[method-assign]
        yield
    finally:
        for module in linears:
            module.__dict__.pop("forward", None)
