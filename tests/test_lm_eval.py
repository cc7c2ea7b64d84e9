"""lm-evaluation-harness: its `hf` model and ours say the same of every item, and its tasks are tasks of a study."""

import importlib.util
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_families import LIKE, Like, loaded_from
from transformers import AutoModelForCausalLM

lm_eval = pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import finetrap.lm_eval_model  # noqa: E402, F401  # registers the model

Samples = dict[str, list[dict[str, Any]]]


def evaluated(
    model: str, folder: Path, tasks: list[Path], *, shots: int = 0, chat: bool = False, **args: Any
) -> Samples:
    """What the harness logs of each item, by task."""
    done = simple_evaluate(
        model=model,
        model_args={"pretrained": str(folder), "dtype": "float32", **args},
        tasks=[str(path) for path in tasks],
        device="cpu",
        num_fewshot=shots,
        apply_chat_template=chat,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    found: Samples = {}
    for name, samples in done["samples"].items():
        found[name] = sorted(samples, key=lambda sample: (sample["doc_id"], sample["filter"]))
    return found


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
    """One task of every kind."""
    folder = tmp_path_factory.mktemp("tasks")
    made = (harness.science, harness.scenes, harness.sums, harness.articles, harness.last_words)
    return {make.__name__: make(folder) for make in made}


@pytest.fixture(scope="module", params=LIKE)
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
    same(evaluated("finetrap", folder, asked), evaluated("hf", folder, asked))
