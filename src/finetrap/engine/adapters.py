"""PEFT's LoRA and DoRA layers with a forward and backward pass of their own; parameters, names and files stay PEFT's.

PEFT computes the base layer, the adapter and their sum one after another, and for DoRA the whole of W + s B A at every
pass, for the norms of its rows. Here the adapter's product is added within the matrix product, and the norms come from
products of the adapter's rank. What is no plain LoRA or DoRA layer keeps PEFT's own forward.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear


class _Lora(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T (arXiv:2106.09685, equation 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.dtype = a.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        narrow = x @ a.T
        ctx.save_for_backward(x, narrow, weight, a, b)
        ctx.scale = scale
        return linear(x, weight, bias).addmm_(narrow, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, weight, a, b = ctx.saved_tensors
        above = (gradient @ b).mul_(ctx.scale)
        d_a = above.T @ x
        d_b = (narrow.T @ gradient).T.mul_(ctx.scale)
        d_x = (gradient @ weight).addmm_(above, a) if ctx.needs_input_grad[0] else None
        return d_x, None, None, d_a.to(ctx.dtype), d_b.to(ctx.dtype), None


class _Dora(torch.autograd.Function):
    """c (x W^T + s (x A^T) B^T) + bias with c = magnitude / norm, the norm held constant (arXiv:2402.09353, 4.3).

    c is multiplied into W and B, which are smaller than x W^T; the magnitude's gradient comes from the output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        magnitude: Tensor,
        norm: Tensor,
        scale: float,
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        column = (magnitude / norm)[:, None].to(x.dtype)
        narrow = x @ a.T
        out = linear(x, column * weight).addmm_(narrow, (column * b).T, alpha=scale)
        ctx.save_for_backward(x, narrow, out, weight, a, b, magnitude, column)
        ctx.scale = scale
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow, out, weight, a, b, magnitude, column = ctx.saved_tensors
        above = (gradient @ (column * b)).mul_(ctx.scale)
        d_a = above.T @ x
        d_b = column * (narrow.T @ gradient).T * ctx.scale
        d_x = (gradient @ (column * weight)).addmm_(above, a) if ctx.needs_input_grad[0] else None
        products = (gradient * out).sum(dim=0, dtype=torch.float32)
        return d_x, None, None, d_a.to(magnitude.dtype), d_b.to(magnitude.dtype), products / magnitude, None, None


def row_norms(
    weight: Float[Tensor, "out in"],
    squared: Float[Tensor, " out"],
    a: Float[Tensor, "rank in"],
    b: Float[Tensor, "out rank"],
    scale: float,
) -> Float[Tensor, " out"]:
    """Norm of each row of W + s B A, without that sum: |W|^2 + 2 s B (A W^T) + s^2 B (A A^T) B^T of each row.

    `squared` is |W|^2 of each row, which does not change while W is frozen.
    """
    across = (weight @ a.T.to(weight.dtype)).float()
    wide, narrow = b.float(), a.float()
    change = wide * (2 * scale * across + scale**2 * (wide @ (narrow @ narrow.T)))
    return (squared + change.sum(dim=1)).clamp_(min=0).sqrt_()


def speed_up(wrapped: torch.nn.Module) -> None:
    """Give every plain LoRA or DoRA layer of a PEFT model the forward pass of this module."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.variants import DoraLinearVariant

    for layer in wrapped.modules():
        if not isinstance(layer, Linear) or not _is_linear(layer):
            continue
        name = layer.active_adapters[0]
        # With dropout the adapter does not see what the layer sees: PEFT's own forward.
        sees_the_same = isinstance(layer.lora_dropout[name], torch.nn.Identity)
        variant = layer.lora_variant.get(name)
        if variant is None and sees_the_same:
            layer.forward = partial(_lora, layer, name)
        elif isinstance(variant, DoraLinearVariant):
            squared = layer.get_base_layer().weight.detach().float().square().sum(dim=1)
            if not layer.lora_B[name].weight.any():
                # PEFT begins with norms in the base's precision: in bfloat16 each row would be off by up to 0.4%.
                layer.lora_magnitude_vector[name].weight.data.copy_(squared.sqrt())
            if sees_the_same:
                layer.forward = partial(_dora, layer, name, squared)


def _is_linear(layer: Any) -> bool:
    """Whether it is a frozen linear layer below one adapter without a bias."""
    base, bias = layer.get_base_layer(), layer.lora_B[layer.active_adapters[0]].bias
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    return len(layer.active_adapters) == 1 and type(base) is torch.nn.Linear and bias is None and frozen


def _lora(layer: Any, name: str, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens out"]:
    base = layer.get_base_layer()
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    out: Tensor = _Lora.apply(x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, scale)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def _dora(
    layer: Any, name: str, squared: Float[Tensor, " out"], x: Float[Tensor, "*tokens in"]
) -> Float[Tensor, "*tokens out"]:
    base, magnitude = layer.get_base_layer(), layer.lora_magnitude_vector[name].weight
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    with torch.no_grad():
        norm = row_norms(base.weight, squared, a, b, scale)
    flat = x.reshape(-1, x.shape[-1])
    out: Tensor = _Dora.apply(flat, base.weight, base.bias, a, b, magnitude, norm, scale)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)
