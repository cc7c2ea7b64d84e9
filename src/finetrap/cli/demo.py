"""The demo."""

from importlib.resources import as_file, files

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import given, run_or_plan
from finetrap.options import AsJson, Device, DryRun, DTypeOption, Out, Retry


@app.command()
def demo(
    out: Out = None,
    device: Device = None,
    dtype: DTypeOption = None,
    dry_run: DryRun = False,
    retry_failed: Retry = False,
    json: AsJson = False,
) -> None:
    """See the trap on a real model: six ways of adapting it, and a careless one.

    Example: finetrap demo
    """
    from finetrap.config import load_study

    overrides = given(device=device, dtype=dtype)
    with as_file(files("finetrap").joinpath("studies", "demo.yaml")) as path:
        study = load_study(path, overrides)
    run_or_plan(study, out, dry_run=dry_run, retry_failed=retry_failed, json=json)
    if not dry_run and not json:
        typer.echo(
            "Next, your own model (a folder, a GGUF file, a Hub id or one of `finetrap models`):\n"
            "  finetrap compare --model PATH --task arc_easy\n"
            "or a fine-tune that you already have of this one: did it break it?\n"
            "  finetrap compare --model smollm2-135m-instruct-q4 --task arc_easy --arm mine=PATH"
        )
