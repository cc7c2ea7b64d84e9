"""A file of the user's own adds methods, tasks and scorers; what it breaks is told with its line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_rows import rows, write
from safetensors.torch import load_file
from support import Place, called, check, contents, error_of, study_file, trial_folder, written_at

from finetrap import OwnData, StudyError, load_plugin
from finetrap.method import is_trained, method
from finetrap.registry import Registry
from finetrap.rows.own_data import own_task
from finetrap.scoring import make_scorer, scorer
from finetrap.task import get_task, task

pytestmark = pytest.mark.usefixtures("undrawn")

PLUGIN = '''"""Methods, a task and a scorer."""

from dataclasses import dataclass

from finetrap.method import Method, Training, method, trains
from finetrap.scoring import Scorer, Verdict, scorer
from finetrap.task import Example, Task, task


@method
def one_shot(shots: int = 1) -> Method:
    """One solved example."""
    return Method(shots=shots)


@trains(learning_rate=1e-3)
def bias(*, training: Training) -> Method:
    """Train the norms alone."""

    def prepare(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    return Method(training=training, prepare=prepare)


@task
def echo() -> Task:
    """Say it again."""

    def load(split):
        words = ("abcd", "efgh", "ijkl", "mnop", "qrst")
        made = [f"{a} {b} {c}" for a in words for b in words for c in words]
        return tuple(Example(f"{split}-{i}", f"{split} {q}", q, q) for i, q in enumerate(made))

    def score(text, gold):
        right = text.strip() == gold
        return Verdict(text or None, correct=right, strict=right, anywhere=gold in text, formatted=True)

    return Task("echo", "words to say again", "generate", "MIT", load, score=score, rule="the same", max_new_tokens=4)


@scorer
def first_letter(answers) -> Scorer:
    """The first letter is right."""

    def score(text, gold):
        right = text[:1] == gold[:1]
        return Verdict(text[:1] or None, correct=right, strict=right, anywhere=right, formatted=True)

    return Scorer(score, rule="the first letter", asks="a letter")
'''


@pytest.fixture(autouse=True)
def no_plugin_stays() -> Iterator[None]:
    """What a test registers is forgotten."""
    yield
    for registry in Registry._all:
        for plugin in list(registry._plugins.values()):
            registry.forget(plugin)


def registered() -> dict[str, list[str]]:
    return {registry.kind: registry.names() for registry in (method, task, scorer)}


def plugin_at(folder: Path, text: str = PLUGIN, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def forget_all() -> None:
    """As another process begins."""
    for registry in Registry._all:
        for plugin in list(registry._plugins.values()):
            registry.forget(plugin)


# --- what a plugin adds ----------------------------------------------------------------------------------------------


def test_a_plugin_adds_methods_tasks_and_scorers(tmp_path: Path) -> None:
    before = registered()
    plugin = load_plugin(plugin_at(tmp_path))
    added = {kind: sorted(set(names) - set(before[kind])) for kind, names in registered().items()}
    assert added == {"method": ["bias", "one_shot"], "task": ["echo"], "scorer": ["first_letter"]}
    assert (is_trained("bias"), is_trained("one_shot")) == (True, False)
    assert method.plugin_of("bias") == plugin
    assert method.plugin_of("lora") is None


def test_lists_hold_what_a_plugin_brings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plugin = plugin_at(tmp_path)
    methods = json.loads(called(capsys, "methods", "--plugin", plugin, "--json").out)
    tasks = json.loads(called(capsys, "tasks", "--plugin", plugin, "--json").out)
    assert {"bias", "one_shot"} <= {row["method"] for row in methods}
    assert next(row["settings"] for row in methods if row["method"] == "bias").startswith("learning_rate=0.001")
    assert "echo" in {row["task"] for row in tasks}


def test_check_data_scores_with_a_plugin(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_folder: Path) -> None:
    data = write(tmp_path / "mine.csv", rows(60))
    options = ["--plugin", plugin_at(tmp_path), "--score", "first_letter", "--model", tiny_folder, "--json"]
    done = called(capsys, "check-data", data, *options)
    assert done.code == 0
    assert json.loads(done.out)["kind"] == "generation, scored by first_letter"


def test_a_plugin_may_hold_dataclasses_with_annotations_as_text(tmp_path: Path) -> None:
    text = "from __future__ import annotations\n" + PLUGIN.partition("\n\n")[2].replace(
        "@method\n", "@dataclass\nclass Pair:\n    a: int\n\n\n@method\n", 1
    )
    load_plugin(plugin_at(tmp_path, text))
    assert "bias" in method.names()


def test_a_plugin_that_was_edited_can_be_loaded_again(tmp_path: Path) -> None:
    load_plugin(plugin_at(tmp_path))
    first = get_task("echo").version
    load_plugin(plugin_at(tmp_path, PLUGIN.replace("one_shot", "two_shots").replace("Say it again", "Again")))
    assert "two_shots" in method.names()
    assert "one_shot" not in method.names()
    assert get_task("echo").version != first


def test_what_scores_own_data_changes_their_version_and_an_unrelated_plugin_does_not(tmp_path: Path) -> None:
    load_plugin(plugin_at(tmp_path))
    data = OwnData(train=write(tmp_path / "mine.csv", rows(60)), score="first_letter")
    plain, version = own_task(OwnData(train=data.train)).version, own_task(data).version
    load_plugin(plugin_at(tmp_path, PLUGIN + "# edited\n"))
    assert own_task(data).version != version
    assert own_task(OwnData(train=data.train)).version == plain


# --- studies ---------------------------------------------------------------------------------------------------------

ARMS = ["one_shot", "mine=bias:epochs=2", "lora:rank=2"]


@pytest.fixture(scope="module")
def study(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin, a study file and, in out, the study that ran; not to be changed."""
    from finetrap.config import load_study

    folder = tmp_path_factory.mktemp("study")
    load_plugin(plugin_at(folder))
    path = study_file(folder, tiny_folder, tasks=["echo"], arms=ARMS, retention=[], keep="all")
    load_study(path).run(folder / "out")
    forget_all()
    return folder


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "copied"))


