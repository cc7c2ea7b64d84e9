"""A study file."""

from pathlib import Path
from typing import Annotated

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import run_or_plan, settings
from finetrap.options import (
    Arms,
    AsJson,
    DataDir,
    Device,
    DryRun,
    DTypeOption,
    Epochs,
    ForgettingTolerance,
    KeepOption,
    LearningRate,
    LimitTest,
    LimitTrain,
    Looks,
    Margin,
    MaxSize,
    Out,
    Plugins,
    Queries,
    Rescue,
    Retry,
    Samples,
    Seeds,
    ShotDraws,
    SizeOption,
    TuneOption,
)


@app.command()
def run(
    context: typer.Context,
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study.")],
    data_dir: DataDir = None,
    plugin: Plugins = None,
    arm: Arms = None,
    out: Out = None,
    size: SizeOption = None,
    tune: TuneOption = None,
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    seeds: Seeds = None,
    shot_draws: ShotDraws = None,
    learning_rate: LearningRate = None,
    epochs: Epochs = None,
    samples: Samples = None,
    device: Device = None,
    dtype: DTypeOption = None,
    margin: Margin = None,
    forgetting_tolerance: ForgettingTolerance = None,
    queries: Queries = None,
    max_size: MaxSize = None,
    looks: Looks = None,
    keep: KeepOption = None,
    rescue: Rescue = None,
    dry_run: DryRun = False,
    retry_failed: Retry = False,
    json: AsJson = False,
) -> None:
    """Run a study file: models x tasks x arms x seeds. Options override the file.

    Example: finetrap run study.yaml --limit-test 500
    """
    from finetrap.config import load_study

    run_or_plan(load_study(study_file, settings(context)), out, dry_run=dry_run, retry_failed=retry_failed, json=json)
