"""Tiny models and a byte tokenizer, made here; nothing is downloaded."""

import gc
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

# `make thorough` checks types and shapes as they run, for a third more time; the hook has to be there before finetrap
# is imported.
if os.environ.get("CHECK_SHAPES"):
    install_import_hook("finetrap", "shape_checks.check")

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from rich_results import rich
from support import Place, short_answers
from tiny import FAMILIES, make_model, make_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetrap.config import ModelSpec, Study
from finetrap.models import LoadedModel, find, load
from finetrap.report.markdown import write_report
from finetrap.report.page import write_page
from finetrap.report.sections import sections
from finetrap.results import Results
from finetrap.store import Store
from finetrap.study import run
from finetrap.task import Example, Split, Task, task

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")
# `make mutation` runs them thousands of times: fewer examples, always the same, on a machine however busy.
hypothesis.settings.register_profile("mutation", max_examples=25, derandomize=True, deadline=None, database=None)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, but for what peft 0.21 says under transformers 5.23 whenever it wraps a model."""
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    # Selenium's trio has a Hypothesis plugin; its generator looks like garbage where Hypothesis loads after the freeze.
    config.addinivalue_line("filterwarnings", "ignore:It looks like `register_random`")


def pytest_collection_finish() -> None:
    """What is imported stays: statsmodels collects garbage at every call, else a quarter of a second each."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte and five special ones, with a ChatML template."""
    return make_tokenizer()


@pytest.fixture(
    params=[f if f in ("llama", "gemma3") else pytest.param(f, marks=pytest.mark.thorough) for f in FAMILIES]
)
def family(request: pytest.FixtureRequest) -> str:
    """Each family of models in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """A function that makes a random two-layer model of a family, the same at every call."""
    return make_model


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """A tiny Llama and its tokenizer in Transformers format."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder: Path) -> LoadedModel:
    """That folder, loaded the way a study loads it; its model is not to be changed (`copy()` is)."""
    return load(find(ModelSpec(name=str(tiny_folder))), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="session")
def page_study(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a study of generated answers wrote, with a task out of distribution; not to be changed."""
    folder = tmp_path_factory.mktemp("page") / "study"
    study = Study(
        name="words",
        models=str(tiny_folder),
        tasks="gsm8k",
        arms=["few_shot:shots=1", "lora:rank=2"],
        limit_train=16,
        limit_test=12,
        retention=["arc_easy", "wikitext2"],
        limit_retention=10,
        out_of_distribution=["svamp"],
        dtype="float32",
    )
    with short_answers(16):
        study.run(folder)
    return folder


@pytest.fixture(scope="session")
def rich_study(page_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That study's reports as if it had seeds, tuning, rescues and claims; its records are as they were."""
    folder = tmp_path_factory.mktemp("rich") / "study"
    shutil.copytree(page_study, folder)
    store = Store.existing(folder)
    results = rich(Results.model_validate_json((folder / "results.json").read_text()))
    found = sections(results, store)
    write_page(results, store.study(), store, found)
    write_report(results, store.study(), store, found)
    (folder / "results.json").write_text(results.to_json())
    return folder


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Reports without their charts, which take longer than a tiny study; `make thorough` draws them."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("CHECK_SHAPES"):
            empty = '<svg xmlns="http://www.w3.org/2000/svg"><g id="figure_1"/></svg>'
            patch.setattr("finetrap.report.charts.section.Chart.draw", lambda chart, canvas: empty)
        yield


HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=document.title='owned'>",
    "\"'><svg onload=document.title='owned'> &lt;b&gt; &amp; <!-- <script>",
    "{{ 7 * 7 }} {% for x in y %} ${7*7} #{7}",
    "\u202e\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea \u2028 \u2029 \x00 \x1b[31m",
    "w" * 600,
    "| * _ ` # https://example.com/x.png ![x](javascript:alert(1))",
    "a line\nand another",
)
"""What must come out of a page as it went in."""


def _hostile(split: Split) -> tuple[Example, ...]:
    n = len(HOSTILE)
    return tuple(
        Example(
            f"{split}-{i}-{HOSTILE[i % n]}", f"{split} {i} {HOSTILE[i % n]}", "", str(i % 2), ("no", HOSTILE[-i % n])
        )
        for i in range(48 if split == "train" else 24)
    )


@pytest.fixture(scope="session")
def hostile_study(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a study wrote whose name, model and data are hostile, beside an ordinary task; not to be changed."""
    folder = tmp_path_factory.mktemp("page")
    model = folder / HOSTILE[1]
    model.symlink_to(tiny_folder)

    def hostile() -> Task:
        return Task(name="hostile", summary="", kind="choice", license="", load=_hostile)

    study: dict[str, object] = {
        "name": HOSTILE[0],
        "models": str(model),
        "tasks": ["hostile", "arc_easy"],
        "arms": ["lora:rank=2"],
        "limit_train": 16,
        "limit_test": 24,
        "retention": ["wikitext2"],
        "limit_retention": 10,
        "dtype": "float32",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(task._entries, "hostile", hostile)
        run(Study.model_validate(study), folder / "study", command=f"finetrap run {HOSTILE[1]}; {HOSTILE[3]}")
    return folder / "study"


@pytest.fixture
def place(
    tiny_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path_factory.mktemp("cache")))
    return Place(tmp_path, tiny_folder)
