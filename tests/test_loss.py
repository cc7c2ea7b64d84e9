"""The chunked loss, and what it does when memory runs out."""

import json
import subprocess
import sys

import pytest
import torch
from tiny import make_model
from torch.nn.functional import cross_entropy
from transformers import GraniteConfig, GraniteForCausalLM

from finetrap.engine import attention as attention_module
from finetrap.engine import blocks as blocks_module
from finetrap.engine import head as head_module
from finetrap.engine import loss as loss_module
from finetrap.engine.attention import packed_attention_on
from finetrap.engine.head import token_losses
from finetrap.engine.loss import CompletionLoss, TrainingRow, _SummedCrossEntropy

ROWS = [TrainingRow([7 + (i * k) % 200 for i in range(12 + k)], prompt_length=3 + k % 2) for k in range(1, 6)]


def plain_loss(model, rows):
    """The sum over completion tokens, one row at a time, all logits at once."""
    total = torch.zeros(())
    for ids, prompt_length in rows:
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
        total = total + cross_entropy(
            logits[prompt_length - 1 : -1], torch.tensor(ids[prompt_length:]), reduction="sum"
        )
    return total


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_plain(model, rows):
    model.requires_grad_(True)
    expected = plain_loss(model, rows)
    wanted = gradients(model, expected)
    with packed_attention_on(model):
        got = CompletionLoss(model).summed(rows)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    found = gradients(model, got)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("chunk", [1, 1000, 10_000, 1 << 25])
@pytest.mark.parametrize("family", ["llama-untied", "llama-tied", "gemma3-untied"])
def test_in_chunks_of_any_size_loss_and_gradient_are_those_of_all_logits_at_once(monkeypatch, family, chunk):
    monkeypatch.setattr(head_module, "LOGITS_AT_A_TIME", chunk)
    assert_equal_to_plain(make_model(family), ROWS)


@pytest.mark.parametrize("keys", [0, 15, 512])
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_weights_of_attention_that_are_kept_or_computed_again_give_the_same_gradient(monkeypatch, family, keys):
    monkeypatch.setattr(blocks_module, "KEYS_KEPT", keys)
    assert_equal_to_plain(make_model(family), ROWS)


def test_a_head_with_a_bias_gets_its_gradient(monkeypatch):
    monkeypatch.setattr(head_module, "LOGITS_AT_A_TIME", 1000)
    model = make_model("llama-untied")
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=True)
    model.set_output_embeddings(head)
    assert_equal_to_plain(model, ROWS)


