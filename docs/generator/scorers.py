"""The page on scorers: the rule of each, its sentence in the prompt, and what it says of outputs that are fixed."""

import inspect
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetrap.rows.own_data import FEWEST_TEST, OwnData, own_task
from finetrap.scoring import Scorer, Verdict, make_scorer, scorer
from finetrap.stats import macro_f1
from generator.markdown import docstring, fenced, page, prose, table


class Shown(NamedTuple):
    """What a scorer is shown with: outputs that a model could write, each with its gold answer."""

    pairs: Sequence[tuple[str, str]]
    """(gold, output)."""
    argument: str = ""
    """After the colon of `NAME:ARGUMENT`."""


def _all_of(gold: str, *outputs: str, argument: str = "") -> Shown:
    return Shown([(gold, output) for output in outputs], argument)


_CITY = '{"city": "Paris", "people": 2}'

EXAMPLES = {
    "contains": _all_of("Paris", "Paris", "The capital is Paris.", "paris, I think", "Parisian", "Lyon, and not Paris"),
    "exact": _all_of("Paris", "Paris", "paris.", "Paris\nIt is the capital.", "The capital is Paris.", "Lyon"),
    "json": _all_of(
        _CITY,
        _CITY,
        '{"people": 2.0, "city": "Paris"}',
        f"Here it is: {_CITY}",
        f'{{"city": "Lyon", "people": 2}} or {_CITY}',
        '{"city": "Paris"}',
        '{"city": "Paris", "people":',
    ),
    "label": Shown(
        [
            ("billing", "billing"),
            ("billing", "Billing."),
            ("shipping", "It is about shipping."),
            ("shipping", "billing or shipping"),
            ("account", "shipping"),
            ("account", "I cannot tell."),
        ]
    ),
    "number": _all_of("72", "72", "6 * 12 = 72\n#### 72", "So there are 72.0 apples.", "72 apples in 6 boxes", "many"),
    "regex": _all_of(
        "red",
        "Answer: red",
        "Answer: Red",
        "Answer: blue? No. Answer: red",
        "red",
        "Answer: blue",
        argument=r"Answer: (\w+)",
    ),
}


def scorers_page() -> str:
    """What each scorer takes for the answer, and when that is right."""
    missing = sorted(set(scorer.names()) - EXAMPLES.keys())
    if missing:
        raise SystemExit(f"no example of the scorer '{missing[0]}'; add one to docs/generator/scorers.py")
    return page(
        "# Scorers",
        "A scorer decides whether what a model wrote is the right answer to a row of your own data. `--score` names "
        "it, or `score:` in a [study file](reference/study.md); without it, it is `exact`. With `--choices-field` "
        "nothing is generated, and the likelihood of each choice decides. A scorer of your own is a "
        "[plugin](plugins.md).",
        table(["scorer", "accuracy: what decides"], [_row(name) for name in scorer.names()]),
        "`exact` suits short answers only. A free-form reply is almost never the same text as the gold one, and then "
        "every arm ends at the [floor](verdicts.md#floor); use `contains`, `regex:` or a plugin's scorer there.",
        "## What is computed, and where it stands",
        "Every answer is scored by three rules. The first decides; a verdict of gain or harm needs the same sign by "
        "all three, else it is [format_only](verdicts.md#format-only). Where most references are not right strictly "
        "themselves, as solutions that only end in the answer, the strict rule is left out.",
        table(["", "what it is", "`results.json`", "report"], _PLACES),
        "For each item, `rows.jsonl.gz` in the [trial's folder](how_it_works.md#the-folder-of-a-study) has the output, "
        "what was `extracted` from it, `correct`, `strict`, `anywhere`, `formatted`, and for JSON `parts`.",
        "**Macro-F1** gives every label the same weight, however rare it is. F1 of a label is twice its right answers "
        "over the times that it is gold plus the times that it is answered; macro-F1 is the mean over the labels that "
        "occur. An output without an answer is no label's. Always giving the most common label can have a high "
        "accuracy, and has a low macro-F1. It is computed for each seed; the mean over seeds is shown.",
        "**JSON fields**: for each key of the gold objects, the share of items with that key in which the value "
        "matches. It says which field is the hard one, where accuracy needs all of them.",
        "No verdict is about macro-F1 or a field: verdicts compare accuracy.",
        "## What the prompt asks for",
        "Without `--prompt-template` the prompt is the question and, in a line below it, the sentence that is given "
        "with each scorer. It is left out with `--completion-field` and for conversations, whose answers have a form "
        "of their own. `finetrap check-data` shows the prompt.",
        *(part for name in scorer.names() for part in _section(name)),
    )


