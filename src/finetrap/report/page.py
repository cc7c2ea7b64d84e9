"""report.html: the study's answer as one file that loads nothing, and shows what each arm said to each question.

It computes no number: all are of `Results`, in the words of `table`. The questions are those that the study kept;
where it kept none, the task's own, if they are what was asked.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment as Templates
from jinja2 import StrictUndefined
from markupsafe import Markup

from finetrap.config import Study
from finetrap.data import load_test
from finetrap.errors import StudyError
from finetrap.records import Evaluation, ItemRow, items_digest
from finetrap.report.charts import NARROW, OUTCOME_TONES, TONES, WIDE, inline, palette_css
from finetrap.report.sections import Section, command_of, finished, machine, settings_of
from finetrap.report.table import (
    OUTCOMES,
    Grid,
    arms_grid,
    cost_grid,
    headline,
    legend,
    out_of_distribution_grid,
    outcome_grid,
    retention_grid,
    tuning_grid,
)
from finetrap.report.words import claimed, in_words, percent, rescued
from finetrap.results import ArmResult, ClaimVerdict, Recommendation, Results, Verdict
from finetrap.retention import samples_of
from finetrap.store import Store
from finetrap.task import Example, get_task

_RESCUE_TONES: dict[bool | None, str] = {True: TONES["gain"], False: TONES["harm"], None: TONES["undecided"]}
_CLAIM_TONES: dict[ClaimVerdict, str] = {
    "supported": TONES["gain"],
    "refuted": TONES["harm"],
    "undetermined": TONES["undecided"],
}
_TEXT_COLUMNS = ("arm", "verdict", "task", "method", "seeds", "settings", "setting", "value", "choice")


class Cell(NamedTuple):
    """A cell, with the colour of its verdict where it has one."""

    text: str
    tone: str | None = None


class Table(NamedTuple):
    """A table with its caption; `numbers` says which columns hold numbers, `marked` which row is recommended."""

    caption: str
    header: tuple[str, ...]
    numbers: tuple[bool, ...]
    rows: list[list[Cell]]
    marked: str | None = None


class Figure(NamedTuple):
    """A chart for a desk and for a phone."""

    caption: str
    wide: Markup
    narrow: Markup


class Answers(NamedTuple):
    """The first seed's answers of each arm to the items of one task."""

    evaluation: Evaluation
    rows: dict[str, list[ItemRow]]
    seeds: dict[str, int]


