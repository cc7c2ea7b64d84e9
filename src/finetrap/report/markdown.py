"""report.md with its charts: the answer first, then the evidence, then everything needed to repeat it."""

from collections.abc import Sequence
from pathlib import Path

from finetrap.config import Study
from finetrap.records import slug
from finetrap.report.sections import Section, command_of, finished, machine, settings_of
from finetrap.report.table import (
    arms_grid,
    cost_grid,
    escape,
    headline,
    legend,
    markdown,
    out_of_distribution_grid,
    outcome_grid,
    retention_grid,
    tuning_grid,
)
from finetrap.report.words import claimed, in_words, rescued, what_next
from finetrap.results import ArmResult, Results
from finetrap.store import Store


def write_report(results: Results, study: Study, store: Store, found: Sequence[Section]) -> Path:
    """Write report.md and charts/ into the study's folder; returns the report's path."""
    parts = [f"# {escape(study.name)}", ""]
    for section in found:
        parts += _section(section, store)
    parts += _claims(results)
    parts += _warnings(results)
    parts += _repeat(results, store)
    return store.write("report.md", "\n".join(parts).rstrip() + "\n")


def _section(section: Section, store: Store) -> list[str]:
    arms, recommendation = section.arms, section.recommendation
    charts: dict[str, list[str]] = {}
    for chart in section.charts:
        if drawn := chart.file():
            path = f"charts/{slug(f'{section.task}-{section.model}')}-{chart.kind}.svg"
            store.write(path, drawn)
            charts[chart.kind] = [f"![{escape(chart.alternative)}]({path})", "", escape(chart.caption), ""]
    parts = [
        f"## {escape(section.task)} with {escape(section.model)}",
        "",
        f"**{escape(headline(recommendation))}**",
        "",
        *(f"- {escape(line)}" for line in recommendation.why),
        *(f"- {escape(line)}" for line in what_next(recommendation)),
        "",
        markdown(arms_grid(arms)),
        "",
        escape(legend(arms)),
        "",
    ]
    if verdicts := [words for arm in arms if (words := in_words(arm))]:
        parts += ["### Against the untouched model", "", *charts.get("forest", ())]
        parts += [*(f"- {escape(words)}" for words in verdicts), ""]
    if recommendation.rescues:
        lines = [f"- {escape(rescued(rescue))}" for rescue in recommendation.rescues]
        parts += ["### What removes the harm", "", *lines, ""]
    if any(arm.retention is not None for arm in arms):
        parts += ["### Learned and forgotten", "", *charts.get("learn-forget", ()), markdown(retention_grid(arms)), ""]
    parts += ["### What it costs", "", *charts.get("cost", ()), markdown(cost_grid(arms)), ""]
    parts += ["### What the answers are", "", *charts.get("outcomes", ()), markdown(outcome_grid(arms)), ""]
    if any(arm.tuning for arm in arms):
        parts += ["### How settings were chosen", "", *charts.get("tuning", ()), markdown(tuning_grid(arms)), ""]
    parts += ["### Accuracy", "", *charts["accuracy"]]
    if "learning" in charts:
        parts += ["### Learning", "", *charts["learning"]]
    if any(arm.out_of_distribution for arm in arms):
        parts += ["### On other problems", "", markdown(out_of_distribution_grid(arms)), ""]
    parts += ["### Settings", "", *(_settings(arm) for arm in arms), ""]
    return parts


def _settings(arm: ArmResult) -> str:
    return f"- {escape(arm.arm)} ({escape(arm.method)}; seeds {list(arm.seeds)}): {escape(settings_of(arm))}"


def _claims(results: Results) -> list[str]:
    parts = []
    for claim in results.claims:
        parts += [f"- **{escape(claimed(claim))}**", *(f"  - {escape(line)}" for line in claim.evidence)]
    return ["## Claims", "", *parts, ""] if parts else []


def _warnings(results: Results) -> list[str]:
    lines = [f"- {escape(warning)}" for warning in results.warnings]
    lines += [f"- failed: {escape(failure.trial)}: {escape(failure.error)}" for failure in results.failures]
    return ["## Before you trust this", "", *lines, ""] if lines else []


def _repeat(results: Results, store: Store) -> list[str]:
    command = command_of(results, store).replace("`", "'")
    versions = escape(machine(results.environment))
    return ["## To repeat it", "", "```", command, "```", "", f"{finished(results)} {versions}", ""]
