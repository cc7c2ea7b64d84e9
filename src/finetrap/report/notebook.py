"""What a notebook shows: progress in one place of the cell's output, and results as HTML.

It needs IPython only, not ipywidgets, and takes colours and fonts from the page.
"""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from finetrap.progress import Reporter
from finetrap.report.charts import Chart
from finetrap.report.sections import sections
from finetrap.report.table import Grid, arms_grid, headline, legend
from finetrap.report.words import claimed, in_words, rescued, what_next
from finetrap.results import Results

SECONDS_BETWEEN_UPDATES = 0.5


class NotebookReporter(Reporter):
    """Lines that stay, and bars that change in place while trials run."""

    def __init__(self) -> None:
        self._display: Any = None
        self._began = self._updated = 0.0
        self._trials, self._stage = _Bar(), _Bar()

    def say(self, text: str) -> None:
        print(text)

    @contextmanager
    def trials(self, total: int) -> Iterator[None]:
        from IPython.display import DisplayHandle

        self._trials, self._stage = _Bar("trials", total), _Bar()
        self._began = time.monotonic()
        if total:
            self._display = DisplayHandle()
            self._display.display(self._shown(), raw=True)
        try:
            yield
        finally:
            self._trials.what, self._stage = "trials", _Bar()
            self._update()
            self._display = None

    @contextmanager
    def trial(self, name: str) -> Iterator[None]:
        self._trials.what = name
        yield
        self._trials.done += 1
        self._update()

    def stage(self, what: str, total: int) -> None:
        self._stage = _Bar(what, total)
        self._update()

    def advance(self, done: int, note: str = "") -> None:
        self._stage.done += done
        self._stage.note = note
        if time.monotonic() - self._updated > SECONDS_BETWEEN_UPDATES:
            self._update()

    def _update(self) -> None:
        if self._display is not None:
            self._updated = time.monotonic()
            self._display.update(self._shown(), raw=True)

    def _shown(self) -> dict[str, str]:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self._trials.note = f"{minutes}:{seconds:02}"
        bars = [bar for bar in (self._trials, self._stage) if bar.total]
        return {
            "text/plain": "\n".join(bar.text() for bar in bars),
            "text/html": "".join(f"<div>{bar.html()}</div>" for bar in bars),
        }


@dataclass
class _Bar:
    what: str = ""
    total: int = 0
    done: int = 0
    note: str = ""

    def text(self) -> str:
        return f"{self.done}/{self.total} {self.what} {self.note}".rstrip()

    def html(self) -> str:
        return f'<progress value="{self.done}" max="{self.total}"></progress> {escape(self.text())}'


def results_html(results: Results, report: Path | None) -> str:
    """The answers first, then the evidence, as a fragment of a page."""
    parts = []
    for section in sections(results):
        model, task, arms, recommendation = section.model, section.task, section.arms, section.recommendation
        parts.append(f"<p><b>{escape(headline(recommendation))}</b> {escape(task)} with {escape(model)}</p>")
        parts.append(_items([*recommendation.why, *what_next(recommendation)]))
        parts.append(_table(arms_grid(arms)))
        parts.append(f"<details><summary>What the columns mean</summary><p>{escape(legend(arms))}</p></details>")
        parts.append(_items([words for arm in arms if (words := in_words(arm))]))
        parts += [_picture(svg, chart) for chart in section.charts if (svg := chart.file())]
        parts.append(_items([rescued(rescue) for rescue in recommendation.rescues]))
    parts.append(_items([" ".join([claimed(claim), *claim.evidence]) for claim in results.claims]))
    warned = [f"warning: {warning}" for warning in results.warnings]
    parts.append(_items([*warned, *(f"failed: {failure.trial}: {failure.error}" for failure in results.failures)]))
    if report is not None:
        parts.append(f"<p>Report: <code>{escape(str(report))}</code></p>")
    return f"<div>{''.join(parts)}</div>"


def _picture(svg: str, chart: Chart) -> str:
    """A chart that has its own ground, folded away but for the first: as a picture it shares no name with the page."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    image = f'<img src="{source}" alt="{escape(chart.alternative)}" style="max-width: 100%">'
    opened = " open" if chart.kind == "forest" else ""
    return f"<details{opened}><summary>{escape(chart.caption)}</summary>{image}</details>"


def _table(grid: Grid) -> str:
    sides = ["left" if column in ("arm", "verdict") else "right" for column in grid.header]

    def row(tag: str, texts: tuple[str, ...]) -> str:
        cells = zip(sides, texts, strict=True)
        return "".join(f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>' for side, text in cells)

    rows = "".join(f"<tr>{row('td', texts)}</tr>" for texts in grid.rows)
    return f"<table><thead><tr>{row('th', grid.header)}</tr></thead><tbody>{rows}</tbody></table>"


def _items(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
