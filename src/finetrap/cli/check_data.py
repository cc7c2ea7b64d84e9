"""What a study would make of rows."""

from typing import Annotated

import typer

from finetrap.cli.root import app
from finetrap.cli.shared import own_data
from finetrap.errors import StudyError
from finetrap.options import (
    AnswerField,
    AsJson,
    ChoicesField,
    CompletionField,
    DataDir,
    GroupField,
    MaxNewTokens,
    Plugins,
    PromptField,
    PromptTemplate,
    Score,
    System,
    TestData,
)


@app.command("check-data")
def check_data(
    context: typer.Context,
    train: Annotated[str, typer.Argument(metavar="FILE", help="Rows as for `compare --train`.")],
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
    from finetrap.rows.check_data import check

    own = own_data(context, None)
    assert own is not None
    found = check(own, model=model, data_dir=data_dir)
    typer.echo(found.model_dump_json(indent=1) if json else found.text())
    if found.problems:
        raise StudyError(f"{len(found.problems)} problems would stop a study; the first: {found.problems[0]}")
