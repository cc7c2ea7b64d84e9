"""The commands. No logic: each turns words into a study, runs it, and prints what comes back."""

import os
import shlex
import sys
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetrap import __version__
from finetrap.errors import StudyError
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
    KeepOption,
    LearningRate,
    LimitTest,
    LimitTrain,
    MaxNewTokens,
    Out,
    Plugins,
    PromptField,
    PromptTemplate,
    Rescue,
    Retry,
    Score,
    Seeds,
    System,
    TestData,
)

if TYPE_CHECKING:
    from rich.console import Console

    from finetrap.config import Study
    from finetrap.own_data import OwnData
    from finetrap.results import Results

app = typer.Typer(
    name="finetrap",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="How to adapt a small language model to your task, answered with evidence.",
)
models_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """How to adapt a small language model to your task, answered with evidence."""
    if version:
        typer.echo(f"finetrap {__version__}")
        raise typer.Exit


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

    overrides = _given(device=device, dtype=dtype)
    with as_file(files("finetrap").joinpath("studies", "demo.yaml")) as path:
        study = load_study(path, overrides)
    _run(study, out, dry_run=dry_run, retry_failed=retry_failed, json=json)
    if not dry_run and not json:
        typer.echo(
            "Next, your own model (a folder, a GGUF file, a Hub id or one of `finetrap models`):\n"
            "  finetrap compare --model PATH --task arc_easy\n"
            "or a fine-tune that you already have of this one: did it break it?\n"
            "  finetrap compare --model smollm2-135m-instruct-q4 --task arc_easy --arm mine=PATH"
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
    prompt_template: PromptTemplate = None,
    system: System = None,
    score: Score = None,
    max_new_tokens: MaxNewTokens = None,
    data_dir: DataDir = None,
    plugin: Plugins = None,
    arm: Arms = None,
    out: Out = None,
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    seeds: Seeds = None,
    learning_rate: LearningRate = None,
    epochs: Epochs = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Prompt through the chat template. Default: if aligned.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code of the model's repository.")
    ] = False,
    device: Device = None,
    dtype: DTypeOption = None,
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

    spec = _given(name=model, revision=revision, chat=chat, trust_remote_code=trust_remote_code or None)
    own = _own_data(context, task)
    name = f"{Path(model).name or model}-{own.task_name if own else task}"
    study = make_study({"name": name[:100], "models": [spec], "tasks": [own or task], **_settings(context)})
    _run(study, out, dry_run=dry_run, retry_failed=retry_failed, json=json)


@app.command()
def run(
    context: typer.Context,
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study.")],
    data_dir: DataDir = None,
    plugin: Plugins = None,
    arm: Arms = None,
    out: Out = None,
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    seeds: Seeds = None,
    learning_rate: LearningRate = None,
    epochs: Epochs = None,
    device: Device = None,
    dtype: DTypeOption = None,
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

    _run(load_study(study_file, _settings(context)), out, dry_run=dry_run, retry_failed=retry_failed, json=json)


@app.command("check-data")
def check_data(
    context: typer.Context,
    train: Annotated[str, typer.Argument(metavar="FILE", help="Rows as for `compare --train`.")],
    test: TestData = None,
    prompt_field: PromptField = None,
    answer_field: AnswerField = None,
    completion_field: CompletionField = None,
    choices_field: ChoicesField = None,
    prompt_template: PromptTemplate = None,
    system: System = None,
    score: Score = None,
    max_new_tokens: MaxNewTokens = None,
    model: Annotated[
        str | None, typer.Option(help="Whose tokens and context count. Default: smollm2-135m-instruct-q4, if here.")
    ] = None,
    data_dir: DataDir = None,
    plugin: Plugins = None,
    json: AsJson = False,
) -> None:
    """Say what a study would make of your rows: what is wrong, how long they are, what the model will see.

    Example: finetrap check-data tickets.csv --prompt-field text --answer-field queue --score label
    """
    from finetrap.check_data import check

    own = _own_data(context, None)
    assert own is not None
    found = check(own, model=model, data_dir=data_dir)
    typer.echo(found.model_dump_json(indent=1) if json else found.text())
    if found.problems:
        raise StudyError(f"{len(found.problems)} problems would stop a study; the first: {found.problems[0]}")


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
    _show(answer(store.study(), store), folder, json=json)


@app.command()
def methods(plugin: Plugins = None, json: AsJson = False) -> None:
    """List the ways of adapting a model, with their settings.

    Example: finetrap methods
    """
    from finetrap.listing import method_rows

    _list(method_rows(), json=json)


@app.command()
def tasks(plugin: Plugins = None, json: AsJson = False) -> None:
    """List the tasks.

    Example: finetrap tasks
    """
    from finetrap.listing import task_rows

    _list(task_rows(), json=json)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json: AsJson = False) -> None:
    """List the models known by name, and which are on this machine.

    Example: finetrap models
    """
    if context.invoked_subcommand is None:
        from finetrap.listing import model_rows

        _list(model_rows(), json=json)


