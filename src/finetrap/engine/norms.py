"""Norms by the root mean square with a forward and backward pass of their own; modules and weights stay the model's.

Written out in tensors, as families do, a norm and its derivative read and write their rows some twenty times, and in
bfloat16 on a CPU that takes longer than a matrix product beside it. Here it is half of that.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * (weight + offset) of each row (arXiv:1910.07467, equation 4), in float32 within."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
        wide, inverse = _normed(x, eps)
        ctx.save_for_backward(x, inverse, weight)
        ctx.offset = offset
        return wide.mul_(_factor(weight, offset)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        normed = _wide(x).mul_(inverse)
        above = _wide(gradient)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (above * normed).reshape(-1, len(weight)).sum(dim=0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None
        above.mul_(_factor(weight, ctx.offset))
        along = (above * normed).mean(dim=-1, keepdim=True)
        return above.addcmul_(normed, along, value=-1).mul_(inverse).to(x.dtype), d_weight, None, None


def _wide(x: Tensor) -> Tensor:
    """A copy in float32, to be written to."""
    return x.to(torch.float32, copy=True)


def _normed(x: Float[Tensor, "*rows size"], eps: float) -> tuple[Float[Tensor, "*rows size"], Float[Tensor, "*rows 1"]]:
    """Rows of root mean square one in float32, and what they were multiplied by."""
    wide = _wide(x)
    # One pass, in place of a square and its mean.
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return wide.mul_(inverse), inverse


def _factor(weight: Tensor, offset: float) -> Tensor:
    return weight.float() + offset if offset else weight.float()


def _norm(module: Any, offset: float, eps: float, x: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
    if torch.is_grad_enabled():
        out: Tensor = _Norm.apply(x, module.weight, offset, eps)  # type: ignore[no-untyped-call]
        return out
    return _normed(x, eps)[0].mul_(_factor(module.weight, offset)).to(x.dtype)


@contextmanager
def norms_on(model: torch.nn.Module) -> Iterator[None]:
    """Within it, every norm of `model` that is one by the root mean square is computed by this module, on a CPU.

    A module counts as one if a copy of it makes the same of random rows. A GPU would wait for each of these launches.
    """
    changed = []
    try:
        for module in model.modules():
            if not _may_be_one(module):
                continue
            if module not in _OFFSETS:
                _OFFSETS[module] = _offset(module)
            offset = _OFFSETS[module]
            if offset is not None:
                module.forward = partial(_norm, module, offset, _eps(module))
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


_OFFSETS: WeakKeyDictionary[torch.nn.Module, float | None] = WeakKeyDictionary()


def _eps(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _may_be_one(module: torch.nn.Module) -> bool:
    """By its name and its parts, where nothing else computes it already, as another `norms_on` does."""
    if not type(module).__name__.endswith("RMSNorm") or "forward" in module.__dict__:
        return False
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.dim() == 1 and weight.device.type == "cpu"
    return plain and isinstance(_eps(module), float) and len(inspect.signature(module.forward).parameters) == 1


@torch.no_grad()
def _offset(module: torch.nn.Module) -> float | None:
    """What is added to the weight; None where it computes something else."""
    generator = torch.Generator().manual_seed(0)
    copy, eps = deepcopy(module).float(), _eps(module)
    weight: Any = copy.weight
    # Neither a weight that is all alike nor rows that are all of one size would tell where something is added.
    weight.uniform_(0.5, 1.5, generator=generator)
    sizes = torch.tensor([1.0, 100.0, eps**0.5, 0.1 * eps**0.5])[:, None]
    rows = sizes * torch.randn(1, len(sizes), len(weight), generator=generator)
    try:
        wanted = copy.forward(rows)
    except Exception:  # a family's own module, which may ask for anything
        return None
    for offset in (0.0, 1.0):
        if torch.allclose(_norm(copy, offset, eps, rows), wanted, rtol=1e-4, atol=0):
            return offset
    return None
