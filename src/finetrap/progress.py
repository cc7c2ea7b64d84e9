"""What a person sees while a study runs: bars in a terminal or a notebook, plain lines elsewhere."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Says nothing."""

    def say(self, text: str) -> None:
        """A line that stays."""

    @contextmanager
    def trials(self, total: int) -> Iterator[None]:
        """Around all trials."""
        yield

    @contextmanager
    def trial(self, name: str) -> Iterator[None]:
        """Around one trial."""
        yield

    def stage(self, what: str, total: int) -> None:
        """A part of a trial begins: training or an evaluation, of `total` steps or items."""

    def advance(self, done: int, note: str = "") -> None:
        """The part went on by `done`."""


class TerminalReporter(Reporter):
    """Bars where the console is a terminal, a line a trial where it is not."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Progress | None = None
        self._trials: TaskID | None = None
        self._stage: TaskID | None = None
        self._what = ""

    def say(self, text: str) -> None:
        # Not folded: a pipe or a file has no width of its own, and rich takes 80 columns.
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def trials(self, total: int) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as bars:
            self._bars = bars
            self._trials = bars.add_task("trials", total=total)
            try:
                yield
            finally:
                self._bars = self._trials = self._stage = None

    @contextmanager
    def trial(self, name: str) -> Iterator[None]:
        if self._bars is not None and self._trials is not None:
            self._bars.update(self._trials, description=name)
        yield
        if self._bars is not None and self._trials is not None:
            self._bars.advance(self._trials)

    def stage(self, what: str, total: int) -> None:
        if self._bars is not None:
            if self._stage is not None:
                self._bars.remove_task(self._stage)
            self._stage = self._bars.add_task(f"  {what}", total=total)
            self._what = what

    def advance(self, done: int, note: str = "") -> None:
        if self._bars is not None and self._stage is not None:
            self._bars.update(self._stage, advance=done, description=f"  {self._what} {note}".rstrip())


def reporter_here() -> Reporter:
    """Bars where they can be shown, a line a trial elsewhere; on stderr, but for a notebook, which reddens that."""
    console = Console(stderr=True)
    if console.is_jupyter:
        from finetrap.report.notebook import NotebookReporter

        with warnings.catch_warnings():
            # Without ipywidgets tqdm, which Transformers imports, warns of bars that nobody will see.
            warnings.simplefilter("ignore")
            import tqdm.auto  # noqa: F401

        return NotebookReporter()
    return TerminalReporter(console)
