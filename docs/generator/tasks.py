"""A page for every task that is registered, out of its docstring and its data, and the list of them."""

from functools import partial

from finetrap.config import make_study
from finetrap.data import Encoder, load_splits, load_test, sample
from finetrap.errors import StudyError
from finetrap.listing import task_rows
from finetrap.presets import EMBEDDED
from finetrap.scoring import Verdict
from finetrap.task import Example, Task, get_task, task
from generator.markdown import docstring, fenced, fields_of, listed, page, prose, table

SCORED = {
    "generate": "The model writes an answer; a function reads it.",
    "choice": (
        "Nothing is generated. Each choice is scored by its log-likelihood after the prompt, over its UTF-8 bytes; the "
        "highest decides. The same without the division stands beside it as `accuracy_raw`. These are `acc_bytes` and "
        "`acc` of lm-evaluation-harness."
    ),
    "text": "The log-likelihood of the text, in bits per byte. Lower is better.",
    "divergence": (
        "The untouched and the adapted model read the same text. At each token, KL(untouched || adapted) between their "
        "distributions of the next one; the mean over tokens, in nats. It is 0 where nothing moved."
    ),
}


def task_pages() -> dict[str, str]:
    """File name to page, the index included."""
    pages = {f"{name}.md": _task_page(get_task(name)) for name in task.names()}
    rows = [
        [f"[{row['task']}]({row['task']}.md)", row["splits"], row["scored"], row["licence"], prose(row["what"])]
        for row in task_rows()
    ]
    pages["index.md"] = page(
        "# Tasks",
        "A task is data, a prompt, and a rule that scores an answer. A task with a train split can be a study's "
        "target. One with a test split only can be asked for under `retention` or `out_of_distribution` in a "
        "[study file](../reference/study.md). [How to add one](../how_it_works.md#to-add-something).",
        table(["task", "splits", "kind", "licence", "what"], rows),
    )
    return pages


def targets() -> list[str]:
    """Tasks that a study can adapt a model to."""
    return [name for name in task.names() if get_task(name).kind != "text" and "train" in get_task(name).splits]


def _task_page(chosen: Task) -> str:
    said = docstring(task[chosen.name])
    siblings = sorted(chosen.siblings - {chosen.name})
    facts = [
        ["kind", f"`{chosen.kind}`"],
        ["licence of the data", chosen.license],
        ["version", f"{chosen.version} (raised when a change can move a number)"],
        ["siblings", f"{listed(siblings)}: left out of retention when this is the target" if siblings else "none"],
    ]
    if chosen.max_new_tokens:
        facts.append(["longest answer", f"{chosen.max_new_tokens} tokens"])
    try:
        sizes, example = _sizes(chosen), _example_of(chosen)
    except (StudyError, OSError):
        # Its data is not in the package. What a machine happens to have cached must not change a page.
        facts.append(["splits", f"{', '.join(chosen.splits)}; the data comes from elsewhere when it is first used"])
        shown = "The data does not come with finetrap, so no example is shown here."
    else:
        facts += sizes
        shown = _shown(chosen, example)
    return page(
        f"# {chosen.name}",
        prose(said.summary),
        *(prose(paragraph) for paragraph in said.body),
        "\n".join(f"- {name}: {value}" for name, value in facts),
        "## What the model sees",
        shown,
        "## How it is scored",
        *_scored(chosen),
        "## Example",
        *_task_example(chosen),
        f"Defined in `{task[chosen.name].__module__}`.",
    )


def _sizes(chosen: Task) -> list[list[str]]:
    rows = [["test", f"{len(load_test(chosen).examples):,} items"]]
    if "train" in chosen.splits:
        splits = load_splits(chosen)
        dropped = f"; {len(splits.dropped):,} rows that stand in test are left out" if splits.dropped else ""
        rows.append(["train", f"{len(splits.train):,} examples{dropped}"])
        rows.append(["validation", f"{len(splits.validation):,} examples, cut from train"])
    return rows


def _example_of(chosen: Task) -> Example:
    """The first one of train, or of test where there is nothing else, in the order that limits take them."""
    return sample(chosen.load(chosen.splits[0]), 1)[0]


class _NoTokens:
    """A tokenizer for prompts that are read and never encoded."""

    eos_token_id = 0
    eos_token = ""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": []}


def _shown(chosen: Task, example: Example) -> str:
    if chosen.kind in ("text", "divergence"):
        said = filter(None, [*(turn.content for turn in example.turns), example.question, example.reference])
        return f"The text itself, such as `{example.id}`:\n\n" + fenced("\n".join(said))
    plain = Encoder(_NoTokens(), chosen, chat=False).prompt(example).text  # type: ignore[arg-type]
    parts = [f"Example `{example.id}`, as plain text:", fenced(plain)]
    if chosen.kind == "generate":
        parts += ["With a chat template, this is the user's turn:", fenced(chosen.prompt(example.question))]
        if "train" in chosen.splits:
            parts += ["Training teaches this answer, and solved examples show it:", fenced(example.reference)]
        parts += [f"The answer that scoring expects: `{example.gold}`."]
    else:
        choices = "\n".join(f"{index}. {choice}" for index, choice in enumerate(example.choices))
        parts += ["Each of these is scored as what follows:", fenced(choices)]
        taught = " Training teaches it, and solved examples show it." if "train" in chosen.splits else ""
        parts += [f"Number {example.gold} is right.{taught}"]
    return "\n\n".join(parts)


def _scored(chosen: Task) -> list[str]:
    parts = [SCORED.get(chosen.kind, f"By `{chosen.kind}`.")]
    if chosen.score is not None:
        scorer = chosen.score.func if isinstance(chosen.score, partial) else chosen.score
        rules = [[f"`{key}`", prose(field.text)] for key, field in fields_of(Verdict).items()]
        said = docstring(scorer)
        parts += [f"`{getattr(scorer, '__name__', 'score')}`: {prose(said.summary)}", *map(prose, said.body)]
        parts += [table(["of an answer", "what it is"], rules)]
        parts += [
            "`correct` decides. [`format_only`](../verdicts.md#format-only) says what the others are for; "
            "[scorers](../scorers.md) are the rules for data of your own."
        ]
    return parts


def _task_example(chosen: Task) -> list[str]:
    if chosen.name in targets():
        return [fenced(f"finetrap compare --model {EMBEDDED} --task {chosen.name} --limit-train 400", "bash")]
    of_its_kind = [name for name in targets() if get_task(name).kind == chosen.kind]
    other = chosen.kind == "generate" and bool(of_its_kind)
    role = "out_of_distribution" if other else "retention"
    target = next(name for name in (of_its_kind if other else targets()) if other or name not in chosen.siblings)
    values = {"models": EMBEDDED, "tasks": target, role: chosen.name}
    make_study(dict(values))
    lines = "\n".join(f"{key}: {value}" for key, value in values.items())
    return ["In a study file, for `finetrap run`:", fenced(lines, "yaml")]
