"""Methods, tasks and models."""

from typing import Annotated

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import print_rows
from finetrap.options import AsJson, Plugins


@app.command()
def methods(plugin: Plugins = None, json: AsJson = False) -> None:
    """List the ways of adapting a model, with their settings.

    Example: finetrap methods
    """
    from finetrap.listing import method_rows

    print_rows(method_rows(), json=json)


@app.command()
def tasks(plugin: Plugins = None, json: AsJson = False) -> None:
    """List the tasks.

    Example: finetrap tasks
    """
    from finetrap.listing import task_rows

    print_rows(task_rows(), json=json)


models_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json: AsJson = False) -> None:
    """List the models known by name, and which are on this machine.

    Example: finetrap models
    """
    if context.invoked_subcommand is None:
        from finetrap.listing import model_rows

        print_rows(model_rows(), json=json)


@models_app.command("get")
def models_get(name: Annotated[str, typer.Argument(help="One of `finetrap models`.")]) -> None:
    """Bring a model's weights onto this machine.

    Example: finetrap models get smollm2-135m-instruct-q4
    """
    from finetrap.presets import fetch

    typer.echo(f"{name} is at {fetch(name)}")
