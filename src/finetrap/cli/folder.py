"""What a study's folder says."""

from pathlib import Path
from typing import Annotated

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import show
from finetrap.errors import StudyError
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


@app.command()
def claims(
    folder: Annotated[Path, typer.Argument(help="Folder that a study with claims wrote.")],
    plugin: Plugins = None,
    json: AsJson = False,
) -> None:
    """Say which of the study's claims its records support or refute, with the evidence.

    Example: finetrap claims finetrap-smollm2_135m
    """
    from finetrap.claims import judge_study
    from finetrap.listing import claims_json, claims_text
    from finetrap.store import Store

    store = Store.existing(folder)
    study = store.study()
    if not study.claims:
        raise StudyError(f"the study in {folder} states no claims; add `claims:` to its study file and run it again.")
    judged = judge_study(study, store.plan(), store)
    typer.echo(claims_json(judged) if json else claims_text(judged))
