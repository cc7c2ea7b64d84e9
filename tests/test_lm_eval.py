"""lm-evaluation-harness: its `hf` model and ours say the same of every item."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from harness import Samples, evaluated
from peft import LoraConfig, get_peft_model
from test_families import EACH, LIKE, Like, loaded_from
from transformers import AutoModelForCausalLM, AutoTokenizer

lm_eval = pytest.importorskip("lm_eval")

from finetrap.errors import StudyError  # noqa: E402
from finetrap.lm_eval_model import FinetrapLM, by_beginning  # noqa: E402  # registers the model


def texts(samples: Samples) -> list[str]:
    """What was generated for each item of the only task."""
    (items,) = samples.values()
    return [item["resps"][0][0] for item in items]


def saying(end: str, source: Path, target: Path) -> Path:
    """A copy of a model that says one token and nothing else: its head is that token's."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, tie_word_embeddings=False)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(0.1)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(end)] = 1.0
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def same(ours: Samples, theirs: Samples) -> None:
    """The same items, asked the same, with the same answers and scores."""
    assert ours.keys() == theirs.keys()
    for name, samples in theirs.items():
        for our, their in zip(ours[name], samples, strict=True):
            assert our["arguments"] == their["arguments"]
            for one, other in zip(our["filtered_resps"], their["filtered_resps"], strict=True):
                # A long text's sum is rounded in float32 there.
                value, *greedy = one if isinstance(one, tuple) else (one,)
                expected, *expected_greedy = other if isinstance(other, tuple) else (other,)
                assert value == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-6, abs=1e-4))
                assert greedy == expected_greedy
            for metric in their["metrics"]:
                assert our[metric] == pytest.approx(their[metric], rel=1e-6)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return harness.every_kind(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Tasks for shots: the same ones in front of every question, and others in front of each."""
    folder = tmp_path_factory.mktemp("shown")
    return [harness.science(folder, fewshot_config={"sampler": "first_n"}), harness.sums(folder)]


@pytest.fixture(scope="module", params=EACH)
def like(request: pytest.FixtureRequest) -> Like:
    return LIKE[request.param]


@pytest.fixture(scope="module")
def folder(like: Like, tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Path:
    """A tiny model of each family, its tokenizer like the real one's."""
    folder = tmp_path_factory.mktemp("model")
    loaded_from(folder, like, tiny_model, like.kind)
    return folder


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """A LoRA adapter that changes every answer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    wrapped.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_every_request_is_answered_as_by_the_harness_s_own_model(folder: Path, tasks: dict[str, Path]) -> None:
    asked = list(tasks.values())
    same(*(evaluated(model, folder, asked, limit=6) for model in ("finetrap", "hf")))


def test_shots_are_read_as_by_the_harness_s_own_model(folder: Path, shown: list[Path]) -> None:
    same(*(evaluated(model, folder, shown, shots=2, limit=4) for model in ("finetrap", "hf")))


def test_chats_and_adapters_are_read_as_by_the_harness_s_own_model(
    folder: Path, adapter: Path, shown: list[Path]
) -> None:
    asked: dict[str, Any] = {"shots": 2, "chat": True, "limit": 3}
    ours, theirs = (evaluated(model, folder, shown, peft=str(adapter), **asked) for model in ("finetrap", "hf"))
    same(ours, theirs)
    without = evaluated("finetrap", folder, shown[:1], **asked)
    assert [item["resps"] for item in ours["science"]] != [item["resps"] for item in without["science"]]


def test_what_does_not_fit_is_cut_as_by_the_harness_s_own_model(tiny_folder: Path, tasks: dict[str, Path]) -> None:
    asked = [tasks[name] for name in ("science", "sums", "articles")]
    same(*(evaluated(model, tiny_folder, asked, limit=5, max_length=90) for model in ("finetrap", "hf")))


def test_choices_without_a_question_follow_the_beginning(tiny_folder: Path, tmp_path: Path) -> None:
    blank = harness.science(tmp_path, doc_to_text="")
    same(*(evaluated(model, tiny_folder, [blank]) for model in ("finetrap", "hf")))


@pytest.mark.parametrize(
    "asked",
    [{"add_bos_token": True}, pytest.param({"prefix_token_id": 65}, marks=pytest.mark.thorough)],
    ids=lambda asked: "".join(asked),
)
def test_beginnings_are_set_as_of_the_harness_s_own_model(
    tiny_folder: Path, tasks: dict[str, Path], asked: dict[str, Any]
) -> None:
    chosen = [tasks["science"], tasks["articles"]]
    ours, theirs, default = (
        evaluated(model, tiny_folder, chosen, limit=3, **args)
        for model, args in (("finetrap", asked), ("hf", asked), ("finetrap", {}))
    )
    same(ours, theirs)
    assert [item["resps"] for item in ours["articles"]] != [item["resps"] for item in default["articles"]]


def test_an_answer_ends_where_the_harness_s_own_model_ends_it(tiny_folder: Path, tasks: dict[str, Path]) -> None:
    whole = texts(evaluated("hf", tiny_folder, [tasks["sums"]]))
    asked = {"until": [text[len(text) // 2] for text in whole[:3]], "max_gen_toks": 20}
    ours, theirs = (evaluated(model, tiny_folder, [tasks["sums"]], answers=asked) for model in ("finetrap", "hf"))
    same(ours, theirs)
    assert sum(map(len, texts(ours))) < sum(map(len, whole))


@pytest.mark.parametrize("end", ["<|im_end|>", "<|eos|>"])
def test_a_token_that_ends_an_answer_ends_it(
    end: str, tiny_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    """The model is made to say the token that is likeliest after itself; that token is then called `end`."""
    folder = saying(end, tiny_folder, tmp_path / "says")
    asked = {"until": [end], "max_gen_toks": 12}
    ours, theirs = (evaluated(model, folder, [tasks["sums"]], answers=asked) for model in ("finetrap", "hf"))
    same(ours, theirs)
    assert texts(ours) == [""] * len(texts(ours))


def test_samples_are_drawn_as_by_the_harness_s_own_model(
    tiny_folder: Path, tasks: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"do_sample": True, "temperature": 0.9, "max_gen_toks": 8}
    ours, theirs = (
        evaluated(model, tiny_folder, [tasks["sums"]], answers=asked, limit=4) for model in ("finetrap", "hf")
    )
    assert "4 answers are not greedy alone" in caplog.text
    same(ours, theirs)


def test_a_model_s_own_settings_of_generation_are_kept(
    tiny_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "repeats"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 9.0}))
    ours, theirs = (evaluated(model, folder, [tasks["sums"]], limit=4) for model in ("finetrap", "hf"))
    same(ours, theirs)
    assert texts(ours) != texts(evaluated("finetrap", tiny_folder, [tasks["sums"]], limit=4))


def test_greedy_answers_come_from_the_engine(
    tiny_folder: Path, tasks: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "neutral"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.0, "num_beams": 1}))
    for model in (tiny_folder, folder):
        evaluated("finetrap", model, [tasks["sums"]], limit=2)
    assert "not greedy alone" not in caplog.text


def test_contexts_that_begin_alike_share_that() -> None:
    first, other = tuple(range(60)), tuple(range(100, 130))
    contexts = [(*first, 1), other, first, (*first, 2, 3), (7,)]
    groups = {shared: {contexts[i] for i in group} for shared, group in by_beginning(contexts)}
    assert groups == {59: {first, (*first, 1), (*first, 2, 3)}, 0: {other, (7,)}}
    assert by_beginning([(*first, i) for i in range(3)], least=4) == [(0, [0, 1, 2])]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"load_in_4bit": True}, "unknown model argument 'load_in_4bit'"),
        ({"peft": "nowhere"}, "there is no checkpoint at nowhere"),
        ({"pretrained": "/nowhere"}, "there is no model at /nowhere"),
    ],
)
def test_a_model_argument_that_cannot_be_is_an_error(tiny_folder: Path, args: dict[str, Any], says: str) -> None:
    with pytest.raises(StudyError, match=says):
        FinetrapLM.create_from_arg_obj({"pretrained": str(tiny_folder), **args})


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds finetrap installed with the entry points that it declares."""
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "site" / "finetrap-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: finetrap\nVersion: 0.1.0\n")
    points = [
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(points))
    return {**os.environ, "PYTHONPATH": f"{folder.parent}{os.pathsep}{root / 'src'}"}


