"""What a study's folder says."""

from pathlib import Path
from typing import Annotated

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import show
from finetrap.options import AsJson, Plugins


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="Folder that a study writes.")],
    plugin: Plugins = None,
    json: AsJson = False,
) -> None:
    """Say what of a study is done, running, failed and left.

    Example: finetrap status finetrap-demo
    """
    from finetrap.status import status_of
    from finetrap.store import Store

    state = status_of(Store.existing(folder))
    typer.echo(state.model_dump_json(indent=1) if json else state.text())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that a study wrote.")],
    plugin: Plugins = None,
    json: AsJson = False,
) -> None:
    """Derive results.json, report.html and report.md from the records again, and print the table.

    Example: finetrap report finetrap-demo
    """
    from finetrap.store import Store
    from finetrap.study import answer

    store = Store.existing(folder)
    show(answer(store.study(), store), folder, json=json)
