"""A study from Python: its arguments, tables and models that are in memory, and what comes back."""

import copy
import inspect
import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset, DatasetDict
from support import rows_in, written_at
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import finetrap
from finetrap import ModelSpec, OwnData, Results, Study, StudyError, load_plugin
from finetrap.quiet import quiet_libraries
from finetrap.registry import Registry
from finetrap.report.table import cells, headline
from finetrap.rows.in_memory import named_model, named_table

pytestmark = pytest.mark.usefixtures("undrawn")

Maker = Callable[..., PreTrainedModel]
SMALL: dict[str, Any] = {
    "arms": "lora:rank=2",
    "limit_train": 16,
    "limit_test": 10,
    "retention": (),
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def frame() -> pandas.DataFrame:
    """Sixty rows that are not alike, and a label for each."""
    letters = np.random.default_rng(0).choice(list("abcdefghij klmnop"), size=(60, 40))
    return pandas.DataFrame({"text": ["".join(row) for row in letters], "queue": ["post", "phone"] * 30})


def tickets(frame: pandas.DataFrame) -> OwnData:
    return OwnData(train=frame, name="tickets", prompt_field="text", answer_field="queue", score="label")


def loaded(folder: Path) -> PreTrainedModel:
    """A model as a user loads it."""
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(folder)


# --- arguments -------------------------------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    assert [name for name in finetrap.__all__ if not callable(getattr(finetrap, name))] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "tiny"}, "unknown setting 'model'; did you mean 'models'?"),
        ({"tasks": ()}, "'tasks': "),
        ({"tasks": 3}, "'tasks.0': expected the settings of OwnData, got 3."),
        ({"tasks": {"train": 3}}, "a builtins.int is no data"),
        ({"tasks": {"train": "x", "scor": "y"}}, "unknown setting 'tasks.0.scor'; did you mean 'score'?"),
        ({"tasks": {"train": "x", "max_new_tokens": 0}}, "'tasks.0.max_new_tokens': input should be greater than or"),
        ({"tasks": ["gsm8k", {"test": "x"}]}, "'tasks.1.train' is missing"),
        ({"tasks": pandas.Series([1])}, "a pandas.Series is no data"),
        ({"models": torch.nn.Linear(2, 2)}, "'models.0': expected the settings of ModelSpec, got Linear("),
        ({"models": ["tiny", {"name": "x", "chat": "perhaps"}]}, "'models.1.chat': input should be a valid boolean"),
        ({"limit_train": pandas.DataFrame({"a": range(99)})}, "'limit_train': input should be a valid integer"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as error:
        Study(**{"models": "tiny", "tasks": "gsm8k", **values})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_an_argument_that_is_missing_is_named() -> None:
    with pytest.raises(StudyError, match="'models' is missing"):
        Study(tasks="gsm8k")


@pytest.mark.parametrize("make", [lambda: ModelSpec(nam="x"), lambda: OwnData(train="x", nam="y")])
def test_parts_of_a_study_say_what_is_wrong_with_them(make: Callable[[], object]) -> None:
    with pytest.raises(StudyError, match="unknown setting 'nam'; did you mean 'name'"):
        make()


def test_an_error_says_where_it_stands() -> None:
    with pytest.raises(StudyError) as error:
        Study(models=["tiny", {"name": "x", "chat": "perhaps"}], tasks="gsm8k")
    assert error.value.location == ("models", 1, "chat")


def test_a_study_can_be_pickled_and_names_its_arguments() -> None:
    study = Study(models="tiny", tasks=["gsm8k", OwnData(train="rows.csv")])
    assert pickle.loads(pickle.dumps(study)) == study
    assert set(inspect.signature(Study).parameters) == set(Study.model_fields)


def test_a_plugin_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from finetrap.scoring import Scorer, Verdict, scorer\n\n\n"
        "@scorer\ndef shouted(answers: list[str]) -> Scorer:\n"
        '    """Loud."""\n'
        '    return Scorer(lambda text, gold: Verdict(text, *[text.upper() == gold] * 4), rule="loud")\n'
    )
    plugin = load_plugin(str(path))
    try:
        assert OwnData(train="rows.csv", score="shouted").score == "shouted"
    finally:
        for registry in Registry._all:
            registry.forget(plugin)


# --- tables ----------------------------------------------------------------------------------------------------------


def written(table: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(str(named_table(table))).read_text().splitlines()]


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ([1, 2], [1, 2]),
        ([1, None], [1, None]),  # pandas makes these 1.0 and NaN
        (pandas.array([2**60, None], dtype="Int64"), [2**60, None]),
        ([0.1234567890123, 2.0], [0.1234567890123, 2]),
        ([True, False], [True, False]),
        (["ü", None], ["ü", None]),
        (pandas.Categorical(["b", "a"]), ["b", "a"]),
        (pandas.to_datetime(["2024-01-31", None]), ["2024-01-31T00:00:00", None]),
        ([["a", "b"], np.array([1.0, 2.5])], [["a", "b"], [1, 2.5]]),
        ([{"role": "user"}, {"turns": [{"n": 1.0}]}], [{"role": "user"}, {"turns": [{"n": 1}]}]),
    ],
    ids=["ints", "ints-and-nan", "Int64", "floats", "bools", "texts", "categories", "times", "lists", "objects"],
)
def test_a_data_frame_s_cells_are_kept(column: Any, cells: list[object]) -> None:
    table = pandas.DataFrame({"x": column, "y": [1.5, 2.5]}, index=[7, 3])
    assert [row["x"] for row in written(table)] == cells
    assert [row["y"] for row in written(table)] == [1.5, 2.5]


