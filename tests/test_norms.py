"""The engine's norms are those of each family, forward and backward, and a model gets its own back."""

import contextlib

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from finetrap.engine.norms import norms_on


def _norms(model):
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


@given(
    st.sampled_from([LlamaRMSNorm, Gemma3RMSNorm]),
    st.lists(st.integers(1, 5), max_size=3),
    st.integers(1, 70),
    st.sampled_from([1e-6, 0.5]),
    st.booleans(),
    st.integers(0, 5),
)
def test_a_norm_and_its_derivatives_are_those_of_the_family(kind, rows, size, eps, frozen, seed):
    generator = torch.Generator().manual_seed(seed)
    norm = kind(size, eps)
    norm.weight.data.normal_(generator=generator)
    norm.weight.requires_grad_(not frozen)
    x = torch.randn(*rows, size, generator=generator, requires_grad=True)
    above = torch.randn(x.shape, generator=generator)
    wanted = [x] if frozen else [x, norm.weight]

    own = norm(x)
    gradients = torch.autograd.grad(own, wanted, above)
    with norms_on(norm):
        assert "forward" in norm.__dict__
        ours = norm(x)
        torch.testing.assert_close(ours, own)
        for a, b in zip(torch.autograd.grad(ours, wanted, above), gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(norm(x), ours)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
def test_in_bfloat16_it_is_as_near_to_the_exact_norm_as_the_family_is(kind):
    torch.manual_seed(0)
    exact = kind(64, 1e-6)
    exact.weight.data.normal_()
    rounded = kind(64, 1e-6).bfloat16()
    rounded.weight.data.copy_(exact.weight)
    exact.weight.data.copy_(rounded.weight)
    x, above = torch.randn(200, 64).bfloat16(), torch.randn(200, 64).bfloat16()

    def outcome(norm, x):
        x = x.clone().requires_grad_()
        out = norm(x)
        return [t.float() for t in (out, *torch.autograd.grad(out, (x, norm.weight), above.to(out.dtype)))]

    reference = outcome(exact, x.float())
    family = outcome(rounded, x)
    with norms_on(rounded):
        ours = outcome(rounded, x)
    for a, b, c in zip(ours, family, reference, strict=True):
        assert (a - c).norm() <= 1.01 * (b - c).norm()
        assert (a - c).norm() < 4e-3 * c.norm()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_norm_of_a_family_is_taken_and_given_back_after_an_error(family):
    model = tiny.make_model(family)
    ids = torch.arange(10)[None]
    before = model(ids).logits
    with contextlib.suppress(KeyError), norms_on(model):
        assert _norms(model)
        assert all("forward" in norm.__dict__ for norm in _norms(model))
        with norms_on(model):
            pass
        assert all("forward" in norm.__dict__ for norm in _norms(model))
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
        raise KeyError
    assert not any("forward" in norm.__dict__ for norm in _norms(model))
    assert torch.equal(model(ids).logits, before)


def test_a_weight_that_training_changes_is_followed_and_any_gradient_is_taken():
    norm = LlamaRMSNorm(8)
    x = torch.randn(3, 8)
    with norms_on(norm):
        norm.weight.data = torch.full((8,), 2.0)
        with torch.no_grad():
            norm.weight.mul_(2)
        ours = norm(x)
        ours.sum().backward()  # a gradient that is expanded; none is asked for the rows
    torch.testing.assert_close(ours, norm(x))
    torch.testing.assert_close(norm.weight.grad, (norm(x) / norm.weight).sum(dim=0))


class CentredRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(dim=-1, keepdim=True))


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, x, gate=None):
        return super().forward(x if gate is None else x * gate)


class ScaledBeforeRMSNorm(Gemma3RMSNorm):
    def forward(self, x):
        return self._norm(x.float() * (1 + self.weight.float())).type_as(x)


class OutsideRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        return self.weight * x / (x.square().mean(dim=-1, keepdim=True).sqrt() + self.variance_epsilon)


class FourDimensionalRMSNorm(LlamaRMSNorm):
    def forward(self, x):
        _batch, _heads, _tokens, _size = x.shape
        return super().forward(x)


class GroupedRMSNorm(LlamaRMSNorm):
    groups = 2

    def forward(self, x):
        return super().forward(x.unflatten(-1, (self.groups, -1)).flip(-2).flatten(-2))


OTHERS = [
    CentredRMSNorm(8),
    GatedRMSNorm(8),
    ScaledBeforeRMSNorm(8),
    OutsideRMSNorm(8),
    FourDimensionalRMSNorm(8),
    LlamaRMSNorm(8).to("meta"),
    torch.nn.LayerNorm(8),
]


@pytest.mark.parametrize("norm", OTHERS, ids=lambda norm: type(norm).__name__)
def test_what_only_looks_like_such_a_norm_keeps_its_own(norm):
    with norms_on(norm):
        assert "forward" not in norm.__dict__


def test_each_module_of_a_class_is_looked_at_by_itself():
    norms = torch.nn.ModuleList(GroupedRMSNorm(8) for _ in range(2))
    norms[0].groups = 1
    with norms_on(norms):
        assert ["forward" in norm.__dict__ for norm in norms] == [True, False]
