"""A study is what its user wrote, or an error that says where it is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import finetrap
from finetrap.config import DEFAULT_ARMS, Study, load_study, make_study
from finetrap.errors import StudyError
from finetrap.method import default_settings


def study(**values):
    return make_study({"models": "tiny", "tasks": "gsm8k", **values})


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def settings_of(a_study, name):
    return next(arm.settings for arm in a_study.parsed_arms() if arm.name == name)


# --- values ----------------------------------------------------------------------------------------------------------


def test_a_study_has_the_six_default_arms():
    assert study().arms == DEFAULT_ARMS == ("constant", "zero_shot", "few_shot", "full", "lora", "dora")


def test_default_stands_for_the_six_arms_among_others():
    assert study(arms=["default", "x=lora:rank=4"]).arms == (*DEFAULT_ARMS, "x=lora:rank=4")


@pytest.mark.parametrize("arms", [["lora"], ["lora", "zero_shot"], ["constant"], "few_shot", ["zero_shot=zero_shot"]])
def test_the_reference_arms_are_always_there(arms):
    parsed = [(arm.name, arm.method) for arm in study(arms=arms).parsed_arms()]
    assert parsed.count(("constant", "constant")) == parsed.count(("zero_shot", "zero_shot")) == 1


def test_one_name_stands_for_a_list_of_one():
    assert study(tasks="gsm8k").tasks == ("gsm8k",)
    assert [model.name for model in study(models="tiny").models] == ["tiny"]


def test_a_model_may_have_settings():
    (model,) = study(models=[{"name": "tiny", "chat": False}]).models
    assert (model.name, model.chat) == ("tiny", False)


def test_a_number_of_seeds_stands_for_the_first_ones():
    assert study(seeds=3).seeds == (0, 1, 2)
    assert study(seeds=[5, 7]).seeds == (5, 7)


def test_a_study_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        study().margin = 0.5


def test_a_study_survives_being_written_and_read():
    one = study(arms=["default", "x=lora:rank=4"], seeds=[1, 2], models=[{"name": "tiny", "chat": False}])
    assert Study.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize("name", ["full", "lora", "dora"])
def test_the_study_s_settings_fill_the_arms_that_do_not_set_them(name):
    settings = settings_of(study(learning_rate=3e-4, epochs=7, batch_size=5), name)
    assert (settings["learning_rate"], settings["epochs"], settings["batch_size"]) == (3e-4, 7, 5)


def test_an_arm_s_own_setting_stands_against_the_study_s():
    arms = ["x=full:learning_rate=1e-3", "lora: learning_rate = 2e-3, rank=4"]
    one = study(arms=arms, learning_rate=3e-4, epochs=7)
    assert [settings_of(one, name)["learning_rate"] for name in ("x", "lora")] == [1e-3, 2e-3]
    assert settings_of(one, "x")["epochs"] == 7


def test_without_a_rate_of_the_study_each_method_keeps_its_own():
    for name in ("full", "lora", "dora"):
        assert settings_of(study(), name) == default_settings(name)


def test_arms_that_do_not_train_take_no_rate():
    assert settings_of(study(learning_rate=3e-4), "few_shot") == {"shots": 5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "tiny"}, "unknown setting 'model'; did you mean 'models'?"),
        ({"tasks": "gsm8"}, "unknown task 'gsm8'; did you mean 'gsm8k'?"),
        ({"retention": ["helaswag"]}, "unknown task 'helaswag'; did you mean 'hellaswag'?"),
        ({"arms": ["loar"]}, "unknown method 'loar'; did you mean 'lora'?"),
        ({"arms": ["lora", "lora:rank=4"]}, "two arms are called 'lora'"),
        ({"arms": ["zero_shot", "zero_shot"]}, "two arms are called 'zero_shot'"),
        ({"arms": ["zero_shot=lora"]}, "the arm 'zero_shot' has to be the method zero_shot"),
        ({"tasks": "svamp"}, "task 'svamp' has no train split"),
        ({"tasks": "wikitext2"}, "task 'wikitext2' measures general text"),
        ({"tasks": ["gsm8k", "gsm8k"]}, "the task 'gsm8k' is named twice; leave one out"),
        ({"models": ["tiny", "tiny"]}, "the model 'tiny' is named twice; leave one out"),
        ({"models": []}, "'models'"),
        ({"seeds": [1, 1]}, "write different numbers"),
        ({"seeds": [-1]}, "not negative"),
        ({"seeds": 0}, "'seeds'"),
        ({"seeds": True}, "'seeds'"),
        ({"learning_rate": 0}, "'learning_rate': input should be greater than 0, got 0"),
        ({"learning_rate": float("nan")}, "'learning_rate'"),
        ({"margin": 2}, "'margin': input should be less than 1, got 2"),
        ({"limit_test": 5}, "fewer than 10 test items"),
        ({"device": "gpu"}, "unknown device 'gpu'; did you mean 'cpu'?"),
        ({"dtype": "float16"}, "'dtype'"),
        ({"keep": "some"}, "'keep'"),
        ({"models": [{"name": "tiny", "chatt": True}]}, "'models.0.chatt'"),
        ({"name": ""}, "'name'"),
    ],
)
def test_a_wrong_study_is_told_what_is_wrong(values, message):
    with pytest.raises(StudyError) as error:
        study(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["models", "tasks"])
def test_what_is_missing_is_named(key):
    values = {"models": "tiny", "tasks": "gsm8k"}
    del values[key]
    with pytest.raises(StudyError, match=f"'{key}' is missing"):
        make_study(values)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_study_file_names_its_study(tmp_path):
    assert load_study(written(tmp_path, "models: tiny\ntasks: [gsm8k]\n")).name == "mine"


def test_a_rate_may_be_written_without_a_point(tmp_path):
    path = written(tmp_path, "models: tiny\ntasks: gsm8k\nlearning_rate: 1e-4\n")
    assert load_study(path).learning_rate == 1e-4


def test_the_command_line_overrides_the_file(tmp_path):
    path = written(tmp_path, "models: tiny\ntasks: gsm8k\nepochs: 2\n")
    assert load_study(path, {"epochs": 5}).epochs == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: tiny\ntasks: gsm8k\n\nepoch: 3\n", ":4: unknown setting 'epoch'; did you mean 'epochs'?"),
        ("models: tiny\ntasks: gsm8k\nepochs: many\n", ":3: 'epochs'"),
        ("models: tiny\ntasks: gsm8k\nseeds:\n  - 1\n  - two\n", ":5: 'seeds.1'"),
        ("models:\n  - tiny\n  - name: other\n    chat: perhaps\ntasks: gsm8k\n", ":4: 'models.1.chat'"),
        ("models: tiny\n", ":1: 'tasks' is missing"),
        ("models: [tiny\ntasks: gsm8k\n", "not valid YAML"),
        ("models: tiny\ntasks: 'gsm8k\n", "not valid YAML"),
        ("- models\n", "expected `key: value` lines"),
        ("", "expected `key: value` lines"),
        ("models: !!python/object/apply:os.getcwd []\ntasks: gsm8k\n", ":1: not valid YAML"),
    ],
)
def test_a_wrong_study_file_is_told_what_is_wrong_and_where(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("models: tiny\ntasks: gsm8\n", 2),
        ("models: tiny\ntasks: gsm8k\nretention:\n  - wikitext2\n  - helaswag\n", 5),
        ("models: tiny\ntasks: gsm8k\narms:\n  - default\n  - x=lora:rnk=4\n", 5),
        ("models: tiny\narms: loar\ntasks: gsm8k\n", 2),
        ("models: tiny\ntasks: gsm8k\ndevice: gpu\n", 3),
    ],
)
def test_a_name_that_does_not_exist_is_told_with_its_line(tmp_path, text, line):
    path = written(tmp_path, text)
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert str(error.value).startswith(f"{path}:{line}: ")


def test_what_is_wrong_with_the_study_as_a_whole_is_told_with_its_file(tmp_path):
    path = written(tmp_path, "models: tiny\ntasks: gsm8k\narms: [lora, lora]\n")
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert str(error.value).startswith(f"{path}: two arms are called 'lora'")


def test_a_wrong_override_is_not_said_to_stand_in_the_file(tmp_path):
    path = written(tmp_path, "models: tiny\ntasks: gsm8k\nepochs: 2\n")
    for wrong in ({"epochs": "many"}, {"tasks": ["gsm8"]}, {"arms": ["loar"]}):
        with pytest.raises(StudyError) as error:
            load_study(path, wrong)
        assert str(path) not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"there is no study file .*none\.yaml"):
        load_study(tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00models")
    with pytest.raises(StudyError, match="cannot read the study file"):
        load_study(path)


# --- what is not loaded ----------------------------------------------------------------------------------------------


def test_a_study_is_checked_before_torch_and_transformers_are_loaded():
    code = (
        "import sys\n"
        "from finetrap.config import make_study\n"
        "make_study({'models': 'tiny', 'tasks': ['gsm8k', 'arc_easy'], 'arms': ['default', 'x=lora:rank=4']})\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(finetrap.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_out_of_distribution_task_is_scored_like_the_target():
    assert study(tasks="gsm8k", out_of_distribution="svamp").out_of_distribution == ("svamp",)
    with pytest.raises(StudyError, match="'wikitext2' is scored by text, and the target by generate"):
        study(tasks="gsm8k", out_of_distribution="wikitext2")


@pytest.mark.parametrize("name", ["$x$", "[/x]", "a b", "x" * 61])
def test_an_arm_name_that_charts_and_bars_would_read_as_markup_is_refused(name):
    with pytest.raises(StudyError, match="write letters, digits"):
        study(arms=f"{name}=lora")


@pytest.mark.parametrize(("text", "size"), [("300MB", 300_000_000), ("1.5GiB", 1_610_612_736), ("64k", 64_000), (5, 5)])
def test_a_size_is_read_as_people_write_it(text: object, size: int) -> None:
    assert make_study({"models": "m", "tasks": "gsm8k", "max_size": text}).max_size == size


@pytest.mark.parametrize("text", ["big", "300XB", "MB", -1, 0])
def test_what_is_no_size_is_said_to_be_none(text: object) -> None:
    with pytest.raises(StudyError, match="size"):
        make_study({"models": "m", "tasks": "gsm8k", "max_size": text})


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [
        ({}, (0,)),
        ({"seeds": 3}, (0, 1, 2, 3, 4)),
        ({"seeds": [7, 1]}, (7, 1, 0, 2, 3)),
        ({"seeds": 7}, (0, 1, 2, 3, 4, 5, 6)),
        ({"seeds": 3, "shot_draws": 3}, (0, 1, 2)),
        ({"shot_draws": 4}, (0, 1, 2, 3)),
    ],
)
def test_shots_are_drawn_five_times_where_there_are_several_seeds(
    settings: dict[str, object], seeds: tuple[int, ...]
) -> None:
    assert make_study({"models": "m", "tasks": "gsm8k", **settings}).shot_seeds == seeds