def test_a_data_set_s_cells_are_kept_whatever_its_format() -> None:
    table = Dataset.from_dict({"n": [2**60 + 1, None], "x": [[1, 2], [3]], "d": [{"a": ["b"]}, {"a": []}]})
    rows = [{"n": 2**60 + 1, "x": [1, 2], "d": {"a": ["b"]}}, {"n": None, "x": [3], "d": {"a": []}}]
    assert written(table) == written(table.with_format("torch")) == rows


def test_whole_numbers_that_a_missing_one_made_floats_are_asked_for_as_they_were() -> None:
    rows = pandas.DataFrame({"prompt": [f"{n} and {n * n}" for n in range(40)], "answer": [None, *range(1, 40)]})
    study = Study(models="tiny", tasks=OwnData(train=rows.dropna(), test=rows.dropna(), name="sums"))
    assert [example.gold for example in study.task("sums").load("train")][:3] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (DatasetDict(train=Dataset.from_dict({"a": [1]})), r"OwnData\(train=data\['train'\], test=data\['test'\]\)"),
        (Dataset.from_dict({"a": [1]}).to_iterable_dataset(), "load it without streaming"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "two columns"),
        (pandas.DataFrame({"a": [float("inf")]}), "cannot be written as JSON"),
        (pandas.DataFrame({"a": [{1, 2}]}), "cannot be written as JSON"),
        (pandas.DataFrame({"a": ["\ud800"]}, dtype=object), "cannot be written as JSON"),
        (np.zeros((2, 2)), "a numpy.ndarray is no data"),
    ],
)
def test_what_is_no_table_of_rows_is_told(table: object, message: str, cache: Path) -> None:
    with pytest.raises(StudyError, match=message):
        OwnData(train=table)
    assert not list(cache.rglob("*.jsonl"))


def test_a_table_is_written_once_and_anew_when_it_changes(frame: pandas.DataFrame, cache: Path) -> None:
    assert named_table(frame) == named_table(frame.copy()) == named_table(Dataset.from_pandas(frame))
    assert named_table(frame) != named_table(frame.assign(queue="x"))
    assert sorted(path.name for path in (cache / "tables").rglob("*.*")) == ["data.jsonl", "data.jsonl"]


def test_a_table_alone_is_a_task(frame: pandas.DataFrame) -> None:
    assert Study(models="tiny", tasks=frame).tasks == (OwnData(train=frame),)


def test_many_may_write_the_same_table_at_once(frame: pandas.DataFrame, cache: Path) -> None:
    barrier = threading.Barrier(8)

    def write(_: int) -> object:
        barrier.wait()
        return named_table(frame)

    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(write, range(8)))
    assert len(Path(str(path)).read_text().splitlines()) == 60
    assert len(list((cache / "tables").iterdir())) == 1