@models_app.command("get")
def models_get(name: Annotated[str, typer.Argument(help="One of `finetrap models`.")]) -> None:
    """Bring a model's weights onto this machine.

    Example: finetrap models get smollm2-135m-instruct-q4
    """
    from finetrap.presets import fetch

    typer.echo(f"{name} is at {fetch(name)}")


def _own_data(context: typer.Context, task: str | None) -> "OwnData | None":
    """Data of one's own out of the options, which are called as its fields; None where a task is named."""
    from finetrap.own_data import OwnData, make_own_data

    values = _given(**{name: context.params.get(name) for name in OwnData.model_fields})
    if task is not None and values:
        raise StudyError(f"--task {task} brings its own data; leave out --{next(iter(values)).replace('_', '-')}.")
    if task is None and "train" not in values:
        raise StudyError("name a task (--task, one of `finetrap tasks`) or give rows of your own (--train FILE).")
    return None if task is not None else make_own_data(values)


def _settings(context: typer.Context) -> dict[str, Any]:
    """Settings of a study out of the options, which are called as its fields; --arm comes again for each arm."""
    from finetrap.config import Study

    values = {name: context.params.get(name) for name in Study.model_fields}
    return _given(**{**values, "arms": context.params["arm"] or None})


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    # A pipe or a file has no width of its own; rich would fold the table at 80 columns.
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 150)


def _list(rows: list[dict[str, str]], *, json: bool) -> None:
    if json:
        import json as json_module

        typer.echo(json_module.dumps(rows, indent=1))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for key in rows[0]:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    _console().print(table, markup=False)


def _run(study: "Study", out: Path | None, *, dry_run: bool, retry_failed: bool, json: bool) -> None:
    folder = out or study.default_folder()
    command = shlex.join(["finetrap", *sys.argv[1:]])
    if dry_run:
        from finetrap.listing import dry_run_json, dry_run_text
        from finetrap.study import estimates, prepare

        left = estimates(study, prepare(study, folder))
        typer.echo(dry_run_json(left) if json else dry_run_text(left, folder))
        return
    from finetrap.progress import TerminalReporter
    from finetrap.study import run as run_study

    # Progress goes to stderr, so that what is printed can be piped.
    reporter = TerminalReporter(_console(stderr=True))
    try:
        results = run_study(study, folder, reporter=reporter, command=command, retry_failed=retry_failed)
    except KeyboardInterrupt:
        kept = "What is finished is kept" if (folder / "plan.json").is_file() else "Nothing was started"
        typer.echo(f"\ninterrupted. {kept} in {folder}; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    _show(results, folder, json=json)
    if results.failures:
        typer.echo(
            f"{len(results.failures)} trials failed (failure.json in their folders under {folder}/trials says where); "
            f"the same command with --retry-failed tries them again.",
            err=True,
        )
        raise typer.Exit(1)


def _show(results: "Results", folder: Path, *, json: bool) -> None:
    if json:
        typer.echo(results.to_json())
        return
    from finetrap.listing import where_to_find
    from finetrap.table import render

    _console().print(render(results))
    typer.echo(where_to_find(results, folder))


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