def granite(vocabulary=260):
    """A model that scales its logits after the head."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logits_scaling=0.25,
        initializer_range=0.2,
        attn_implementation="sdpa",
    )
    return GraniteForCausalLM(config).eval()


def test_logits_that_a_model_scales_after_its_head_stay_scaled():
    assert_equal_to_plain(granite(), ROWS)


def test_of_logits_that_are_changed_after_the_head_only_a_few_exist_at_once(monkeypatch):
    vocabulary = 5000
    monkeypatch.setattr(loss_module, "ACTIVATION_BYTES", 40 * 4 * loss_module.LOGITS_COPIES * vocabulary)
    model = granite(vocabulary).requires_grad_(True)
    sizes = []
    model.lm_head.register_forward_hook(lambda module, given, logits: sizes.append(logits.numel()))
    with packed_attention_on(model):
        CompletionLoss(model).backward(ROWS * 10, forget=lambda: None)
    assert len(sizes) > 10
    assert max(sizes) <= 40 * vocabulary


@pytest.mark.parametrize("prompt_lengths", [(4, 4, 4), (4, 6, 9)])
def test_a_prompt_that_rows_share_is_computed_once_and_changes_nothing(prompt_lengths):
    shared = [30, 31, 32, 33]
    rows = [TrainingRow([*shared, *range(40 + 9 * i, 60 + 9 * i)], n) for i, n in enumerate(prompt_lengths)]
    model = make_model("gemma3")
    assert_equal_to_plain(model, rows)
    with packed_attention_on(model):
        assert sum(_tokens_computed(model, rows)) < sum(len(row.ids) for row in rows)


def test_behind_a_prefix_long_enough_to_stand_apart_gradient_and_validation_loss_are_the_same(monkeypatch):
    monkeypatch.setattr(attention_module, "LONG_PREFIX", 3)
    rows = [TrainingRow([30, 31, 32, 33, *range(40 + 9 * i, 60 + 9 * i)], 5) for i in range(3)]
    model = make_model("qwen3")
    assert_equal_to_plain(model, rows)
    with packed_attention_on(model):
        loss = CompletionLoss(model).mean(rows)
    count = sum(row.completion_length for row in rows)
    assert loss == pytest.approx(plain_loss(model, rows).item() / count, rel=1e-5)


def _tokens_computed(model, rows):
    seen = []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))
    CompletionLoss(model).summed(rows)
    hook.remove()
    return seen[-1:]


@pytest.mark.parametrize("vocabulary", [49_152, 262_144])
def test_beside_a_token_that_is_nearly_sure_loss_and_gradient_are_those_of_float64(vocabulary):
    torch.manual_seed(0)
    hidden = torch.randn(64, 16)
    weight = torch.randn(vocabulary, 16) / 2
    bias = torch.zeros(vocabulary)
    bias[7] = 22
    targets = torch.full((64,), 7)
    found, wanted = (
        [part.detach().to(dtype, copy=True).requires_grad_(True) for part in (hidden, weight, bias)]
        for dtype in (torch.float32, torch.float64)
    )
    loss = _SummedCrossEntropy.apply(*found, targets)
    expected = cross_entropy(torch.nn.functional.linear(*wanted), targets, reduction="sum")
    loss.backward()
    expected.backward()
    # Of a token with 99.95% loss and gradient are 5e-4, and float32 has the whole mass to 6e-8: one part in 8,000.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    for got, reference in zip(found, wanted, strict=True):
        assert (got.grad - reference.grad).norm() <= 3e-4 * reference.grad.norm()
    with torch.no_grad():
        scored = token_losses(torch.nn.functional.linear(*found), targets).sum()
    assert scored.item() == pytest.approx(expected.item(), rel=1e-3)


def child(code):
    """What a process of its own prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_tokens_times_gemmas_vocabulary():
    peak = child("""
import json, resource, torch
from finetrap.engine.loss import _SummedCrossEntropy
weight = torch.randn(262_144, 16, requires_grad=True)
hidden = torch.randn(700, 16, requires_grad=True)
targets = torch.arange(700)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_SummedCrossEntropy.apply(hidden, weight, None, targets).backward()
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))
""")
    logits = 700 * 262_144 * 4
    assert peak < logits / 2


@pytest.mark.thorough
def test_out_of_memory_halves_the_micro_batch_and_ends_at_the_same_weights():
    limited, free = (
        child(f"""
import json, resource, sys, torch
sys.path.insert(0, "tests")
from tiny import make_model
from finetrap.engine import loss
from finetrap.engine.attention import packed_attention_on
from finetrap.engine.loss import CompletionLoss, TrainingRow
from finetrap.method import Training
from finetrap.engine.train import train
torch.set_num_threads(1)
sizes = []
halve = loss.is_out_of_memory
def told(error):
    sizes.append(halve(error))
    return sizes[-1]
loss.is_out_of_memory = told
model = make_model("llama").requires_grad_(True)
rows = [TrainingRow([(7 * i + k) % 250 for i in range(400)], 5) for k in range(24)]
with packed_attention_on(model):
    CompletionLoss(model).summed(rows[:2]).backward()
    model.zero_grad()
    if {limited}:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
    trained = train(model, rows, [], training=Training(learning_rate=1e-3, batch_size=24), seed=0, keep_float32=True)
print(json.dumps([sizes, trained.log[0].loss, float(sum(p.double().sum() for p in model.parameters()))]))
""")
        for limited in (True, False)
    )
    assert limited[0]
    assert all(limited[0])
    assert free[0] == []
    assert limited[1:] == pytest.approx(free[1:], rel=1e-6)


def test_an_adapter_on_the_head_is_trained_too():
    from peft import LoraConfig, get_peft_model

    base = make_model("llama-untied")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    with packed_attention_on(base):
        got = CompletionLoss(model).summed(ROWS)
    expected = plain_loss(model, ROWS)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    found, wanted = gradients(model, got), gradients(model, expected)
    assert any("lm_head" in name for name in wanted)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