def test_a_cache_that_cannot_be_written_to_is_told(cache: Path, frame: pandas.DataFrame) -> None:
    cache.write_text("")
    with pytest.raises(StudyError, match="FINETRAP_CACHE"):
        named_table(frame)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["llama-tied", "qwen2-untied", "gemma3-tied"])
def test_a_loaded_model_is_kept_as_it_is(
    tiny_model: Maker, tiny_tokenizer: PreTrainedTokenizerFast, variant: str, dtype: torch.dtype
) -> None:
    model = tiny_model(variant, dtype=dtype)
    (spec,) = Study(models=(model, tiny_tokenizer), tasks="gsm8k").models
    with quiet_libraries():
        again = AutoModelForCausalLM.from_pretrained(spec.name, dtype="auto")
    assert again.dtype == dtype
    assert all(torch.equal(again.state_dict()[key], weight) for key, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(spec.name).chat_template == tiny_tokenizer.chat_template


def test_the_same_model_has_the_same_name_and_a_changed_one_another(tiny_folder: Path, cache: Path) -> None:
    model = loaded(tiny_folder)
    name = named_model(model)
    assert Path(str(name)).name.startswith("tiny-")
    assert named_model(loaded(tiny_folder).train()) == named_model(model) == name
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert named_model(model) != name
    assert len(list((cache / "in_memory").iterdir())) == 2


def test_a_tokenizer_may_have_been_used(tiny_folder: Path) -> None:
    model, tokenizer = loaded(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    name = named_model((model, tokenizer))
    assert name == named_model(model)
    tokenizer(["a", "long"], padding=True, truncation=True, max_length=3)
    assert named_model((model, tokenizer)) == name
    assert len(tokenizer(["a", "long"], padding=True, truncation=True, max_length=3)["input_ids"][0]) == 3


def test_a_loaded_model_may_have_settings_and_stand_among_others(tiny_folder: Path) -> None:
    model = loaded(tiny_folder)
    specs = Study(models=["tiny", model, ModelSpec(name=tiny_folder, chat=False)], tasks="gsm8k").models
    assert [spec.name for spec in specs] == ["tiny", named_model(model), str(tiny_folder)]
    assert ModelSpec(name=model, chat=False).chat is False


def _with_adapter(model: PreTrainedModel) -> object:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))


def _quantised(model: PreTrainedModel) -> object:
    model.hf_quantizer = object()  # as from_pretrained leaves it
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_adapter, "wrapped by PEFT"),
        (_quantised, "quantised"),
        (lambda model: model.to("meta"), "not in memory"),
        (lambda model: model, r"give both: models=\(model, tokenizer\)"),
    ],
    ids=["peft", "quantised", "meta", "without a tokenizer"],
)
def test_a_model_that_cannot_be_taken_is_told(tiny_model: Maker, change: Any, message: str, cache: Path) -> None:
    with pytest.raises(StudyError, match=message):
        Study(models=change(tiny_model()), tasks="gsm8k")
    assert not list(cache.rglob("*.safetensors"))


