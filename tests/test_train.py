"""The training loop computes what a plain one computes, whatever the method."""

import math

import pytest
import torch
from tiny import make_tokenizer

from finetrap.data import Encoder
from finetrap.engine import loss as loss_module
from finetrap.engine.attention import packed_attention_on
from finetrap.engine.loss import CompletionLoss, TrainingRow
from finetrap.engine.train import Masters, train, validation_loss
from finetrap.errors import StudyError
from finetrap.method import Training, build, complete_settings
from finetrap.models import LoadedModel, cast_weights
from finetrap.records import ModelRecord
from finetrap.task import get_task
from finetrap.trial import load_checkpoint

METHODS = ("full", "lora", "dora")
PAD = 258


def make_rows(count, *, seed=0):
    """Rows of distinct lengths, so that counts of tokens tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in torch.randperm(count, generator=generator).tolist():
        ids = torch.randint(0, 256, (index + 5,), generator=generator).tolist()
        rows.append(TrainingRow(ids, prompt_length=1 + index % 4))
    return rows


def adapt(base, name):
    """The model to train; adapters begin away from zero, so that all of them get gradients."""
    torch.manual_seed(0)
    model = build(name, complete_settings(name, {})).prepare(base)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
    return model


def run(base, model, rows, validation=(), *, seed=0, keep_float32=True, progress=None, **training):
    with packed_attention_on(base):
        return train(
            model,
            rows,
            validation,
            training=Training(**{"learning_rate": 1e-3, **training}),
            seed=seed,
            keep_float32=keep_float32,
            **({"progress": progress} if progress else {}),
        )


def padded(rows):
    """A batch as Transformers takes it: padded on the right, labels -100 where there is no loss."""
    length = max(len(row.ids) for row in rows)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids, prompt_length in rows:
        rest = length - len(ids)
        batch["input_ids"].append(ids + [PAD] * rest)
        batch["attention_mask"].append([1] * len(ids) + [0] * rest)
        batch["labels"].append([-100] * prompt_length + ids[prompt_length:] + [-100] * rest)
    return {key: torch.tensor(value) for key, value in batch.items()}


def gradient(model, loss):
    """All gradients of the trained parameters as one vector."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def assert_same_loss_and_gradient(model, loss, expected):
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    got, want = gradient(model, loss), gradient(model, expected)
    assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("name", METHODS)
def test_packed_loss_and_gradient_equal_those_of_transformers_on_a_padded_batch(tiny_model, family, name):
    base, rows = tiny_model(family), make_rows(6)
    model = adapt(base, name)
    expected = model(**padded(rows)).loss
    with packed_attention_on(base):
        loss = CompletionLoss(model).summed(rows) / sum(row.completion_length for row in rows)
    assert_same_loss_and_gradient(model, loss, expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_with_the_weights_of_a_plain_loop(tiny_model, name):
    rows = make_rows(6)
    base, plain = (tiny_model() for _ in range(2))
    model = adapt(base, name)
    trained = run(base, model, rows, epochs=5, batch_size=len(rows), weight_decay=0.1, clip=0.5)

    plain = adapt(plain, name)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.1)
    for entry in trained.log:
        optimiser.param_groups[0]["lr"] = entry.learning_rate
        optimiser.zero_grad()
        plain(**padded(rows)).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimiser.step()
    for (key, got), want in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_the_rate_rises_over_the_warmup_and_then_falls_without_reaching_zero(tiny_model):
    base = tiny_model()
    trained = run(base, adapt(base, "full"), make_rows(10), batch_size=1, epochs=1, warmup=0.3, learning_rate=1e-3)
    rates = [entry.learning_rate for entry in trained.log]
    assert rates == pytest.approx(
        [1e-3 * share for share in (1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)]
    )


def trained_weights(tiny_model, name, rows, **training):
    base = tiny_model()
    model = adapt(base, name)
    trained = run(base, model, rows, **training)
    return trained, [parameter.detach().clone() for parameter in model.parameters()]


