"""What commands share: options into settings, settings into a run, answers onto the terminal."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from finetrap.errors import StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from finetrap.config import Study
    from finetrap.results import Results
    from finetrap.rows.own_data import OwnData


def own_data(context: typer.Context, task: str | None) -> "OwnData | None":
    """Data of one's own out of the options, which are called as its fields; None where a task is named."""
    from finetrap.rows.own_data import OwnData, make_own_data

    values = given(**{name: context.params.get(name) for name in OwnData.model_fields})
    if task is not None and values:
        raise StudyError(f"--task {task} brings its own data; leave out --{next(iter(values)).replace('_', '-')}.")
    if task is None and "train" not in values:
        raise StudyError("name a task (--task, one of `finetrap tasks`) or give rows of your own (--train FILE).")
    return None if task is not None else make_own_data(values)


def settings(context: typer.Context) -> dict[str, Any]:
    """Settings of a study out of the options, which are called as its fields; --arm comes again for each arm."""
    from finetrap.config import Study

    values = {name: context.params.get(name) for name in Study.model_fields}
    return given(**{**values, "arms": context.params["arm"] or None})


def given(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {key: value for key, value in values.items() if value is not None}


def console(*, stderr: bool = False) -> "Console":
    """A console of rich on stdout or stderr."""
    from rich.console import Console

    # A pipe or a file has no width of its own; rich would fold the table at 80 columns.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 150)


def json_text(value: object) -> str:
    """A value as JSON; commands call their option so, and the module is hidden there."""
    import json

    return json.dumps(value, indent=1)


def print_rows(rows: list[dict[str, str]], *, json: bool) -> None:
    """Print a list as a table or as JSON."""
    if json:
        typer.echo(json_text(rows))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console().print(table, markup=False)


def run_or_plan(study: "Study", out: Path | None, *, dry_run: bool, retry_failed: bool, json: bool) -> None:
    """Run a study and show its answer, or say what it would take."""
    folder = out or study.default_folder()
    command = shlex.join(["finetrap", *sys.argv[1:]])
    if dry_run:
        from finetrap.outline import outline, outline_json, outline_text

        planned = outline(study, folder)
        typer.echo(json_text(outline_json(planned)) if json else outline_text(planned, folder))
        return
    from finetrap.progress import TerminalReporter
    from finetrap.study import run as run_study

    # Progress goes to stderr, so that what is printed can be piped.
    reporter = TerminalReporter(console(stderr=True))
    try:
        results = run_study(study, folder, reporter=reporter, command=command, retry_failed=retry_failed)
    except KeyboardInterrupt:
        kept = "What is finished is kept" if (folder / "plan.json").is_file() else "Nothing was started"
        typer.echo(f"\ninterrupted. {kept} in {folder}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    show(results, folder, json=json)
    if results.failures:
        typer.echo(
            f"{len(results.failures)} trials failed (failure.json in their folders under {folder}/trials says where); "
            f"the same command with --retry-failed tries them again.",
            err=True,
        )
        raise typer.Exit(1)


def show(results: "Results", folder: Path, *, json: bool) -> None:
    """Print an answer."""
    if json:
        typer.echo(results.to_json())
        return
    from finetrap.listing import where_to_find
    from finetrap.report.table import render

    console().print(render(results))
    typer.echo(where_to_find(results, folder))