def test_a_merged_adapter_is_a_model(tiny_model: Maker, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    wrapped: Any = _with_adapter(tiny_model())
    assert named_model((wrapped.merge_and_unload(), tiny_tokenizer)) == named_model((tiny_model(), tiny_tokenizer))


def test_weights_on_a_device_are_the_same_weights(tiny_folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = loaded(tiny_folder)
    assert named_model(model) == named_model(copy.deepcopy(model).to("cuda"))


# --- a study of what is in memory ------------------------------------------------------------------------------------


def test_a_study_of_a_table_and_a_loaded_model_goes_on_where_it_was(
    tiny_folder: Path, frame: pandas.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    results = Study(models=loaded(tiny_folder), tasks=tickets(frame), **SMALL).run(out)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split()[:2] for line in shown.err.splitlines()[-3:]] == [
        ["done", arm] for arm in ("constant", "zero_shot", "lora")
    ]
    assert {arm.model.rpartition("-")[0] for arm in results.arms} == {"tiny"}
    assert all(path.name.startswith("tiny-") for path in (out / "trials").iterdir())

    done = written_at(out)
    again = Study(models=loaded(tiny_folder), tasks=tickets(frame.copy()), **SMALL).run(out, progress=False)
    assert (again, written_at(out)) == (results, done)
    assert capsys.readouterr() == ("", "")

    by_path = Study(models=tiny_folder, tasks=tickets(frame), **SMALL).run(tmp_path / "path", progress=False)
    assert [arm.accuracy for arm in by_path.arms] == [arm.accuracy for arm in results.arms]
    assert list(rows_in(tmp_path / "path").values()) == list(rows_in(out).values())


def test_an_interrupt_keeps_what_is_finished_and_says_so(
    tiny_folder: Path,
    frame: pandas.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    study = Study(models=tiny_folder, tasks=tickets(frame), **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("finetrap.trial._train", stop)
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "out")
    assert f"interrupted. What is finished is kept in {tmp_path / 'out'}; the same call" in capsys.readouterr().err
    done = written_at(tmp_path / "out")
    assert len(done) == 2
    assert len(study.run(tmp_path / "out", progress=False).arms) == 3
    assert {key: value for key, value in written_at(tmp_path / "out").items() if key in done} == done


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> Results:
    """Those of a committed record."""
    path = Path(__file__).parent.parent / "docs" / "results" / "demo" / "results.json"
    return Results.model_validate_json(path.read_bytes())


class _Fragment(HTMLParser):
    """The texts and tags of a fragment, all closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        if tag == "img":
            assert set(found) == {"src", "alt", "style"}
            assert (found["src"] or "").startswith("data:image/svg+xml;base64,")
            return
        self._open.append(tag)
        assert set(found) <= ({"open"} if tag == "details" else {"style"})
        assert found.get("style", "text-align: left") in ("text-align: left", "text-align: right")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_results_at_a_prompt_are_a_line(results: Results) -> None:
    assert repr(results) == str(results)
    assert "\n" not in repr(results)
    assert repr(results).startswith(
        "<Results of demo: arc_easy with smollm2-135m-instruct-q4 (from GGUF Q4_1): constant, "
    )
    assert repr(results).endswith(f"careless. {headline(results.recommendations[0])}>")


def test_results_in_a_notebook_begin_with_the_answer(results: Results, tmp_path: Path) -> None:
    shown = _Fragment(results.model_copy().within(tmp_path)._repr_html_())
    assert shown.texts[0] == headline(results.recommendations[0])
    assert [cell for arm in results.arms for cell in cells(arm) if cell not in shown.texts] == []
    assert shown.texts[-1] == str(results.model_copy().within(tmp_path).report())
    assert "Report: " not in _Fragment(results._repr_html_()).texts
    assert not shown.tags & {"style", "script", "link"}


def test_what_a_user_wrote_is_no_html(results: Results) -> None:
    evil = "<script>alert(1)</script>&amp;"
    arms = tuple(arm.model_copy(update={"arm": evil, "model": evil}) for arm in results.arms)
    (recommendation,) = results.recommendations
    answer = recommendation.model_copy(update={"method": evil, "model": evil, "why": (evil,), "next_step": evil})
    update = {"arms": arms, "recommendations": (answer,), "warnings": (evil,)}
    shown = _Fragment(results.model_copy(update=update)._repr_html_())
    assert "script" not in shown.tags
    assert evil in shown.texts


def test_a_data_frame_of_results_has_numbers_truths_and_texts_in_its_cells(results: Results) -> None:
    table = results.to_pandas()
    others = [name for name, kind in table.dtypes.items() if kind not in ("int64", "float64", "bool", "str")]
    # Whether something is so, where some arms have no say.
    assert [name for name in others if not table[name].dropna().map(type).eq(bool).all()] == []
    assert list(table["arm"]) == [arm.arm for arm in results.arms]
    assert list(table["ci95.low"]) == [arm.ci95[0] for arm in results.arms]
    assert list(table["outcomes.correct"]) == [arm.outcomes["correct"] for arm in results.arms]
    assert list(table["outcomes.degenerate"]) == [0] * len(results.arms)
    verdicts = [arm.vs_zero_shot and arm.vs_zero_shot.verdict for arm in results.arms]
    assert list(table["vs_zero_shot.verdict"].fillna("")) == [verdict or "" for verdict in verdicts]
    assert set(table["seeds"]) == {"0"}
    assert not {"vs_zero_shot", "retention"} & set(table)