def test_a_study_runs_what_a_plugin_brings(study: Path) -> None:
    results = json.loads((study / "out" / "results.json").read_text())
    assert [arm["arm"] for arm in results["arms"]] == ["constant", "zero_shot", "one_shot", "mine", "lora"]
    assert {arm["rule"] for arm in results["arms"]} == {"the same"}
    assert results["failures"] == []


def test_the_same_study_again_runs_nothing(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    before = written_at(copied / "out")
    done = called(capsys, "run", copied / "study.yaml", "--plugin", copied / "mine.py", "--out", copied / "out")
    assert done.code == 0, done
    assert written_at(copied / "out") == before


def test_an_edited_plugin_trains_and_asks_again_and_an_unrelated_one_does_not(
    capsys: pytest.CaptureFixture[str], copied: Path, tiny_folder: Path
) -> None:
    text = PLUGIN.partition("@task")[0]
    methods = plugin_at(copied, text.replace("one_shot", "shot"), "methods.py")
    settings = {"tasks": ["arc_easy"], "arms": ["bias", "lora:rank=2"], "retention": []}
    arguments = ["run", study_file(copied, tiny_folder, **settings), "--out", copied / "new", "--plugin", methods]
    assert called(capsys, *arguments).code == 0
    lora, bias = (trial_folder(copied / "new", arm) for arm in ("lora", "bias"))
    before = written_at(copied / "new")
    other = plugin_at(copied, "from finetrap.method import *\n@method\ndef other(): return Method()\n", "other.py")
    assert called(capsys, *arguments, "--plugin", other).code == 0
    assert written_at(copied / "new") == before
    methods.write_text(methods.read_text() + "# edited\n")
    assert called(capsys, *arguments).code == 0
    new = {path for path in written_at(copied / "new") if path not in before}
    assert len(new) == 1
    assert bias.name not in str(new)
    assert "--bias--" in str(new)
    assert lora.is_dir()


def test_compare_takes_arms_and_scorers_of_a_plugin(
    capsys: pytest.CaptureFixture[str], place: Place, study: Path
) -> None:
    write(place.folder / "mine.csv", rows(60))
    arguments = place.own("mine.csv", "--score", "first_letter", "--arm", "one_shot", "--max-new-tokens", 4)
    done = called(capsys, *arguments, "--plugin", study / "mine.py", "--dry-run", "--json")
    assert done.code == 0
    planned = json.loads(done.out)["trials"]
    assert [trial["trial"]["arm"] for trial in planned] == ["constant", "zero_shot", "one_shot"]
    assert [bool(trial["trial"]["plugin"]) for trial in planned] == [False, False, True]


def test_status_needs_no_plugin(capsys: pytest.CaptureFixture[str], study: Path) -> None:
    done = called(capsys, "status", study / "out", "--json")
    assert done.code == 0
    assert {trial["state"] for trial in json.loads(done.out)["trials"]} == {"done"}


@pytest.mark.parametrize("command", ["status", "report"])
def test_status_and_report_take_the_plugin(capsys: pytest.CaptureFixture[str], copied: Path, command: str) -> None:
    done = called(capsys, command, copied / "out", "--plugin", copied / "mine.py")
    assert (done.code, done.err) == (0, "")


def test_a_report_without_the_plugin_says_what_to_do(
    capsys: pytest.CaptureFixture[str], place: Place, study: Path
) -> None:
    done = check(capsys, place, ["report", study / "out"])
    assert done.err.count("\n") == 1
    assert "unknown method 'one_shot'" in done.err
    assert "If a plugin brings it, name that with --plugin." in done.err


# --- what a plugin breaks --------------------------------------------------------------------------------------------

HEAD = "from finetrap.method import *\nfrom finetrap.task import *\nfrom finetrap.scoring import *\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("@method\ndef lora(): return Method()\n", "defines the method 'lora', and there is one already"),
        ("@trains(learning_rate=1)\ndef zero_shot(*, training): ...\n", "defines the method 'zero_shot'"),
        ("@task\ndef gsm8k(): ...\n", "defines the task 'gsm8k', and there is one already"),
        ("@scorer\ndef exact(answers): ...\n", "defines the scorer 'exact', and there is one already"),
        (
            "@method\ndef mine(): return Method()\ndef (\n",
            "mine.py:6 raised SyntaxError: invalid syntax",
        ),
        ("@method\ndef mine(): return Method()\n1 / 0\n", "mine.py:6 raised ZeroDivisionError: division by zero."),
        ("@method\ndef mine(): return Method()\nimport sys; sys.exit(3)\n", "mine.py:6 raised SystemExit: 3."),
        ("import nothing_such\n", "mine.py:4 raised ModuleNotFoundError: No module named 'nothing_such'."),
        ("raise ValueError\n", "mine.py:4 raised ValueError: no message."),
        ("raise ValueError('one\\ntwo')\n", "mine.py:4 raised ValueError: one."),
        ("x = 1\n", "mine.py defines no @method, @task or @scorer."),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_told_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], place: Place, text: str, says: str
) -> None:
    before = registered()
    plugin_at(place.folder, HEAD + text)
    done = check(capsys, place, ["methods", "--plugin", "mine.py"])
    assert says in error_of(done)
    assert registered() == before
    assert not is_trained("zero_shot")