def write_page(results: Results, study: Study, store: Store, found: Sequence[Section]) -> Path:
    """Write report.html into the study's folder; returns its path."""
    style, script = palette_css() + _part("report.css"), _part("report.js")
    templates = Templates(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = templates.from_string(_part("report.html.jinja")).render(
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; "
        "form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        name=study.name,
        results=results,
        finished=finished(results),
        machine=machine(results.environment),
        sections=[_section(section, store, f"s{number}") for number, section in enumerate(found, 1)],
        claims=[(claimed(claim), _CLAIM_TONES[claim.verdict], claim.evidence) for claim in results.claims],
        command=command_of(results, store),
        settings=_pairs("Settings of the study", results.study["settings"]),
        environment=_pairs("Machine and versions", results.environment.model_dump(mode="json")),
    )
    return store.write("report.html", text.strip() + "\n")


def _part(name: str) -> str:
    return files("finetrap.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls the one inline text that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(section: Section, store: Store, name: str) -> dict[str, object]:
    arms, recommendation = section.arms, section.recommendation
    chosen = recommendation.leader if recommendation.undecided else recommendation.method
    verdicts = [None if arm.vs_zero_shot is None else arm.vs_zero_shot.verdict for arm in arms]
    away = any(arm.out_of_distribution for arm in arms)
    return {
        "id": name,
        "model": section.model,
        "task": section.task,
        "headline": headline(recommendation),
        "tone": _tone(recommendation, arms),
        "recommendation": recommendation,
        "confidence": _confidence(recommendation),
        "arms": _table("Every arm", arms_grid(arms), verdicts, chosen),
        "legend": legend(arms),
        "verdicts": [
            (words, TONES[arm.vs_zero_shot.verdict]) for arm in arms if (words := in_words(arm)) and arm.vs_zero_shot
        ],
        "rescues": [(rescued(rescue), _RESCUE_TONES[rescue.removes]) for rescue in recommendation.rescues],
        "charts": _figures(section, name),
        "retention": _table(
            "General tasks after adapting: score (change in points; 95% interval). zero_shot is the model as it was.",
            retention_grid(arms),
            [arm.retention.verdict for arm in arms if arm.retention is not None],
        ),
        "outcomes": _table("Answers by outcome", outcome_grid(arms)),
        "away": _table("Tasks that no arm was trained for", out_of_distribution_grid(arms)) if away else None,
        "tuning": _table("On validation items, never on test", tuning_grid(arms))
        if any(arm.tuning for arm in arms)
        else None,
        "cost": _table("Training once, and each query", cost_grid(arms)),
        "settings": _settings(section),
        "browsers": [
            _browser(answers, store, f"{name}-{number}", chosen)
            for number, answers in enumerate(_answers(section, store))
        ],
    }


def _tone(recommendation: Recommendation, arms: Sequence[ArmResult]) -> str:
    if recommendation.method in ("floor", "undecided"):
        return TONES["floor" if recommendation.method == "floor" else "undecided"]
    versus = next(arm.vs_zero_shot for arm in arms if arm.arm == recommendation.method)
    return "reference" if versus is None else TONES[versus.verdict]


def _confidence(recommendation: Recommendation) -> str | None:
    if recommendation.confidence is None or recommendation.regret_upper is None:
        return None
    arm = recommendation.leader if recommendation.undecided else recommendation.method
    return (
        f"{percent(recommendation.confidence, 0)} that '{arm}' loses at most "
        f"{100 * recommendation.regret_upper:.1f} points against the best arm on other items like these."
    )


def _table(caption: str, grid: Grid, verdicts: Sequence[Verdict | None] = (), marked: str | None = None) -> Table:
    rows = []
    for index, row in enumerate(grid.rows):
        cells = [Cell(text, TONES["harm"] if text.endswith("FORGETS") else None) for text in row]
        verdict = verdicts[index] if index < len(verdicts) else None
        if verdict is not None:
            column = grid.header.index("verdict")
            cells[column] = Cell(row[column], TONES[verdict])
        rows.append(cells)
    return Table(caption, grid.header, tuple(name not in _TEXT_COLUMNS for name in grid.header), rows, marked)


def _figures(section: Section, name: str) -> dict[str, Figure]:
    """The charts that there are, by kind."""
    figures = {}
    for chart in section.charts:
        wide, narrow = (
            Markup(inline(svg, name=f"{name}-{chart.kind}-{size}", label=chart.alternative)) if svg else None
            for size, svg in (("wide", chart.draw(WIDE)), ("narrow", chart.draw(NARROW)))
        )
        if wide is not None and narrow is not None:
            figures[chart.kind] = Figure(chart.caption, wide, narrow)
    return figures


def _settings(section: Section) -> Table:
    rows = [(arm.arm, arm.method, ", ".join(map(str, arm.seeds)), settings_of(arm)) for arm in section.arms]
    title = f"Arms of {section.task} with {section.model}"
    return _table(title, Grid(("arm", "method", "seeds", "settings"), rows))


def _pairs(caption: str, values: object) -> Table:
    """Settings as a table of name and value, one level deep."""
    rows = []
    for key, value in values.items() if isinstance(values, dict) else ():
        nested = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(inner or key, _plain(said)) for inner, said in nested]
    return _table(caption, Grid(("setting", "value", "choice"), rows))


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        said = {key: inner for key, inner in value.items() if inner is not None and inner is not False}
        return _plain(said["name"]) if set(said) == {"name"} else json.dumps(said, ensure_ascii=False)
    return "-" if value is None else str(value)


def _answers(section: Section, store: Store) -> list[Answers]:
    """The target first, then the tasks out of distribution."""
    found: dict[str, Answers] = {}
    for planned in store.plan().planned:
        trial = planned.trial
        if (trial.model.label, trial.task) != (section.model, section.task):
            continue
        for evaluation in planned.evaluations:
            if evaluation.purpose == "retention" or store.evaluation(trial, evaluation) is None:
                continue
            answers = found.setdefault(evaluation.task, Answers(evaluation, {}, {}))
            if trial.arm not in answers.rows:
                answers.rows[trial.arm] = store.rows(trial, evaluation)
                answers.seeds[trial.arm] = trial.seed
    return sorted(found.values(), key=lambda answers: answers.evaluation.purpose != "target")


def _examples(answers: Answers, store: Store) -> dict[str, Example]:
    """The questions by id; empty where they can no longer be had, or are no longer what was asked."""
    kept = store.items(answers.evaluation)
    if kept:
        return kept
    try:
        all_of_them = {e.id: e for e in load_test(get_task(answers.evaluation.task)).examples}
    except StudyError:
        return {}
    ids = dict.fromkeys(row.id for row in next(iter(answers.rows.values())))
    examples = [all_of_them[id] for id in ids if id in all_of_them]
    return {e.id: e for e in examples} if items_digest(examples) == answers.evaluation.items else {}


def _browser(answers: Answers, store: Store, name: str, chosen: str | None) -> dict[str, object]:
    """What the page's script reads: arms, and for each item its question and each arm's answer.

    Where several answers were drawn of an item, it comes again for each of them.
    """
    examples = _examples(answers, store)
    by_arm = {arm: {(row.id, row.sample or 0): row for row in rows} for arm, rows in answers.rows.items()}
    ids = dict.fromkeys(id for rows in by_arm.values() for id, _ in rows)
    samples = max(map(samples_of, answers.rows.values()))
    items = []
    for id, sample in product(ids, range(samples)):
        # What is not drawn, as the trivial answer, stands beside each of those that are.
        rows = [rows.get((id, sample), rows.get((id, 0))) for rows in by_arm.values()]
        gold = next(row.gold for row in rows if row is not None)
        example = examples.get(id)
        which = f"{id}, answer {sample + 1} of {samples}" if samples > 1 else id
        said: dict[str, object] = {"id": which, "gold": gold, "answers": [_answer(row, answers) for row in rows]}
        if example is not None:
            said["question"] = "\n".join([*(turn.content for turn in example.turns), example.question])
            if example.choices:
                said |= {"choices": example.choices, "gold": example.choices[int(gold)]}
        elif answers.evaluation.kind == "choice":
            said["gold"] = f"choice {gold}, counted from 0"
        items.append(said)
    arms = list(answers.rows)
    tones = [OUTCOME_TONES[outcome] for outcome in OUTCOMES]
    data = {"arms": arms, "outcomes": OUTCOMES, "tones": tones, "items": items}
    return {
        "id": name,
        "task": answers.evaluation.task,
        "n": len(items),
        "unit": "questions" if samples == 1 else "answers",
        "arms": arms,
        "outcomes": OUTCOMES,
        "first": "zero_shot" if "zero_shot" in arms else arms[0],
        "second": chosen if chosen in arms and chosen != "zero_shot" else arms[-1],
        "seeds": ", ".join(sorted({str(seed) for seed in answers.seeds.values()})),
        "questions": bool(examples),
        "data": data,
    }


def _answer(row: ItemRow | None, answers: Answers) -> list[object] | None:
    """[outcome, extracted answer, output, cut off]; of a choice the chosen text is answer and output in one."""
    if row is None or row.outcome is None:
        return None
    outcome = OUTCOMES.index(row.outcome)
    if answers.evaluation.kind == "choice":
        return [outcome, row.output]
    return [outcome, row.extracted, row.output, int(row.truncated)]
