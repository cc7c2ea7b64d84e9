"""Norms by the root mean square with a forward and backward pass of their own; modules and weights stay the model's.

Written out in tensors, as families do, a norm and its derivative read and write their rows some twenty times, and in
bfloat16 on a CPU that takes longer than a matrix product beside it. Here it is half of that.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

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

    A class of norms counts as one if its first makes the same of random rows. A GPU would wait for each launch.
    """
    offsets: dict[type, float | None] = {}
    changed = []
    for module in model.modules():
        kind, eps = type(module), _eps(module)
        if eps is None:
            continue
        if kind not in offsets:
            offsets[kind] = _offset(module, eps)
        offset = offsets[kind]
        if offset is not None:
            module.forward = partial(_norm, module, offset, eps)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _eps(module: torch.nn.Module) -> float | None:
    """What is added to the mean square, of what may be such a norm by its name and its parts; None for the rest.

    And for what something else computes already, as another `norms_on` does.
    """
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(eps, float) or "forward" in module.__dict__:
        return None
    return eps if isinstance(weight, Tensor) and weight.dim() == 1 and weight.device.type == "cpu" else None


@torch.no_grad()
def _offset(module: Any, eps: float) -> float | None:
    """What its class adds to the weight; None where it computes something else, or needs more than the rows."""
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    weight = module.weight
    rows = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    wanted = module(rows).float()
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2**-6
    for offset in (0.0, 1.0):
        if torch.allclose(_norm(module, offset, eps, rows).float(), wanted, rtol=tolerance, atol=1e-30):
            return offset
    return None