def test_a_batch_in_many_micro_batches_equals_one_big_batch(tiny_model, monkeypatch):
    rows = make_rows(32)
    whole, expected = trained_weights(tiny_model, "full", rows, epochs=1, batch_size=16)
    monkeypatch.setattr(loss_module, "TOKENS_AT_A_TIME", 40)
    parts, got = trained_weights(tiny_model, "full", rows, epochs=1, batch_size=16)
    assert [entry.loss for entry in parts.log] == pytest.approx([entry.loss for entry in whole.log], rel=1e-5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def token_counts(tiny_model, name, *, seed):
    """Tokens seen after each step: the order of the rows, since their lengths differ."""
    base = tiny_model()
    trained = run(base, adapt(base, name), make_rows(9), seed=seed, epochs=2, batch_size=2)
    return [entry.tokens for entry in trained.log]


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_all_methods_see_the_rows_in_the_same_order(tiny_model, name):
    assert token_counts(tiny_model, name, seed=3) == token_counts(tiny_model, "full", seed=3)


def test_another_seed_is_another_order(tiny_model):
    assert token_counts(tiny_model, "full", seed=3) != token_counts(tiny_model, "full", seed=4)


def test_the_same_seed_gives_the_same_weights(tiny_model):
    first, second = (
        trained_weights(tiny_model, "lora", make_rows(9), seed=3, epochs=2, batch_size=2) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_every_epoch_sees_every_row_once(tiny_model):
    rows = make_rows(9)
    whole = sum(len(row.ids) for row in rows)
    counts = token_counts(tiny_model, "full", seed=0)
    assert [counts[4], counts[9]] == [whole, 2 * whole]


@pytest.mark.parametrize("chat", [True, False])
def test_the_end_of_turn_token_carries_loss(tiny_model, tiny_tokenizer, chat):
    encoder = Encoder(tiny_tokenizer, get_task("gsm8k"), chat=chat)
    ids, prompt_length = encoder.training_row(get_task("gsm8k").load("test")[0])
    model = tiny_model()
    with torch.no_grad(), packed_attention_on(model):
        loss = CompletionLoss(model)
        last = loss.summed([TrainingRow(ids, prompt_length)]) - loss.summed([TrainingRow(ids[:-1], prompt_length)])
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0, -2].log_softmax(dim=-1)
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>" if chat else "<|eos|>")
    assert ids[-1] == end
    assert last.item() == pytest.approx(-logs[end].item(), rel=1e-3)


def test_no_prompt_token_carries_loss(tiny_model):
    model, (row,) = tiny_model(), make_rows(1)
    logs = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(dim=-1)
    with packed_attention_on(model):
        loss = CompletionLoss(model).summed([row])
    completion = range(row.prompt_length, len(row.ids))
    assert loss.item() == pytest.approx(-sum(logs[i - 1, row.ids[i]].item() for i in completion), rel=1e-5)


def test_validation_loss_is_the_mean_over_all_completion_tokens(tiny_model, monkeypatch):
    monkeypatch.setattr(loss_module, "TOKENS_AT_A_TIME", 25)
    model, rows = tiny_model(), make_rows(7)
    with packed_attention_on(model):
        loss = validation_loss(model, rows)
    assert loss == pytest.approx(model(**padded(rows)).loss.item(), rel=1e-5)


def test_without_validation_rows_there_is_no_validation_loss(tiny_model):
    base = tiny_model()
    trained = run(base, adapt(base, "lora"), make_rows(4), epochs=1)
    assert (trained.validation_loss_before, trained.validation_loss) == (None, None)


def test_the_validation_loss_told_is_that_of_the_weights_left(tiny_model):
    base, validation = tiny_model(), make_rows(5, seed=1)
    model = adapt(base, "full")
    trained = run(base, model, make_rows(8), validation, epochs=2, batch_size=2)
    with packed_attention_on(base):
        assert trained.validation_loss == pytest.approx(validation_loss(model, validation), rel=1e-6)
    assert trained.validation_loss == trained.log[-1].validation_loss


# --- float32 masters -------------------------------------------------------------------------------------------------


def test_masters_move_where_an_update_in_bfloat16_would_round_to_nothing(tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    before = [parameter.detach().clone() for parameter in base.parameters()]
    model = adapt(base, "full")
    run(base, model, make_rows(4), epochs=1, learning_rate=1e-6, keep_float32=True)
    after = list(model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in after)
    matrices = [(old, new) for old, new in zip(before, after, strict=True) if old.dim() == 2]
    assert all((new != old.float()).any() for old, new in matrices)
    rounded_away = [(new.bfloat16() == old).float().mean() for old, new in matrices]
    assert min(rounded_away) > 0.99


def test_many_small_updates_arrive_in_the_bfloat16_weights():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masters = Masters([weight])
    for _ in range(100):
        with torch.no_grad():
            masters.masters[0].sub_(1e-4)
        masters.publish()
    torch.testing.assert_close(weight.float(), torch.full((4,), 0.99), rtol=0, atol=2**-8)


def test_gradients_of_bfloat16_weights_add_up_in_float32():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masters = Masters([weight])
    for scale in [1.0, *[2.0**-10] * 8]:
        (weight * scale).sum().backward()
    assert masters.masters[0].grad.tolist() == [1 + 8 * 2.0**-10] * 4


def test_a_float32_parameter_is_its_own_master():
    weight = torch.nn.Parameter(torch.ones(4))
    assert Masters([weight]).masters[0] is weight


def test_a_run_in_bfloat16_leaves_bfloat16_unless_asked_otherwise(tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    model = adapt(base, "full")
    run(base, model, make_rows(4), epochs=1, keep_float32=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_bfloat16_run_follows_the_float32_run(tiny_model):
    base, rows = tiny_model(dtype=torch.bfloat16), make_rows(16)
    trained = run(base, adapt(base, "full"), rows, epochs=3, batch_size=4, learning_rate=3e-3)
    expected, _ = trained_weights(tiny_model, "full", rows, epochs=3, batch_size=4, learning_rate=3e-3)
    assert [e.loss for e in trained.log] == pytest.approx([e.loss for e in expected.log], rel=0.02)


# --- divergence ------------------------------------------------------------------------------------------------------


def assert_best_weights_are_back(base, model, trained, validation):
    with packed_attention_on(base):
        loss = validation_loss(model, validation)
    assert loss == pytest.approx(trained.validation_loss, rel=1e-6)
    measured = [entry.validation_loss for entry in trained.log if entry.validation_loss is not None]
    assert trained.validation_loss == min([trained.validation_loss_before, *measured])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_absurd_rate_diverges_and_leaves_the_best_weights(tiny_model, dtype):
    base, validation = tiny_model(dtype=dtype), make_rows(5, seed=1)
    model = adapt(base, "full")
    trained = run(base, model, make_rows(12), validation, learning_rate=100.0, batch_size=2, keep_float32=False)
    assert trained.outcome == "diverged"
    assert trained.step < trained.steps
    assert_best_weights_are_back(base, model, trained, validation)


def test_weights_that_stop_being_numbers_diverge_and_the_best_come_back(tiny_model):
    base, validation, rows = tiny_model(), make_rows(4), make_rows(4)
    model = adapt(base, "full")

    def break_it(entry, steps):
        if entry.step == 9:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)

    trained = run(base, model, rows, validation, learning_rate=3e-3, epochs=16, batch_size=4, progress=break_it)
    assert (trained.outcome, trained.step, trained.steps) == ("diverged", 8, 16)
    assert_best_weights_are_back(base, model, trained, validation)
    assert trained.validation_loss < trained.validation_loss_before


def test_a_sound_run_completes(tiny_model):
    base, rows = tiny_model(), make_rows(4)
    trained = run(base, adapt(base, "lora"), rows, rows, epochs=10, learning_rate=1e-2)
    assert (trained.outcome, trained.step, trained.steps) == ("completed", 10, 10)
    assert trained.validation_loss < trained.validation_loss_before


def test_the_best_checkpoint_is_kept_even_if_all_are_worse_than_the_untouched_model(tiny_model):
    base, validation = tiny_model(), make_rows(4)
    model = adapt(base, "full")
    run(base, model, validation, epochs=30, learning_rate=3e-3)
    with packed_attention_on(base):
        trained = train(
            model,
            make_rows(16, seed=1),
            validation,
            training=Training(learning_rate=3e-3, epochs=8, batch_size=4),
            seed=0,
            keep_float32=True,
            keep_best=True,
        )
        left = validation_loss(model, validation)
    measured = {entry.step: entry.validation_loss for entry in trained.log if entry.validation_loss is not None}
    assert len(measured) == 4
    assert trained.outcome == "completed"
    assert trained.validation_loss_before < min(measured.values()) < measured[trained.steps]
    assert trained.validation_loss == measured[trained.step] == min(measured.values())
    assert left == pytest.approx(trained.validation_loss, rel=1e-6)


# --- adapters ---------------------------------------------------------------------------------------------------------

IDS = torch.tensor([list(range(97, 117))])


def trained_adapter(tiny_model, name):
    base = tiny_model()
    model = adapt(base, name)
    run(base, model, make_rows(8), epochs=2, batch_size=4, learning_rate=1e-2)
    return model


@pytest.mark.parametrize("name", ["lora", "dora"])
@torch.no_grad()
def test_a_merged_adapter_gives_the_same_logits(tiny_model, name):
    with torch.enable_grad():
        model = trained_adapter(tiny_model, name)
    unmerged = model(input_ids=IDS).logits
    merged = model.merge_and_unload()(input_ids=IDS).logits
    torch.testing.assert_close(merged, unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_float32_adapter_of_a_bfloat16_model_is_merged_into_bfloat16(tiny_model, name):
    base = tiny_model(dtype=torch.bfloat16)
    model = adapt(base, name)
    run(base, model, make_rows(8), epochs=2, batch_size=4, learning_rate=1e-2, keep_float32=True)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    unmerged = model(input_ids=IDS).logits
    merged = model.merge_and_unload()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert (merged(input_ids=IDS).logits - unmerged).norm() < 0.05 * unmerged.norm()


@pytest.mark.parametrize("name", ["lora", "dora"])
@torch.no_grad()
def test_a_saved_adapter_loads_in_plain_peft(tiny_model, tmp_path, name):
    from peft import PeftModel

    with torch.enable_grad():
        model = trained_adapter(tiny_model, name)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    got, expected = (m(input_ids=IDS).logits for m in (loaded, model))
    assert (got - expected).norm() <= 1e-5 * expected.norm()


# --- checkpoints -----------------------------------------------------------------------------------------------------


def saved(folder, base, **settings):
    """A PEFT adapter for a model, written to a folder, and the model as finetrap has it."""
    from peft import LoraConfig, get_peft_model

    record = ModelRecord(
        name="tiny", fingerprint="tiny", quantisation=None, parameters=base.num_parameters(), aligned=True, chat=True
    )
    loaded = LoadedModel(record, base, make_tokenizer())
    torch.manual_seed(0)
    wrapped = get_peft_model(loaded.copy(), LoraConfig(**{"r": 2, "target_modules": "all-linear", **settings}))
    wrapped.save_pretrained(folder)
    return loaded, wrapped


@torch.no_grad()
def test_an_adapter_that_learned_nothing_leaves_a_bfloat16_model_as_it_is(tiny_model, family, tmp_path):
    # As Transformers loads it: rotary frequencies stay in float32.
    base = cast_weights(tiny_model(family), torch.bfloat16)
    loaded, _ = saved(tmp_path, base)
    merged = load_checkpoint(tmp_path, loaded)
    far = torch.tensor([list(range(60, 250)) * 2])
    assert torch.equal(merged(far).logits, base(far).logits)
    frequencies = {name: buffer for name, buffer in base.named_buffers() if "inv_freq" in name}
    assert {buffer.dtype for buffer in frequencies.values()} == {torch.float32}
    assert all(torch.equal(merged.get_buffer(name), buffer) for name, buffer in frequencies.items())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of what this is about
@torch.no_grad()
def test_an_adapter_on_a_tied_head_or_embedding_changes_that_alone(tiny_model, tmp_path, target):
    base = tiny_model("llama-tied")
    assert base.lm_head.weight is base.model.embed_tokens.weight
    loaded, wrapped = saved(tmp_path, base, target_modules=["q_proj", target], init_lora_weights=False)
    expected = wrapped.eval()(IDS).logits
    got = load_checkpoint(tmp_path, loaded)(IDS).logits
    assert (expected - base(IDS).logits).norm() > 0.01 * expected.norm()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert base.lm_head.weight is base.model.embed_tokens.weight


def test_prompts_that_were_learned_are_refused(tiny_model, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    loaded, _ = saved(tmp_path / "lora", tiny_model())
    get_peft_model(loaded.copy(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "prompts"
    )
    with pytest.raises(StudyError, match="does not fit tiny: what it learned are prompts"):
        load_checkpoint(tmp_path / "prompts", loaded)


def test_doras_magnitudes_begin_as_norms_in_float32_with_dropout_too(tiny_model):
    base = tiny_model(dtype=torch.bfloat16)
    model = build("dora", complete_settings("dora", {"dropout": 0.05})).prepare(base)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    norms = layer.get_base_layer().weight.float().norm(dim=1)
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.data, norms, rtol=1e-6, atol=0)
    with torch.no_grad():
        before, after = (m.eval()(input_ids=IDS).logits for m in (tiny_model(dtype=torch.bfloat16), model))
    assert (after - before).norm() <= 1e-3 * before.norm()
