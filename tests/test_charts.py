"""Charts and verdicts in words: what is drawn is what was found, and says so without a picture too."""

import re
from pathlib import Path

import pytest
from rich_results import ADVICE, CLAIM
from support import page_of

from finetrap.report.charts import NARROW, WIDE
from finetrap.report.notebook import results_html
from finetrap.report.sections import Section, sections
from finetrap.report.text_forest import text_forest
from finetrap.report.words import in_words
from finetrap.results import ArmResult, Results

KINDS = ["forest", "learn-forget", "cost", "outcomes", "tuning", "accuracy"]


@pytest.fixture(scope="module")
def results(rich_study: Path) -> Results:
    """Results with everything in them."""
    return Results.model_validate_json((rich_study / "results.json").read_text())


@pytest.fixture(scope="module")
def section(results: Results) -> Section:
    """Their only model and task."""
    (found,) = sections(results)
    return found


@pytest.fixture(scope="module")
def arms(section: Section) -> dict[str, ArmResult]:
    """By name."""
    return {arm.arm: arm for arm in section.arms}


def _lines(svg: str) -> list[tuple[float, float, float, float]]:
    """Straight lines of two points, as x, y, x, y."""
    number = r"(-?[\d.]+)"
    found = re.findall(rf'd="M {number} {number} \nL {number} {number} \n"', svg)
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in found]


@pytest.mark.parametrize("canvas", [WIDE, NARROW])
def test_the_forest_draws_the_adjusted_interval_of_the_recipe_else_of_the_checkpoint(
    canvas: object, section: Section, arms: dict[str, ArmResult]
) -> None:
    forest = next(chart for chart in section.charts if chart.kind == "forest")
    svg = forest.draw(WIDE if canvas is WIDE else NARROW)
    assert svg is not None
    across = [line for line in _lines(svg) if line[1] == line[3] and line[0] != line[2]]
    compared = [arm.vs_zero_shot for arm in arms.values() if arm.vs_zero_shot is not None]
    wanted = [(v.artifact if v.recipe is None else v.recipe).ci95_adjusted for v in compared]
    # The scale from the first, the others by it.
    (x0, _, x1, _), *_ = across
    scale = (x1 - x0) / (wanted[0][1] - wanted[0][0])
    drawn = [(wanted[0][0] + (a - x0) / scale, wanted[0][0] + (b - x0) / scale) for a, _, b, _ in across]
    assert drawn[: len(wanted)] == [pytest.approx(interval, abs=1e-4) for interval in wanted]
    assert [y for _, y, *_ in across[: len(wanted)]] == sorted(y for _, y, *_ in across[: len(wanted)])


def test_the_terminal_s_forest_is_on_one_scale_and_marks_what_it_is_about(arms: dict[str, ArmResult]) -> None:
    lines = text_forest(list(arms.values()))
    assert "constant" not in lines
    assert "zero_shot" not in lines
    assert len({len(line) for line in lines.values()}) == 1
    assert "■" in lines["few_shot"]
    assert lines["lora"].index("●") > lines["full"].index("●") > lines["careless"].index("●")
    # Where zero is not crossed, the line of no difference is seen.
    assert lines["lora"].index("│") < lines["lora"].index("├")
    assert lines["careless"].index("│") > lines["careless"].index("┤")


def test_every_chart_can_be_read_without_being_seen(section: Section, rich_study: Path) -> None:
    assert [chart.kind for chart in section.charts if chart.draw(WIDE)] == KINDS
    for chart in section.charts:
        if chart.kind in KINDS:
            assert "lora" in chart.alternative
    forest, learn, cost, outcomes, tuning, accuracy = (c for c in section.charts if c.kind in KINDS)
    assert "+4.0 to +20.0" in forest.alternative
    assert "lora: +12.0 points on the task, -1.2 on general tasks (-3.2 to +0.8)" in learn.alternative
    assert "lora: 0.0%, 61 s to adapt" in cost.alternative
    assert "lora: 19% correct" in outcomes.alternative
    assert "0.0003 (chosen)" in tuning.alternative
    assert "full: 10.0% (5.0% to 20.0%)" in accuracy.alternative
    labels = [attributes["aria-label"] for tag, attributes in page_of(rich_study).tags if tag == "svg"]
    for chart in section.charts:
        if chart.kind in KINDS:
            assert labels.count(chart.alternative) == 2


