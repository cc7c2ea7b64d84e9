"""Whatever is wrong with the input: exit code 2, one line that says what, where and how to mend it, nothing left."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from support import Place, called, cases, check, error_of, model_copy, study_file, without_chat_template

from finetrap.store import Store


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran; not to be changed."""
    from finetrap.config import load_study

    folder = tmp_path_factory.mktemp("finished")
    load_study(study_file(folder, tiny_folder, retention=[])).run(folder / "out")
    return folder / "out"


# --- models ----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path) -> Path:
    writer = GGUFWriter(path, "lama")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def unknown_gguf(place: Place) -> list[object]:
    return place.compare(model=write_gguf(place.folder / "model.gguf"))


def truncated_gguf(place: Place) -> list[object]:
    path = write_gguf(place.folder / "model.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    return place.compare(model=path)


def other_file(place: Place) -> list[object]:
    path = place.folder / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    return place.compare(model=path)


def empty_file(place: Place) -> list[object]:
    (place.folder / "model.gguf").touch()
    return place.compare(model=place.folder / "model.gguf")


def pickle_only(place: Place) -> list[object]:
    arguments = place.broken_model("pytorch_model.bin", b"\x80\x02}q\x00.")
    (place.folder / "model" / "model.safetensors").unlink()
    return arguments


def truncated_safetensors(place: Place) -> list[object]:
    whole = (place.model / "model.safetensors").read_bytes()
    return place.broken_model("model.safetensors", whole[: len(whole) // 2])


def other_shape(place: Place) -> list[object]:
    return place.compare(model=model_copy(place.model, place.folder / "model", intermediate_size=48))


def other_family(place: Place) -> list[object]:
    return place.compare(model=model_copy(place.model, place.folder / "model", model_type="lama"))


def empty_folder(place: Place) -> list[object]:
    (place.folder / "model").mkdir()
    return place.compare(model=place.folder / "model")


def no_chat_template(place: Place) -> list[object]:
    return place.compare("--chat", model=without_chat_template(place.model, place.folder / "model"))


@cases(
    ("no such folder", lambda p: p.compare(model="./none"), "there is no model at ./none."),
    ("no such GGUF file", lambda p: p.compare(model="none.gguf"), "there is no model at none.gguf."),
    ("folder without config", empty_folder, "has no config.json"),
    ("config is not JSON", lambda p: p.broken_model("config.json", "{"), "config.json cannot be read"),
    ("config is not text", lambda p: p.broken_model("config.json", b"\xff\xfe"), "config.json cannot be read"),
    ("config is a list", lambda p: p.broken_model("config.json", "[]"), "config.json"),
    ("pickle only", pickle_only, "save_pretrained("),
    ("no weights", lambda p: p.broken_model("model.safetensors", None), "has no weights (*.safetensors)"),
    ("truncated weights", truncated_safetensors, "truncated safetensors file"),
    ("empty weights", lambda p: p.broken_model("model.safetensors", b""), "truncated safetensors file"),
    ("no tokenizer", lambda p: p.broken_model("tokenizer.json", None), "has no tokenizer"),
    ("tokenizer is not JSON", lambda p: p.broken_model("tokenizer.json", "{"), "tokenizer.json cannot be read"),
    ("broken settings", lambda p: p.broken_model("tokenizer_config.json", "{"), "tokenizer_config.json cannot be read"),
    ("truncated GGUF", truncated_gguf, "truncated GGUF file"),
    ("empty GGUF", empty_file, "is not a GGUF file"),
    ("not GGUF", other_file, "is not a GGUF file"),
    (
        "preset not fetched",
        lambda p: p.compare(model="smollm2-135m-instruct-q4"),
        "finetrap models get smollm2-135m-instruct-q4",
    ),
    (
        "preset misspelt",
        lambda p: p.compare(model="smolm2-135m-instruct-q4"),
        "unknown model 'smolm2-135m-instruct-q4'; did you mean 'smollm2-135m-instruct-q4'?",
    ),
    (
        "preset to get misspelt",
        lambda p: ["models", "get", "smolm2-135m"],
        "unknown model preset 'smolm2-135m'; did you mean 'smollm2-135m'?",
    ),
    ("not on the Hub", lambda p: p.compare(model="nobody/nothing"), "the Hub did not give 'nobody/nothing'"),
    ("preset of the Hub", lambda p: p.compare(model="qwen2.5-0.5b"), "the Hub did not give 'Qwen/Qwen2.5-0.5B'"),
    ("no Hub id", lambda p: p.compare(model="a b/c"), "the Hub did not give 'a b/c'"),
    ("name too long for a file", lambda p: p.compare(model="a" * 300), "unknown model 'aaa"),
    ("no such home", lambda p: p.compare(model="~nobody-here/model"), "there is no model at ~nobody-here/model."),
    ("no chat template", no_chat_template, "has no chat template"),
)
def test_a_model_that_cannot_be_used_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Callable[[Place], list[object]], says: str
) -> None:
    assert says in error_of(check(capsys, place, arguments(place)))


@cases(
    ("config of no known family", other_family, "lama"),
    ("config of another size", other_shape, "its weights have other shapes than its config.json says"),
    ("broken tokenizer", lambda p: p.broken_model("tokenizer.json", "{}"), "KeyError 'added_tokens'"),
    ("GGUF of no known family", unknown_gguf, "cannot be loaded as a causal language model"),
)
def test_a_model_that_cannot_be_loaded_is_told_in_the_last_line(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Callable[[Place], list[object]], says: str
) -> None:
    done = check(capsys, place, arguments(place))
    *progress, line = done.err.splitlines()
    assert line.startswith("error: model '")
    assert says in line
    assert not any("error" in said for said in progress)


# --- arms, tasks and settings ----------------------------------------------------------------------------------------


def checkpoint(place: Place, *files: str) -> list[object]:
    """An arm that is a folder holding these files."""
    folder = place.folder / "checkpoint"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"{}")
    return place.compare("--arm", f"mine={folder}")


def checkpoint_file(place: Place) -> list[object]:
    (place.folder / "tune.bin").write_bytes(b"\x80")
    return place.compare("--arm", "mine=tune.bin")


@cases(
    ("task misspelt", lambda p: p.compare(task="gsm8"), "unknown task 'gsm8'; did you mean 'gsm8k'?"),
    ("task of text", lambda p: p.compare(task="wikitext2"), "measures general text"),
    ("task for tests only", lambda p: p.compare(task="svamp"), "task 'svamp' has no train split"),
    ("retention task as target", lambda p: p.compare(task="hellaswag"), "task 'hellaswag' has no train split"),
    ("method misspelt", lambda p: p.compare("--arm", "loar"), "unknown method 'loar'; did you mean 'lora'?"),
    ("setting misspelt", lambda p: p.compare("--arm", "lora:rnk=2"), "did you mean 'rank'?"),
    ("setting of another method", lambda p: p.compare("--arm", "few_shot:rank=2"), "unknown setting"),
    ("setting of the wrong type", lambda p: p.compare("--arm", "lora:rank=two"), "lora:rank=two: expected int"),
    ("setting negative", lambda p: p.compare("--arm", "lora:rank=-2"), "not negative"),
    ("setting nan", lambda p: p.compare("--arm", "full:learning_rate=nan"), "a finite number"),
    ("setting infinite", lambda p: p.compare("--arm", "full:learning_rate=inf"), "a finite number"),
    ("rank zero", lambda p: p.compare("--arm", "lora:rank=0"), "at least 1"),
    ("rate zero", lambda p: p.compare("--arm", "lora:learning_rate=0"), "learning_rate=0: expected"),
    ("clip zero", lambda p: p.compare("--arm", "full:clip=0"), "clip=0: expected"),
    ("dropout above one", lambda p: p.compare("--arm", "lora:dropout=1.5"), "dropout=1.5: expected"),
    ("setting without a value", lambda p: p.compare("--arm", "lora:rank"), "not of the form setting=value"),
    ("arm without a name", lambda p: p.compare("--arm", "=lora"), "has no name"),
    ("arm empty", lambda p: p.compare("--arm", ""), "has no name"),
    ("two of a name", lambda p: p.compare("--arm", "lora", "--arm", "lora:rank=2"), "two arms are called 'lora'"),
    ("zero_shot that is not", lambda p: p.compare("--arm", "zero_shot=lora"), "'zero_shot' has to be the method"),
    ("constant that is not", lambda p: p.compare("--arm", "constant=lora"), "'constant' has to be the method"),
    ("checkpoint not there", lambda p: p.compare("--arm", "mine=./none"), "there is no checkpoint at none"),
    ("checkpoint without a path", lambda p: p.compare("--arm", "mine=checkpoint"), "needs path"),
    ("checkpoint empty", lambda p: checkpoint(p), "neither a PEFT adapter (adapter_config.json) nor a model"),
    ("checkpoint with a long name", lambda p: p.compare("--arm", f"mine={'a' * 300}"), "unknown method 'aaa"),
    ("checkpoint named by a setting", lambda p: p.compare("--arm", "mine=checkpoint:path=none"), "no checkpoint"),
    ("checkpoint a pickle", lambda p: checkpoint(p, "adapter_config.json", "adapter_model.bin"), "no weights"),
    ("checkpoint damaged", lambda p: checkpoint(p, "config.json", "model.safetensors"), "truncated safetensors file"),
    ("checkpoint a file", checkpoint_file, "neither a PEFT adapter (adapter_config.json) nor a model"),
    ("too few test items", lambda p: p.compare("--limit-test", 9), "fewer than 10 test items"),
    ("no training items", lambda p: p.compare("--limit-train", 0), "'limit_train'"),
    ("rate of all zero", lambda p: p.compare("--learning-rate", 0), "'learning_rate'"),
    ("rate of all nan", lambda p: p.compare("--learning-rate", "nan"), "'learning_rate'"),
    ("more shots than train", lambda p: p.compare("--limit-train", 4), "5 shots asked for, but train has 4 examples"),
    ("device unknown", lambda p: p.compare("--device", "gpu"), "unknown device 'gpu'; did you mean 'cpu'?"),
    ("device without number", lambda p: p.compare("--device", "cuda:"), "unknown device 'cuda:'"),
)
def test_arms_tasks_and_settings_that_cannot_be_are_told(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Callable[[Place], list[object]], says: str
) -> None:
    assert says in error_of(check(capsys, place, arguments(place)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    done = check(capsys, place, place.compare("--device", "cuda"))
    assert done.err == "error: device 'cuda' is not on this machine; there is: cpu.\n"


# --- study files -----------------------------------------------------------------------------------------------------


def raw(content: bytes) -> Callable[[Place], list[object]]:
    def arguments(place: Place) -> list[object]:
        (place.folder / "mine.yaml").write_bytes(content)
        return ["run", place.folder / "mine.yaml"]

    return arguments


@cases(
    ("not there", lambda p: ["run", "none.yaml"], "there is no study file none.yaml"),
    ("a folder", lambda p: ["run", p.folder], "cannot read the study file"),
    ("not text", raw(b"\xff\xfe\x00models"), "cannot read the study file"),
    ("not YAML", raw(b"models: [a\ntasks: gsm8k\n"), "mine.yaml:2: not valid YAML"),
    ("a character that YAML forbids", raw(b"models: a\x00b\n"), "not valid YAML"),
    ("a list", raw(b"- models\n"), "expected `key: value` lines"),
    ("empty", raw(b""), "expected `key: value` lines"),
    ("code", raw(b"models: !!python/object/apply:os.getcwd []\n"), "mine.yaml:1: not valid YAML"),
    ("without a model", raw(b"tasks: gsm8k\n"), "'models' is missing"),
    ("unknown key", lambda p: p.run("epoch: 3\n"), "mine.yaml:3: unknown setting 'epoch'; did you mean 'epochs'?"),
    ("wrong type", lambda p: p.run("\nepochs: many\n"), "mine.yaml:4: 'epochs'"),
    ("wrong type in a list", lambda p: p.run("seeds:\n - 1\n - two\n"), "mine.yaml:5: 'seeds.1'"),
    (
        "wrong type in a model",
        raw(b"tasks: gsm8k\nmodels:\n - name: x\n   chat: perhaps\n"),
        "mine.yaml:4: 'models.0.chat'",
    ),
    (
        "unknown key of a model",
        raw(b"tasks: gsm8k\nmodels:\n - name: x\n   chatt: yes\n"),
        "mine.yaml:4: unknown setting 'models.0.chatt'; did you mean 'chat'?",
    ),
    ("a key that is a number", lambda p: p.run("3: many\n"), "mine.yaml:3: unknown setting '3'"),
    ("a seed negative", lambda p: p.run("seeds: [-1]\n"), "not negative"),
    ("no seeds", lambda p: p.run("seeds: 0\n"), "mine.yaml:3: 'seeds'"),
    ("a seed twice", lambda p: p.run("seeds: [1, 1]\n"), "write different numbers"),
    ("a model twice", lambda p: p.run(f"models: [{p.model}, {p.model}]\n"), "named twice"),
    ("an arm that cannot be", lambda p: p.run("arms:\n  - lora:rank=0\n"), "mine.yaml:4: lora:rank=0: expected"),
    ("a margin above one", lambda p: p.run("margin: 2\n"), "mine.yaml:3: 'margin'"),
)
def test_a_study_file_that_cannot_be_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Callable[[Place], list[object]], says: str
) -> None:
    assert says in error_of(check(capsys, place, arguments(place)))


# --- what the command line itself refuses ----------------------------------------------------------------------------


@cases(
    ("option misspelt", lambda p: p.compare("--limit-tests", 10), "--limit-test"),
    ("command misspelt", lambda p: ["comapre"], "compare"),
    ("no model", lambda p: ["compare", "--task", "gsm8k"], "--model"),
    ("no study file", lambda p: ["run"], "STUDY.yaml"),
    ("dtype unknown", lambda p: p.compare("--dtype", "float16"), "float32"),
    ("weights to keep unknown", lambda p: p.compare("--keep", "some"), "best"),
    ("seeds negative", lambda p: p.compare("--seeds", -1), "--seeds"),
    ("seeds no number", lambda p: p.compare("--seeds", "two"), "--seeds"),
    ("no passes", lambda p: p.compare("--epochs", 0), "--epochs"),
    ("rate no number", lambda p: p.compare("--learning-rate", "fast"), "--learning-rate"),
)
def test_a_wrong_use_of_the_command_line_names_what_is_right(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Callable[[Place], list[object]], says: str
) -> None:
    done = check(capsys, place, arguments(place))
    assert says in done.err


# --- folders ---------------------------------------------------------------------------------------------------------


def of_another_study(place: Place) -> list[object]:
    folder = place.folder / "out"
    folder.mkdir()
    study_file(folder, "some/model", tasks=["gsm8k"])
    return place.compare("--out", folder)


def a_file(place: Place) -> list[object]:
    (place.folder / "out").write_text("mine")
    return place.compare("--out", "out")


def below_a_file(place: Place) -> list[object]:
    (place.folder / "out").write_text("mine")
    return place.compare("--out", "out/study")


def of_something_else(place: Place) -> list[object]:
    (place.folder / "out").mkdir()
    (place.folder / "out" / "thesis.txt").write_text("mine")
    return place.compare("--out", "out")


def with_a_damaged_study(place: Place) -> list[object]:
    (place.folder / "out").mkdir()
    (place.folder / "out" / "study.yaml").write_text("models: [")
    return place.compare("--out", "out")


@cases(
    ("of another study", of_another_study, "belongs to another study ('study': some/model on gsm8k)"),
    ("a file", a_file, "out is a file"),
    ("below a file", below_a_file, "cannot be written to"),
    ("of something else", of_something_else, "is not empty and no study's folder"),
    ("of a damaged study", with_a_damaged_study, "study.yaml:1: not valid YAML"),
    ("name too long", lambda p: p.compare("--out", "a" * 300), "cannot be written to"),
)
def test_a_folder_that_cannot_be_written_to_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, arguments: Callable[[Place], list[object]], says: str
) -> None:
    assert says in error_of(check(capsys, place, arguments(place)))


@pytest.mark.parametrize("command", ["status", "report"])
@cases(
    ("not there", lambda p: ["none"], "there is no folder none"),
    ("a file", lambda p: [p.model / "config.json"], "there is no folder"),
    ("no study's", lambda p: [p.model], "is not a study's folder (it has no study.yaml)"),
)
def test_a_folder_that_no_study_wrote_is_told(
    capsys: pytest.CaptureFixture[str],
    place: Place,
    arguments: Callable[[Place], list[object]],
    says: str,
    command: str,
) -> None:
    assert says in error_of(check(capsys, place, [command, *arguments(place)]))


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_study_that_never_started_is_told(capsys: pytest.CaptureFixture[str], place: Place, command: str) -> None:
    study_file(place.folder, place.model)
    done = called(capsys, command, place.folder)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "has not started; run it" in done.err


@pytest.mark.parametrize(
    ("command", "damaged"),
    [
        ("status", "plan.json"),
        ("status", "trials/*lora*/training.json"),
        ("status", "trials/*lora*/*/result.json"),
        ("report", "study.yaml"),
        ("report", "plan.json"),
        ("report", "trials/*lora*/training.json"),
        ("report", "trials/*lora*/train_log.jsonl"),
        ("report", "trials/*lora*/*/result.json"),
        ("report", "trials/*lora*/*/rows.jsonl.gz"),
    ],
)
@pytest.mark.parametrize("content", [b'{"half', b"\xff\xfe\x00"], ids=["half", "no_text"])
def test_a_damaged_record_is_named(
    capsys: pytest.CaptureFixture[str], place: Place, finished: Path, command: str, damaged: str, content: bytes
) -> None:
    shutil.copytree(finished, place.folder / "out")
    (path,) = (place.folder / "out").glob(damaged)
    path.write_bytes(content)
    assert path.name in error_of(check(capsys, place, [command, "out"]))


def test_a_damaged_record_stops_a_run_before_it_is_built_upon(
    capsys: pytest.CaptureFixture[str], place: Place, finished: Path
) -> None:
    shutil.copytree(finished, place.folder / "out")
    (path,) = (place.folder / "out").glob("trials/*lora*/*/result.json")
    path.write_text("{}")
    done = check(capsys, place, ["run", study_file(place.folder, place.model, retention=[]), "--out", "out"])
    assert str(path.relative_to(place.folder)) in done.err


def test_a_folder_that_another_process_holds_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, finished: Path
) -> None:
    shutil.copytree(finished, place.folder / "out")
    store = Store(place.folder / "out")
    path = study_file(place.folder, place.model, retention=[])
    with store.open(store.study()):
        done = check(capsys, place, ["run", path, "--out", "out"])
    assert done.err == "error: another finetrap is writing to out; wait for it, or name another.\n"


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(place: Place, finished: Path) -> Iterator[Path]:
    """The finished study on a disk that cannot be written to."""
    shutil.copytree(finished, place.folder / "disk" / "out")
    disk = str(place.folder / "disk")
    mounts = [["mount", "--bind", disk, disk], ["mount", "-o", "remount,ro,bind", disk]]
    if any(subprocess.run(command, capture_output=True, check=False).returncode for command in mounts):
        subprocess.run(["umount", disk], capture_output=True, check=False)
        pytest.skip("mounting is not allowed here")
    yield place.folder / "disk"
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_cannot_be_written_to_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, read_only: Path
) -> None:
    done = check(capsys, place, place.compare("--out", read_only / "new"))
    assert done.err == f"error: {read_only / 'new'} cannot be written to; name another folder with --out.\n"


def test_a_report_onto_a_disk_that_cannot_be_written_to_is_told(
    capsys: pytest.CaptureFixture[str], place: Place, read_only: Path
) -> None:
    done = check(capsys, place, ["report", read_only / "out"])
    assert done.err.startswith(f"error: {read_only / 'out'} cannot be written to")
    assert done.err.count("\n") == 1


def test_a_study_on_a_disk_that_cannot_be_written_to_still_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], read_only: Path
) -> None:
    done = called(capsys, "status", read_only / "out", "--json")
    assert done.code == 0
    assert json.loads(done.out)["running"] is False