@pytest.mark.parametrize("name", ["none.py", "mine.txt", "."])
def test_a_plugin_that_is_no_python_file_is_told(capsys: pytest.CaptureFixture[str], place: Place, name: str) -> None:
    plugin_at(place.folder, PLUGIN, "mine.txt")
    done = check(capsys, place, ["tasks", "--plugin", name])
    assert done.err == f"error: there is no plugin {name}; name a Python file.\n"


METHOD = "@method\ndef mine(): {}\n"
TASK = "@task\ndef mine(): {}\n"
SCORER = "@scorer\ndef mine(answers): {}\n"
OWN = ["--train", "mine.csv", "--score", "mine"]
TASK_OF = "return Task('mine', 'x', 'generate', 'MIT', lambda split: {})"


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (METHOD.format("return 1 / 0"), ["--task", "arc_easy", "--arm", "mine"], "mine.py:5 raised ZeroDivisionError"),
        (METHOD.format("pass"), ["--task", "arc_easy", "--arm", "mine"], "the method 'mine' returns NoneType, and has"),
        (
            "@trains(learning_rate=1e-3)\ndef mine(): return Method()\n",
            ["--task", "arc_easy", "--arm", "mine"],
            "raised TypeError: mine() got an unexpected keyword argument 'training'",
        ),
        (
            "@method\ndef mine(deep: bool = False): return Method()\n",
            ["--task", "arc_easy", "--arm", "mine:deep=True"],
            "mine:deep: a setting is an int, a float or a str",
        ),
        (TASK.format("return 1 / 0"), ["--task", "mine"], "mine.py:5 raised ZeroDivisionError"),
        (TASK.format("pass"), ["--task", "mine"], "the task 'mine' returns NoneType, and has to return a Task"),
        (TASK.format(TASK_OF.format("1 / 0")), ["--task", "mine"], "mine.py:5 raised ZeroDivisionError"),
        (SCORER.format("return 1 / 0"), ["--train", "mine.csv", "--score", "mine"], "mine.py:5 raised ZeroDivision"),
        (SCORER.format("return Scorer(lambda text, gold: 1 / 0, rule='none')"), OWN, "mine.py:5 raised ZeroDivision"),
        (SCORER.format("return Scorer(lambda text, gold: text == gold, rule='none')"), OWN, "has to return a Verdict"),
        (SCORER.format("pass"), ["--train", "mine.csv", "--score", "mine"], "the scorer 'mine' returns NoneType"),
    ],
)
def test_what_a_plugin_raises_when_it_is_asked_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, text: str, options: list[str], says: str
) -> None:
    plugin_at(place.folder, HEAD + text)
    write(place.folder / "mine.csv", rows(60))
    assert says in error_of(check(capsys, place, ["compare", "--model", place.model, "--plugin", "mine.py", *options]))