def test_a_chart_that_stands_by_itself_is_on_white_and_one_in_a_page_is_not(section: Section) -> None:
    for chart in section.charts:
        drawn, file = chart.draw(WIDE), chart.file()
        if drawn is not None and file is not None:
            assert 'height="100%" fill="#ffffff"' in file
            assert 'height="100%"' not in drawn


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("few_shot", "this checkpoint, seed 0"),
        ("lora", "lora, gain: +12.0 points (+4.0 to +20.0; over 3 seeds)"),
        ("full", "a difference of 2 points or more is ruled out"),
        ("dora", "the format was learned, and no more is shown"),
        ("careless", "careless, HARM: -11.0 points (-19.0 to -3.0; over 3 seeds)"),
        ("half-careless", "About 4,100 test items or about 7 seeds would decide"),
        ("half-careless", "An effect of 9.0 points would be found four times in five"),
    ],
)
def test_a_verdict_says_how_sure_it_is_and_what_would_decide(arm: str, said: str, arms: dict[str, ArmResult]) -> None:
    assert said in (in_words(arms[arm]) or "")


def test_of_a_checkpoint_it_is_said_what_would_decide(arms: dict[str, ArmResult]) -> None:
    arm = arms["few_shot"]
    versus = arm.vs_zero_shot
    assert versus is not None

    def said(**needed: int | None) -> str:
        artifact = versus.artifact.model_copy(update=needed)
        changed = versus.model_copy(update={"artifact": artifact})
        return in_words(arm.model_copy(update={"vs_zero_shot": changed})) or ""

    decides = said(items_needed=5300, items_to_rule_out=None)
    assert "About 5,300 test items would decide, if the scores stay as they are." in decides
    both = said(items_needed=5300, items_to_rule_out=900)
    assert (
        "About 5,300 test items would show this difference, about 900 test items would rule out a difference of" in both
    )
    equal = said(items_needed=None, items_to_rule_out=900)
    assert "About 900 test items would rule out a difference of" in equal
    # Records of before do not say it.
    assert said(items_needed=None, items_to_rule_out=None).endswith("would be found four times in five.")


def test_what_is_not_compared_has_no_verdict(arms: dict[str, ArmResult]) -> None:
    assert in_words(arms["zero_shot"]) is None
    assert in_words(arms["constant"]) is None


def test_where_no_number_decides_it_says_so(arms: dict[str, ArmResult]) -> None:
    arm = arms["half-careless"]
    assert arm.vs_zero_shot is not None
    assert arm.vs_zero_shot.recipe is not None
    recipe = arm.vs_zero_shot.recipe.model_copy(update={"items_needed": None, "seeds_needed": None})
    versus = arm.vs_zero_shot.model_copy(update={"recipe": recipe})
    words = in_words(arm.model_copy(update={"vs_zero_shot": versus})) or ""
    assert "Neither more items nor more seeds alone would decide." in words


def test_page_text_terminal_and_notebook_all_say_it(results: Results, rich_study: Path) -> None:
    page = " ".join(page_of(rich_study).words)
    text = (rich_study / "report.md").read_text()
    table = " ".join(results.table().split())
    notebook = results_html(results, None)
    for shown in (page, text, table, notebook):
        assert CLAIM in shown
        assert "Yes: half-way back helps." in shown
        assert "over 3 seeds" in shown
        assert ADVICE in shown
    for shown in (page, text):
        for wanted in ("KL, chat", "whole answers in chat", "tuning s", "How settings were chosen"):
            assert wanted in shown
    assert notebook.count("<img ") == len(KINDS)
    assert notebook.count('alt="Chart: ') == len(KINDS)
    assert text.count("![Chart: ") == len(KINDS) + 1
