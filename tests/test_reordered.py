"""Products with a reordered weight are those of the weight, and a model gets its own layers back."""

import contextlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from finetrap.engine.reordered import Frozen, reordered_weights

SIZES = st.integers(1, 70)


@given(SIZES, SIZES, SIZES, st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_product_is_that_of_the_weight(rows, wide, narrow, biased, dtype):
    generator = torch.Generator().manual_seed(rows)
    weight, x, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((wide, narrow), (rows, narrow), wide)
    )
    tolerance = {"rtol": 1e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    expected = x.double() @ weight.double().T + (bias.double() if biased else 0)
    for in_float32 in (False, True):
        product = Frozen(weight, in_float32=in_float32)
        torch.testing.assert_close(product(x, bias if biased else None).double(), expected, **tolerance)


def test_a_model_has_its_own_layers_again_after_an_error(tiny_model):
    model = tiny_model().bfloat16()
    ids = torch.arange(10)[None]
    before = model(ids).logits
    with contextlib.suppress(KeyError), reordered_weights(model):
        reordered = model(ids).logits
        raise KeyError
    torch.testing.assert_close(reordered, before, rtol=0.05, atol=0.05)
    assert torch.equal(model(ids).logits, before)


def test_a_weight_that_changes_all_the_same_is_followed(tiny_model):
    layer = tiny_model().model.layers[0].mlp.down_proj
    product, x = Frozen(layer.weight, in_float32=True), torch.randn(5, layer.in_features)
    torch.testing.assert_close(product(x), layer(x))
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(product(x), layer(x))
    layer.bfloat16()
    x = x.bfloat16()
    torch.testing.assert_close(product(x), layer(x), rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        layer.weight.mul_(3)
    torch.testing.assert_close(product(x), layer(x), rtol=1e-2, atol=1e-2)