@pytest.mark.thorough
def test_the_harness_knows_the_model_by_name(
    installed: dict[str, str], tiny_folder: Path, tasks: dict[str, Path]
) -> None:
    asks = f"""
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
done = simple_evaluate(
    model="finetrap", model_args={{"pretrained": {str(tiny_folder)!r}}}, tasks=[{str(tasks["science"])!r}], limit=2,
    bootstrap_iters=0, task_manager=TaskManager(include_defaults=False)
)
print(done["config"]["model"], len(done["samples"]["science"]))
"""
    done = subprocess.run([sys.executable, "-c", asks], env=installed, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["finetrap", "2"], done.stderr


def test_pytorch_alone_does_not_load_the_harness(installed: dict[str, str]) -> None:
    asks = "import sys, torch; print('lm_eval' in sys.modules, 'finetrap.lm_eval_name' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asks], env=installed, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.slow
def test_the_harness_s_command_runs_the_model(
    installed: dict[str, str], tiny_folder: Path, tasks: dict[str, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "lm_eval", "--model", "finetrap", "--tasks", str(tasks["science"])]
    command += ["--model_args", f"pretrained={tiny_folder},dtype=float32", "--output_path", str(tmp_path / "out")]
    subprocess.run([*command, "--device", "cpu"], env=installed, capture_output=True, text=True, check=True)
    (written,) = (tmp_path / "out").rglob("results_*.json")
    accuracy = json.loads(written.read_text())["results"]["science"]["acc,none"]
    items = evaluated("hf", tiny_folder, [tasks["science"]])["science"]
    assert accuracy == pytest.approx(sum(item["acc"] for item in items) / len(items))