_ANSWERS = 'table "What the answers are"'
_PLACES = [
    [
        "accuracy",
        "The answer, as the scorer reads it out of the output, is gold.",
        "`accuracy`",
        "the first table",
    ],
    [
        "strictly",
        "Gold is given in the form that was asked for: letter for letter, or as the scorer says.",
        "`accuracy_strict`",
        f'{_ANSWERS}, "in the stated format, right"',
    ],
    [
        "anywhere",
        "Gold stands somewhere in the output: as whole words, as a number of that value, as a JSON object.",
        "-",
        "-",
    ],
    ["form", "The form is there, whatever the answer is.", "`format_rate`", f'{_ANSWERS}, "format rate"'],
    ["macro-F1", "With `label` only.", "`macro_f1`", f'{_ANSWERS}, "macro-F1"'],
    ["fields", "With `json` only.", "`fields`", f'{_ANSWERS}, "field NAME"'],
]


def _row(name: str) -> list[str]:
    rule = _made(name).rule
    if EXAMPLES[name].argument:
        rule = rule.replace(EXAMPLES[name].argument, "PATTERN")
    return [f"[`{_written(name)}`](#{name})", prose(rule)]


def _written(name: str) -> str:
    """`NAME`, or `NAME:ARGUMENT` where it takes one."""
    return ":".join([name, *(key.upper() for key in list(inspect.signature(scorer[name]).parameters)[1:])])


def _given(name: str) -> str:
    shown = EXAMPLES[name]
    return f"{name}:{shown.argument}" if shown.argument else name


def _made(name: str) -> Scorer:
    return make_scorer(_given(name), [gold for gold, _ in EXAMPLES[name].pairs])


def _section(name: str) -> list[str]:
    said = docstring(scorer[name])
    refused = [f"It refuses to start where {prose(text)}" for text in said.sections.get("Raises", {}).values()]
    sentence = _sentence(name)
    asks = (
        f"Added to the prompt: `{sentence}`" if sentence else "Nothing is added to the prompt; ask for the form there."
    )
    option = f"'{_given(name)}'" if EXAMPLES[name].argument else name
    return [
        f"## {name}",
        prose(said.summary),
        *map(prose, said.body),
        *refused,
        asks,
        fenced(f"--score {option}"),
        *_scored(name),
    ]


def _sentence(name: str) -> str:
    """What the prompt that a study makes says below the question."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for split in ("train", "test"):
            golds = [gold for gold, _ in EXAMPLES[name].pairs] * FEWEST_TEST
            rows = [{"prompt": f"{split} {index}", "answer": gold} for index, gold in enumerate(golds)]
            files.append(Path(folder) / f"{split}.jsonl")
            files[-1].write_text("\n".join(map(json.dumps, rows)))
        prompt = own_task(OwnData(train=str(files[0]), test=str(files[1]), score=_given(name))).prompt("QUESTION")
    return prompt.removeprefix("QUESTION").strip()


def _scored(name: str) -> list[str]:
    pairs = EXAMPLES[name].pairs
    made = _made(name)
    verdicts = [made.score(output, gold) for gold, output in pairs]
    golds = {gold for gold, _ in pairs}
    several = len(golds) > 1
    rows = [
        [*([_code(gold)] if several else []), _code(output), _code(verdict.extracted or ""), *_three(verdict)]
        for (gold, output), verdict in zip(pairs, verdicts, strict=True)
    ]
    means = [f"{np.mean([getattr(v, rule) for v in verdicts]):.0%}" for rule in ("correct", "strict", "anywhere")]
    rows.append([*([""] if several else []), "**all of them**", "", *means])
    header = [*(["gold"] if several else []), "output", "read as", "accuracy", "strictly", "anywhere"]
    parts = [] if several else [f"Where gold is {_code(pairs[0][0])}:"]
    parts.append(table(header, rows))
    if made.classes:
        answers = [(gold, verdict.extracted) for (gold, _), verdict in zip(pairs, verdicts, strict=True)]
        parts.append(f"Macro-F1 of these answers is {macro_f1(answers):.0%}.")
    fields = {key: [dict(verdict.parts)[key] for verdict in verdicts] for key, _ in verdicts[0].parts}
    if fields:
        shares = ", ".join(f"{_code(key)} {np.mean(matches):.0%}" for key, matches in fields.items())
        parts.append(f"Fields that match: {shares}.")
    return parts


def _three(verdict: Verdict) -> list[str]:
    return ["right" if rule else "-" for rule in (verdict.correct, verdict.strict, verdict.anywhere)]


def _code(text: str) -> str:
    r"""Text as code in a table's cell; a new line is written `\n`."""
    return f"`{text}`".replace("\n", "\\n").replace("|", "\\|") if text else "-"
