"""report.html: all that results.json says, and nothing that runs or loads, whatever a model or a data set wrote."""

import base64
import gzip
import hashlib
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import HOSTILE
from support import Page, called, contents, page_of, rows_in

from finetrap.errors import StudyError
from finetrap.records import FailureRecord
from finetrap.report.charts import OUTCOME_TONES
from finetrap.store import Store
from finetrap.study import answer
from finetrap.task import Example, Split, Task, get_task, task


@pytest.fixture(params=["page_study", "hostile_study"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two studies."""
    return Path(request.getfixturevalue(request.param))


def _results(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return loaded


def _target_rows(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    """By arm, the target's rows by id."""
    arms = {arm["arm"] for arm in _results(folder)["arms"]}
    return {
        arm: {str(row["id"]): row for row in rows}
        for arm in arms
        for key, rows in rows_in(folder).items()
        if f"--{arm}--" in key and "/target--" in key
    }


def _reported_again(folder: Path, target: Path) -> Page:
    """The page of a copy of a study's folder that has lost what it kept of the questions."""
    shutil.copytree(folder, target)
    shutil.rmtree(target / "items")
    store = Store.existing(target)
    answer(store.study(), store)
    return page_of(target)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_results(page_study: Path) -> None:
    page, results = page_of(page_study), _results(page_study)
    header, *rows = page.tables["Every arm"]
    assert [row[0] for row in rows] == ["constant", "zero_shot", "few_shot", "lora"]
    for row, arm in zip(rows, results["arms"], strict=True):
        cells = dict(zip(header, row, strict=True))
        low, high = (100 * end for end in arm["ci95"])
        assert cells["accuracy (95% CI)"] == f"{100 * arm['accuracy']:.1f}% ({low:.0f} to {high:.0f})"
        if arm["vs_zero_shot"] is not None:
            assert cells["vs zero-shot"].startswith(f"{100 * arm['vs_zero_shot']['artifact']['delta']:+.1f} [")
            assert cells["verdict"].lower() == arm["vs_zero_shot"]["verdict"].replace("_", " ")
        if arm["retention"] is not None:
            assert cells["bits/byte"].startswith(f"{arm['retention']['bits_per_byte']:.3f} ")
    header, *rows = page.tables["Training once, and each query"]
    for row, arm in zip(rows, results["arms"], strict=True):
        assert dict(zip(header, row, strict=True))["trained weights"] == f"{arm['cost']['trainable_params']:,}"
    header, *rows = page.tables["Answers by outcome"]
    for row, arm in zip(rows, results["arms"], strict=True):
        assert dict(zip(header, row, strict=True))["wrong"] == str(arm["outcomes"].get("wrong", 0))
    (away,) = (rows for name, (_, *rows) in page.tables.items() if name == "Tasks that no arm was trained for")
    assert [row[:2] for row in away] == [[arm["arm"], "svamp"] for arm in results["arms"]]


def test_the_verdict_comes_first_and_what_repeats_it_last(page_study: Path) -> None:
    text, results = (page_study / "report.html").read_text(), _results(page_study)
    wanted = [
        'class="headline"',
        results["recommendations"][0]["next_step"].replace("'", "&#39;"),
        ">Every arm<",
        "<h3>Against the untouched model</h3>",
        "<h3>Learned and forgotten</h3>",
        "<h3>What it costs</h3>",
        "<h3>What the answers are</h3>",
        "<h3>Accuracy</h3>",
        "<h3>Learning</h3>",
        "<h3>On other problems</h3>",
        "Outputs side by side: gsm8k",
        "Outputs side by side: svamp",
        "Settings and versions",
        "learning_rate=0.001",
        results["environment"]["packages"]["torch"],
        "To repeat it",
    ]
    places = [text.index(part) for part in wanted]
    assert places == sorted(places)


def test_every_answer_to_every_question_is_there(page_study: Path) -> None:
    items, rows = page_of(page_study).items("s1-0"), _target_rows(page_study)
    questions = {example.id: example.question for example in get_task("gsm8k").load("test")}
    assert set(items["arms"]) == set(rows)
    assert dict(zip(items["outcomes"], items["tones"], strict=True)) == OUTCOME_TONES
    assert len(items["items"]) == 12
    for item in items["items"]:
        assert item["question"] == questions[item["id"]]
        for arm, (outcome, extracted, output, cut) in zip(items["arms"], item["answers"], strict=True):
            row = rows[arm][item["id"]]
            assert item["gold"] == row["gold"]
            assert items["outcomes"][outcome] == row["outcome"]
            assert (extracted, output, bool(cut)) == (row.get("extracted"), row["output"], row.get("truncated", False))


def test_a_study_that_is_not_done_has_a_page_that_says_so(page_study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(page_study, copy)
    store = Store.existing(copy)
    for result in [
        *copy.glob("trials/*--lora--*/*/result.json"),
        *copy.glob("trials/*--zero_shot--*/ret*/result.json"),
    ]:
        result.unlink()
    (lora,) = (p.trial for p in store.plan().planned if p.trial.arm == "lora")
    store.save_failure(lora, FailureRecord(trial=lora.folder, error=HOSTILE[1], traceback=""))
    answer(store.study(), store)
    page = page_of(copy)
    assert [row[0] for row in page.tables["Every arm"][1:]] == ["constant", "zero_shot", "few_shot"]
    assert "Learned and forgotten" not in page.words
    assert any(words.endswith(HOSTILE[1]) for words in page.words)
    for result in copy.glob("trials/*/*/result.json"):
        result.unlink()
    answer(store.study(), store)
    assert "No trial is done yet." in page_of(copy).words


def test_several_models_or_tasks_have_a_table_of_contents(page_study: Path, hostile_study: Path) -> None:
    assert not any(tag == "nav" for tag, _ in page_of(page_study).tags)
    page = page_of(hostile_study)
    assert any(tag == "nav" for tag, _ in page.tags)
    assert {"#s1", "#s2"} <= set(page.values("href"))


def test_links_and_charts_point_at_what_there_is_once(folder: Path) -> None:
    page = page_of(folder)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    clipped = re.findall(r"url\(#([^)]+)\)", page.text)
    assert clipped
    assert {href.removeprefix("#") for href in page.values("href")} | set(clipped) <= set(ids)


def test_controls_and_charts_say_what_they_are(folder: Path) -> None:
    page = page_of(folder)
    for tag, attributes in page.tags:
        if tag == "select" or (tag == "svg"):
            assert attributes["aria-label"]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_same_records_give_the_same_page(page_study: Path, tmp_path: Path) -> None:
    copy = tmp_path / page_study.name
    shutil.copytree(page_study, copy)
    store = Store.existing(copy)
    answer(store.study(), store)
    assert contents(copy) == contents(page_study)


def test_the_command_line_names_the_page_first(page_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = called(capsys, "report", page_study).out
    assert f"Report: {page_study / 'report.html'}" in out


# --- nothing runs, nothing loads -------------------------------------------------------------------------------------


def test_it_loads_nothing(folder: Path) -> None:
    page = page_of(folder)
    for attribute in ("src", "srcset", "action", "data", "poster", "background", "formaction", "xlink:href"):
        assert page.values(attribute) == []
    assert all(href.startswith("#") for href in page.values("href"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "img", "iframe", "object", "embed", "base"})
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_its_policy_allows_its_own_script_and_style_alone(folder: Path) -> None:
    page = page_of(folder)
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    for kind, text in (("script", page.scripts[""]), ("style", page.style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in names if name == "style" or name.startswith("on")]


def test_hostile_text_stays_text(hostile_study: Path) -> None:
    page = page_of(hostile_study)
    assert sorted(page.scripts) == ["", "items-s1-0", "items-s2-0"]
    assert HOSTILE[0] in page.words
    assert f"finetrap run {HOSTILE[1]}; {HOSTILE[3]}" in page.words
    for text in page.scripts.values():
        assert not re.search("</script|<!--", text, re.IGNORECASE)
    items = page.items("s1-0")["items"]
    assert {item["question"].split(" ", 2)[2] for item in items} == set(HOSTILE)
    assert {answer[1] for item in items for answer in item["answers"]} <= {"no", *HOSTILE}
    assert {item["gold"] for item in items} <= {"no", *HOSTILE}


def test_hostile_output_stays_text(page_study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(page_study, copy)
    for path in copy.glob("trials/*--lora--*/target--*/rows.jsonl.gz"):
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for index, row in enumerate(rows):
            row["output"] = row["extracted"] = HOSTILE[index % len(HOSTILE)]
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    store = Store.existing(copy)
    answer(store.study(), store)
    page = page_of(copy)
    items = page.items("s1-0")
    lora = items["arms"].index("lora")
    assert {item["answers"][lora][2] for item in items["items"]} == set(HOSTILE)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in page_of(page_study).tags]


# --- the questions ---------------------------------------------------------------------------------------------------


def test_a_folder_without_its_questions_takes_the_task_s_own(page_study: Path, tmp_path: Path) -> None:
    page = _reported_again(page_study, tmp_path / "copy")
    assert page.items("s1-0") == page_of(page_study).items("s1-0")


def _gone(split: Split) -> tuple[Example, ...]:
    raise StudyError("the data has gone.")


def _changed(split: Split) -> tuple[Example, ...]:
    return tuple(Example(e.id, "another question", e.reference, e.gold) for e in get_task("svamp").load("test"))


@pytest.mark.parametrize("load", [_gone, _changed])
def test_where_the_questions_have_gone_or_changed_only_ids_are_shown(
    load: Any, page_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gsm8k = get_task("gsm8k")

    def other() -> Task:
        return replace(gsm8k, load=load)

    monkeypatch.setitem(task._entries, "gsm8k", other)
    page = _reported_again(page_study, tmp_path / "copy")
    items = page.items("s1-0")["items"]
    assert [item["id"] for item in items] == [item["id"] for item in page_of(page_study).items("s1-0")["items"]]
    assert not any("question" in item for item in items)
    assert "only their ids are shown" in page.text
