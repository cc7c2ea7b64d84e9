"""What commands have in common: the options that more than one of them takes, with their help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        help="METHOD, METHOD:setting=value, NAME=METHOD:... or NAME=PATH of a checkpoint of yours; again for more. "
        "`default` is the six. constant and zero_shot are always there.",
    ),
]
Out = Annotated[Path | None, typer.Option(help="Folder for the records. Default: finetrap-NAME here.")]
LimitTrain = Annotated[int | None, typer.Option(help="Training examples at most.")]
LimitTest = Annotated[
    int | None, typer.Option(help="Test examples at most; raising it re-uses the weights that are kept.")
]
Seeds = Annotated[int | None, typer.Option(help="How many seeds.", min=1)]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        help="quick, standard, thorough, or a time such as 45m or 2h: decides examples, items, seeds and tuning. Other "
        "options override it.",
    ),
]
TuneOption = Annotated[
    Literal["none", "quick", "standard", "thorough"] | None,
    typer.Option("--tune", help="How far learning rates, shots and templates that are not given are tuned."),
]
LearningRate = Annotated[float | None, typer.Option(help="One rate for every trained arm that sets none.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training examples.", min=1)]
ShotDraws = Annotated[int | None, typer.Option(help="Draws of shots. Default: 5 where there are several seeds.", min=1)]
Samples = Annotated[
    int | None,
    typer.Option(help="Answers drawn of each test item, for the share right. Default: the likeliest alone.", min=1),
]
Margin = Annotated[
    float | None, typer.Option(help="A difference in accuracy that would not change the choice. Default: 0.02.")
]
ForgettingTolerance = Annotated[
    float | None, typer.Option(help="Loss of general tasks that would be accepted. Default: 0.02.")
]
Queries = Annotated[
    int | None, typer.Option(help="Answers in an arm's life, over which its cost counts. Default: 100000.", min=0)
]
MaxSize = Annotated[str | None, typer.Option(help="Of the weights on the device, as 300MB; larger ones are out.")]
Looks = Annotated[
    Literal["one", "many"] | None,
    typer.Option(help="many: more items or seeds may follow after an answer. Default: one."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DTypeOption = Annotated[
    Literal["auto", "float32", "bfloat16"] | None, typer.Option(help="Precision of compute and of stored weights.")
]
KeepOption = Annotated[
    Literal["none", "best", "all"] | None,
    typer.Option(help="Weights to keep; best: adapters, and the recommended full model."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print trials, time, disk and downloads; run nothing.")]
Rescue = Annotated[
    bool | None,
    typer.Option(
        "--rescue/--no-rescue",
        help="Try what does harm again: half-way back, at a lower rate, with general text; up to 3 arms more for each.",
    ),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")]


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    from finetrap.registry import load_plugin

    for path in paths or ():
        load_plugin(path)
    return paths


Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        help="Python file with methods, tasks or scorers of yours; it is run. Again for more.",
        callback=_load_plugins,
        is_eager=True,
    ),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with copies of Hub data sets (ORG/NAME or NAME).")]
TestData = Annotated[str | None, typer.Option("--test", help="Test rows, likewise. Default: a fifth of train.")]
PromptField = Annotated[str | None, typer.Option(help="Column of the question. Default: prompt, or messages (chat).")]
AnswerField = Annotated[str | None, typer.Option(help="Column of the answer. Default: answer, or the last turn.")]
CompletionField = Annotated[str | None, typer.Option(help="Column of the text to train on. Default: the answer.")]
ChoicesField = Annotated[str | None, typer.Option(help="Column of the choices: makes it multiple choice.")]
GroupField = Annotated[str | None, typer.Option(help="Column of what rows belong to: a group is one test item.")]
PromptTemplate = Annotated[str | None, typer.Option(help="What is asked; {prompt} is the question, \\n a new line.")]
System = Annotated[str | None, typer.Option(help="System message in front of every question.")]
Score = Annotated[
    str | None, typer.Option(help="exact (default), number, label, json, contains, regex:PATTERN or a plugin's.")
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Tokens of an answer at most.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