def test_a_setting_without_annotation_has_the_type_of_its_default(tmp_path: Path) -> None:
    from finetrap.method import parse_arm

    load_plugin(plugin_at(tmp_path, HEAD + "@method\ndef mine(shots=3): return Method(shots=shots)\n"))
    assert parse_arm("mine:shots=5").settings == {"shots": 5}


def test_what_a_plugin_raises_in_a_trial_fails_that_trial(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    prepare = "def broken(model): raise ValueError('no such layer')\n"
    trained = "@trains(learning_rate=1)\ndef mine(*, training): return Method(training=training, prepare=broken)\n"
    plugin_at(place.folder, HEAD + prepare + trained)
    path = study_file(place.folder, place.model, arms=["mine"], retention=[])
    done = called(capsys, "run", path, "--plugin", "mine.py", "--out", "out")
    assert done.code == 1
    assert "mine.py:4 raised ValueError: no such layer." in done.out
    failure = json.loads((trial_folder(place.folder / "out", "mine") / "failure.json").read_text())
    assert "Traceback" in failure["traceback"]


COPIES = (
    HEAD
    + """
import copy

def changed(model):
    made = copy.deepcopy(model)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("norm" in name)
    return made

@trains(learning_rate=1e-2)
def mine(*, training): return Method(training=training, prepare=changed)
"""
)


def test_what_a_plugin_prepares_is_what_is_trained_if_it_is_another_model(
    capsys: pytest.CaptureFixture[str], place: Place
) -> None:
    plugin_at(place.folder, COPIES)
    path = study_file(place.folder, place.model, arms=["mine"], retention=[], keep="all")
    done = called(capsys, "run", path, "--plugin", "mine.py", "--out", "out")
    assert done.code == 0, done
    trial = trial_folder(place.folder / "out", "mine")
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (place.model, trial / "artifact"))
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert changed == {name for name in before if "norm" in name}
    record = json.loads((trial / "training.json").read_text())
    assert record["trainable_parameters"] == sum(before[name].numel() for name in changed)


def test_a_scorer_that_raises_on_an_output_fails_the_trials_and_says_where(
    capsys: pytest.CaptureFixture[str], place: Place
) -> None:
    raises = "return Scorer(lambda text, gold: Verdict(gold, *[True] * 4) if text == gold else 1 / 0, rule='none')"
    plugin_at(place.folder, HEAD + SCORER.format(raises))
    write(place.folder / "mine.csv", rows(60))
    arguments = place.own("mine.csv", "--score", "mine", "--arm", "zero_shot", "--max-new-tokens", 4, "--out", "out")
    done = called(capsys, *arguments, "--plugin", "mine.py")
    assert done.code == 1
    failed = [json.loads(path.read_text())["error"] for path in (place.folder / "out").glob("trials/*/failure.json")]
    said = f"the plugin {place.folder / 'mine.py'}:5 raised ZeroDivisionError: division by zero."
    assert failed == [said, said]
    assert not list((place.folder / "out").glob("trials/*/*/result.json"))


def test_a_plugin_s_scorer_may_refuse_an_answer_with_its_line(tmp_path: Path) -> None:
    load_plugin(plugin_at(tmp_path, HEAD + SCORER.format("raise AnswerError(1, 'too short')")))
    data = OwnData(train=write(tmp_path / "mine.csv", rows(60)), score="mine")
    with pytest.raises(StudyError, match=r"mine.csv:3: too short."):
        own_task(data)
    with pytest.raises(StudyError, match="write mine alone"):
        make_scorer("mine:x", ["a"])


def test_a_run_with_a_broken_plugin_leaves_the_folder_as_it_was(
    capsys: pytest.CaptureFixture[str], copied: Path
) -> None:
    before = contents(copied / "out")
    broken = plugin_at(copied, PLUGIN + "1 / 0\n", "broken.py")
    done = called(capsys, "run", copied / "study.yaml", "--plugin", broken, "--out", copied / "out")
    assert done.code == 2
    assert contents(copied / "out") == before
