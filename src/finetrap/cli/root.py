"""The command line itself: its version, its entry point and what it makes of errors."""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from finetrap import __version__
from finetrap.errors import StudyError

app = typer.Typer(
    name="finetrap",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="How to adapt a small language model to your task, answered with evidence.",
)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """How to adapt a small language model to your task, answered with evidence."""
    if version:
        typer.echo(f"finetrap {__version__}")
        raise typer.Exit


def entry() -> None:
    """The console script: a StudyError is one line and exit code 2, an interrupt 130."""
    sys.exit(call(app))


def call(command: Callable[..., object], arguments: list[str] | None = None) -> int:
    """Run the command line on some arguments; returns its exit code."""
    try:
        result = command(args=arguments, standalone_mode=False)
    except StudyError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        # click makes an Abort of an interrupt; newer versions of typer make it an exit code.
        typer.echo("interrupted.", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # typer carries its own copy of click's exceptions; both show themselves and know their exit code.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0
