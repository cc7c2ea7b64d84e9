"""Verdicts on what lm-evaluation-harness wrote."""

from typing import Annotated

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import console
from finetrap.options import AsJson


@app.command()
def judge(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="Files or folders of lm_eval --log_samples, the first the baseline; NAME again for another seed.",
        ),
    ],
    baseline: Annotated[str | None, typer.Option(help="The arm that the others are compared with.")] = None,
    margin: Annotated[float, typer.Option(help="Differences below it would not change the choice.", min=0)] = 0.02,
    metric: Annotated[
        str | None, typer.Option(help="What decides. Default: exact_match, acc_bytes, acc_norm or acc.")
    ] = None,
    filter_name: Annotated[
        str | None, typer.Option("--filter", help="Whose answers count. Default: flexible-extract, else the first.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="A task of the folders; again for more. Default: all.")] = None,
    json: AsJson = False,
) -> None:
    """Give verdicts on runs of lm-evaluation-harness: paired by item, corrected for how many there are.

    Example: finetrap judge base=out/base tuned=out/tuned

    Example: finetrap judge base=out/base lora=out/lora_seed0 lora=out/lora_seed1 lora=out/lora_seed2
    """
    from finetrap.judge import judge as verdicts
    from finetrap.judge import parse_runs

    judged = verdicts(
        parse_runs(runs), baseline=baseline, margin=margin, metric=metric, filter_name=filter_name, tasks=task or ()
    )
    if json:
        typer.echo(judged.to_json())
    else:
        console().print(judged.render())
