"""One model, one task."""

from pathlib import Path
from typing import Annotated

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import given, own_data, run_or_plan, settings
from finetrap.options import (
    AnswerField,
    Arms,
    AsJson,
    ChoicesField,
    CompletionField,
    DataDir,
    Device,
    DryRun,
    DTypeOption,
    Epochs,
    ForgettingTolerance,
    GroupField,
    KeepOption,
    LearningRate,
    LimitTest,
    LimitTrain,
    Looks,
    Margin,
    MaxNewTokens,
    MaxSize,
    Out,
    Plugins,
    PromptField,
    PromptTemplate,
    Queries,
    Rescue,
    Retry,
    Samples,
    Score,
    Seeds,
    ShotDraws,
    SizeOption,
    System,
    TestData,
    TuneOption,
)


@app.command()
def compare(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Preset, Hub id, local folder or GGUF file.")],
    task: Annotated[str | None, typer.Option(help="One of `finetrap tasks`; or --train for data of your own.")] = None,
    train: Annotated[
        str | None, typer.Option(help="Rows of your own: .jsonl, .csv, .parquet, or a data set of the Hub.")
    ] = None,
    test: TestData = None,
    prompt_field: PromptField = None,
    answer_field: AnswerField = None,
    completion_field: CompletionField = None,
    choices_field: ChoicesField = None,
    group_field: GroupField = None,
    prompt_template: PromptTemplate = None,
    system: System = None,
    score: Score = None,
    max_new_tokens: MaxNewTokens = None,
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
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Prompt through the chat template. Default: if aligned.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code of the model's repository.")
    ] = False,
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
    """Compare ways of adapting one model to one task.

    Example: finetrap compare --model smollm2-135m-instruct-q4 --task gsm8k --limit-train 256 --limit-test 200

    Example: finetrap compare --model smollm2-135m-instruct-q4 --train tickets.csv --prompt-field text
    --answer-field queue --score label
    """
    from finetrap.config import make_study

    spec = given(name=model, revision=revision, chat=chat, trust_remote_code=trust_remote_code or None)
    own = own_data(context, task)
    name = f"{Path(model).name or model}-{own.task_name if own else task}"
    study = make_study({"name": name[:100], "models": [spec], "tasks": [own or task], **settings(context)})
    run_or_plan(study, out, dry_run=dry_run, retry_failed=retry_failed, json=json)
