"""Every method keeps the contract, and an arm says what its user wrote or why it cannot."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetrap.engine.attention import packed_attention_on
from finetrap.engine.loss import TrainingRow
from finetrap.engine.train import train
from finetrap.errors import StudyError
from finetrap.method import Arm, build, complete_settings, default_settings, is_trained, method, parse_arm

IDS = torch.tensor([list(range(97, 127))])
ROWS = [TrainingRow(list(range(60 + i, 80 + i)), prompt_length=5) for i in range(4)]

every_method = pytest.mark.parametrize("name", method.names())
every_trained_method = pytest.mark.parametrize("name", [name for name in method.names() if is_trained(name)])
every_other_method = pytest.mark.parametrize("name", [name for name in method.names() if not is_trained(name)])


def built(name):
    """The method with its defaults; settings that have none are paths."""
    needed = {key: "." for key, value in default_settings(name).items() if value is inspect.Parameter.empty}
    return build(name, complete_settings(name, needed))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def take_a_few_steps(base, model, training):
    with packed_attention_on(base):
        train(model, ROWS, (), training=replace(training, epochs=3), seed=0, keep_float32=True)


# --- the contract ----------------------------------------------------------------------------------------------------


@every_method
def test_a_method_trains_if_and_only_if_it_says_so(name):
    chosen = built(name)
    assert (chosen.training is not None) == (chosen.prepare is not None) == is_trained(name)


@every_method
def test_a_method_says_what_it_does(name):
    assert inspect.getdoc(method[name])


@every_method
def test_a_method_has_the_settings_that_its_defaults_name(name):
    defaults = default_settings(name)
    given = {key: value for key, value in defaults.items() if value is not inspect.Parameter.empty}
    missing = {key: "." for key in defaults if key not in given}
    assert complete_settings(name, {**given, **missing}) == {**given, **missing}


@every_trained_method
def test_a_trained_method_starts_at_the_base_model(tiny_model, family, name):
    before = logits(tiny_model(family))
    model = built(name).prepare(tiny_model(family)).eval()
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


@every_trained_method
def test_a_few_steps_change_what_a_trained_method_answers(tiny_model, family, name):
    base, chosen = tiny_model(family), built(name)
    before = logits(base)
    model = chosen.prepare(base)
    take_a_few_steps(base, model, chosen.training)
    assert not torch.allclose(logits(model), before, rtol=1e-3, atol=1e-3)


@every_trained_method
def test_a_trained_method_trains_all_that_it_declares_and_nothing_else(tiny_model, family, name):
    base, chosen = tiny_model(family), built(name)
    model = chosen.prepare(base)
    before = weights(model)
    declared = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    take_a_few_steps(base, model, chosen.training)
    assert {key for key, value in weights(model).items() if not torch.equal(value, before[key])} == declared


@every_trained_method
def test_an_adapter_leaves_the_base_weights_frozen_and_full_training_none(tiny_model, name):
    chosen = built(name)
    model = chosen.prepare(tiny_model())
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    adapters = [key for key, parameter in model.named_parameters() if "lora_" in key and parameter.requires_grad]
    assert (bool(frozen), bool(adapters)) == (chosen.adapter, chosen.adapter)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_low_rank_adapter_is_on_every_linear_layer_but_the_head(tiny_model, family, name):
    base = tiny_model(family)
    linear = {key for key, module in base.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    model = built(name).prepare(base)
    adapted = {
        key.removeprefix("base_model.model.").partition(".lora_A")[0] for key in weights(model) if "lora_A" in key
    }
    assert adapted == linear


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_rank_and_alpha_are_those_of_the_settings(tiny_model, name):
    model = build(name, complete_settings(name, {"rank": 4, "alpha": 12})).prepare(tiny_model())
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert (layer.lora_A["default"].weight.shape[0], layer.scaling["default"]) == (4, 3.0)


def test_full_training_trains_every_weight(tiny_model):
    assert all(parameter.requires_grad for parameter in built("full").prepare(tiny_model()).parameters())


@every_other_method
def test_a_method_that_does_not_train_has_nothing_that_touches_the_weights(name):
    chosen = built(name)
    assert (chosen.training, chosen.prepare, chosen.adapter) == (None, None, False)


def test_the_default_rate_of_adapters_is_far_above_that_of_full_training():
    rates = {name: default_settings(name)["learning_rate"] for name in ("full", "lora", "dora")}
    assert rates["lora"] == rates["dora"] >= 10 * rates["full"]


# --- arms ------------------------------------------------------------------------------------------------------------


def test_an_arm_can_be_the_name_of_a_method():
    assert parse_arm("lora") == Arm("lora", "lora", complete_settings("lora", {}))


def test_an_arm_can_have_settings():
    assert parse_arm("lora:rank=8,learning_rate=1e-4").settings == complete_settings(
        "lora", {"rank": 8, "learning_rate": 1e-4}
    )


def test_an_arm_can_have_a_name_of_its_own():
    arm = parse_arm("careless=full:learning_rate=1e-3")
    assert (arm.name, arm.method, arm.settings["learning_rate"]) == ("careless", "full", 1e-3)


def test_an_arm_with_a_name_needs_no_settings():
    assert parse_arm("mine=dora") == Arm("mine", "dora", complete_settings("dora", {}))


def test_an_arm_can_be_a_checkpoint(tmp_path):
    assert parse_arm(f"mine={tmp_path}") == Arm("mine", "checkpoint", {"path": str(tmp_path)})


def test_the_path_of_a_checkpoint_may_hold_what_the_grammar_uses(tmp_path):
    folder = tmp_path / "a:b,c=d"
    folder.mkdir()
    assert parse_arm(f"mine={folder}").settings == {"path": str(folder)}


def test_a_relative_path_of_a_checkpoint_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Path(parse_arm("mine=checkpoints").settings["path"]).is_absolute()


def test_spaces_around_names_and_values_do_not_matter():
    assert parse_arm("lora: rank = 8, alpha = 16").settings == complete_settings("lora", {"rank": 8, "alpha": 16})


def test_settings_have_the_types_that_the_method_names():
    settings = parse_arm("lora:rank=8,learning_rate=1").settings
    assert (type(settings["rank"]), type(settings["learning_rate"])) == (int, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loar", "unknown method 'loar'; did you mean 'lora'?"),
        ("x=ful:epochs=1", "unknown method 'ful'; did you mean 'full'?"),
        ("zzzzzz", "known: checkpoint, constant, dora, few_shot, full, interpolated, lora, prompted, zero_shot"),
        ("lora:rnk=8", "unknown setting of method 'lora' 'rnk'; did you mean 'rank'?"),
        ("few_shot:learning_rate=1e-3", "unknown setting of method 'few_shot' 'learning_rate'"),
        ("lora:rank=many", "lora:rank=many: expected int"),
        ("lora:rank=2.5", "lora:rank=2.5: expected int"),
        ("lora:rank=0", "expected at least 1"),
        ("lora:rank=-1", "not negative"),
        ("full:learning_rate=fast", "full:learning_rate=fast: expected float"),
        ("full:learning_rate=nan", "finite"),
        ("full:learning_rate=inf", "finite"),
        ("full:learning_rate=-1e-3", "not negative"),
        ("lora:rank", "'rank' is not of the form setting=value"),
        ("lora:rank=", "'rank=' is not of the form setting=value"),
        ("=lora", "has no name"),
        ("", "has no name"),
        ("mine=./no/such/folder", "arm 'mine': there is no checkpoint at no/such/folder"),
        ("checkpoint", "method 'checkpoint' needs path"),
    ],
)
def test_a_wrong_arm_is_told_what_is_wrong(text, message):
    with pytest.raises(StudyError) as error:
        parse_arm(text)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["loar", "lora:rnk=8", "lora:rank=x", "mine=/no/such", "=lora", "checkpoint"])
def test_what_is_told_is_one_line(text):
    with pytest.raises(StudyError) as error:
        parse_arm(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("lora:dropout=1.5", "dropout=1.5: expected a number from 0 to below 1"),
        ("full:warmup=3", "warmup=3: expected a number from 0 to below 1"),
        ("full:clip=0", "clip=0: expected a number above 0"),
        ("full:learning_rate=0", "learning_rate=0: expected a number above 0"),
        ("lora:rank=8,rank=16", "rank is set twice"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(arm, message):
    with pytest.raises(StudyError, match=message):
        parse_arm(arm)
