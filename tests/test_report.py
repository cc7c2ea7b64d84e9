"""What people read: the table, report.md and its charts."""

from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from finetrap import Study
from finetrap.report.table import escape
from finetrap.results import Results


def _run(tiny_folder: Path, folder: Path) -> Results:
    study = Study(
        models=str(tiny_folder),
        tasks="arc_easy",
        arms=["few_shot:shots=1", "lora:rank=2"],
        limit_train=16,
        limit_test=10,
        retention=["hellaswag", "wikitext2"],
        limit_retention=10,
        dtype="float32",
    )
    return study.run(folder)


def test_the_report_gives_the_answer_first_and_all_that_repeats_it(tiny_folder: Path, tmp_path: Path) -> None:
    results = _run(tiny_folder, tmp_path / "study")
    text = results.report().with_suffix(".md").read_text()
    answer, table = text.index("**"), text.index("| arm |")
    assert answer < table
    titles = ("Against the untouched model", "Learned and forgotten", "What it costs", "To repeat it")
    for wanted in ("zero_shot", "lora", "learning_rate=0.001", *titles):
        assert wanted in text
    charts = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    kinds = ("forest", "learn-forget", "cost", "outcomes", "accuracy", "learning")
    assert all(chart.endswith(f"-{kind}.svg") for chart, kind in zip(charts, kinds, strict=True))
    for chart in charts:
        root = ElementTree.parse(tmp_path / "study" / chart).getroot()
        assert root.tag.endswith("svg")
        assert any("lora" in (element.text or "") for element in root.iter())


def test_the_same_records_give_the_same_report(tiny_folder: Path, tmp_path: Path) -> None:
    from finetrap.store import Store
    from finetrap.study import answer

    folder = tmp_path / "study"
    _run(tiny_folder, folder)
    written = {
        path: path.read_bytes() for path in [folder / "results.json", folder / "report.md", *folder.glob("charts/*")]
    }
    store = Store.existing(folder)
    answer(store.study(), store)
    assert {path: path.read_bytes() for path in written} == written


@given(st.text())
def test_no_text_can_break_out_of_a_table_cell(text: str) -> None:
    escaped = escape(text)
    assert "\n" not in escaped
    unescaped = escaped.replace("\\\\", "")
    for character in "|<>`*[":
        assert unescaped.count(character) == unescaped.count(f"\\{character}")


def test_words_with_an_underscore_stay_readable() -> None:
    assert escape("zero_shot") == "zero_shot"
    assert escape("_emphasis_") == "\\_emphasis\\_"
