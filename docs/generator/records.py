"""What the committed records of docs/results say: the demo's table, the list of records, an example of each verdict."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from finetrap import answer, data, recommend, stats
from finetrap.config import Study
from finetrap.report.sections import machine
from finetrap.report.table import arms_grid, escape, groups, headline, legend, markdown, percent, points
from finetrap.report.words import what_next
from finetrap.results import ArmResult, Results, Verdict
from generator.markdown import page, table

DOCS = Path(__file__).parent.parent


def records() -> dict[str, Results]:
    """Folder name to results, in the order of names."""
    paths = sorted((DOCS / "results").glob("*/results.json"))
    return {path.parent.name: Results.model_validate_json(path.read_bytes()) for path in paths}


def record_block(results: Results, folder: str) -> str:
    """A record's table and recommendation; `folder` is where it lies, as seen from the page."""
    ((_, _, arms, recommendation),) = groups(results)
    why = "\n".join(f"- {line}" for line in (*recommendation.why, *what_next(recommendation)))
    date, protocol = str(results.study["finished"])[:10], results.study["protocol"]
    return "\n\n".join(
        [
            markdown(arms_grid(arms)),
            f"**{headline(recommendation)}**",
            why,
            f"{legend(arms)} From [its record]({folder}/results.json), which "
            f"`{results.study['command']}` wrote on {date} under protocol {protocol}: {machine(results.environment)}",
        ]
    )


def demo_picture() -> str:
    """The demo's accuracies and where its evidence lies, from the first page."""
    chart = next((DOCS / "results" / "demo" / "charts").glob("*-accuracy.svg")).relative_to(DOCS).as_posix()
    links = f"[The demo's report](results/demo/{report_of('demo')}) and [its numbers](results/demo/results.json)."
    return f"![The accuracy of each arm of the demo, with its interval]({chart})\n\n{links}"


def report_of(name: str) -> str:
    """The report of a record: report.html where it is there. A page made of report.md would be called the same."""
    return next(file for file in ("report.html", "report.md") if (DOCS / "results" / name / file).is_file())


def left_out(found: dict[str, Results]) -> str:
    """Reports as Markdown that are no pages of the site, as lines of `exclude_docs`."""
    return "\n".join(f"  /results/{name}/report.md" for name in found if report_of(name) == "report.html")


def results_page(found: dict[str, Results]) -> str:
    """Every committed record and its answer."""
    parts = []
    for name, results in found.items():
        answers = "\n".join(
            f"- {escape(task)} with {escape(model)}: **{escape(headline(recommendation))}** {escape(why)}"
            for model, task, _, recommendation in groups(results)
            for why in recommendation.why[:1]
        )
        links = f"[report]({name}/{report_of(name)}), [numbers]({name}/results.json)"
        parts += [f"## {escape(name)}", answers, f"{str(results.study['finished'])[:10]}: {links}."]
    return page(
        "# Results",
        "Studies whose records are kept in the repository under `docs/results`. Every number in these pages is from "
        "one of them.",
        *parts,
    )


def verdict_blocks(found: dict[str, Results]) -> dict[str, str]:
    """Block name to an example from the records, for each verdict on the task and on retention."""
    blocks = {}
    for verdict in get_args(Verdict):
        blocks[f"example {verdict}"] = next(_with_verdict(found, verdict), "No committed record has one yet.")
    blocks["example retention"] = _retention_table(found)
    blocks["numbers"] = _numbers()
    return blocks


def _with_verdict(found: dict[str, Results], verdict: str) -> Iterator[str]:
    for name, results in found.items():
        for arm in results.arms:
            versus = arm.vs_zero_shot
            if versus is not None and versus.verdict == verdict:
                artifact = versus.artifact
                yield (
                    f"Example: `{arm.arm}` on {escape(arm.task)} in [{name}](results/{name}/{report_of(name)}) has "
                    f"{percent(arm.accuracy)} on {arm.n_test} items. That is {points(artifact.delta)} points against "
                    f"zero-shot, adjusted interval {_interval(artifact.ci95_adjusted)}, adjusted p "
                    f"{artifact.p_adjusted:.2g}, minimum detectable effect {100 * artifact.mde:.1f} points."
                )


def _interval(ends: tuple[float, float]) -> str:
    return f"{points(ends[0])} to {points(ends[1])}"


def _retention_table(found: dict[str, Results]) -> str:
    examples: dict[str, tuple[str, ArmResult]] = {}
    for name, results in found.items():
        for arm in results.arms:
            # Arms that only prompt are unchanged by construction, which shows nothing.
            if arm.retention is not None and arm.cost.trainable_params:
                examples.setdefault(arm.retention.verdict, (name, arm))
    rows = []
    for verdict, (name, arm) in sorted(examples.items()):
        kept = arm.retention
        assert kept is not None
        change = "-" if kept.delta is None or kept.ci95 is None else f"{points(kept.delta)} ({_interval(kept.ci95)})"
        text = kept.bits_per_byte_ci95
        bits = "-" if text is None else f"{kept.bits_per_byte_delta:+.3f} ({text[0]:+.3f} to {text[1]:+.3f})"
        rows.append([f"`{verdict}`", f"`{arm.arm}` in [{name}](results/{name}/{report_of(name)})", change, bits])
    return table(["verdict", "example", "general tasks, points (95%)", "bits per byte (95%)"], rows)


def _numbers() -> str:
    fields = Study.model_fields
    rows = [
        ["level of tests and intervals", f"{stats.ALPHA:.0%}", "`finetrap.stats.ALPHA`"],
        ["margin: a difference that would not change the choice", _setting_points("margin"), "`margin` in the study"],
        [
            "loss of general tasks that is accepted",
            _setting_points("forgetting_tolerance"),
            "`forgetting_tolerance` in the study",
        ],
        [
            "loss on general text that is accepted",
            f"{fields['bits_per_byte_tolerance'].default} bits a byte",
            "`bits_per_byte_tolerance` in the study",
        ],
        ["confidence of the bound on regret", f"{recommend.CONFIDENCE:.0%}", "`finetrap.recommend.CONFIDENCE`"],
        ["queries over which cost is counted", f"{fields['queries'].default:,}", "`queries` in the study"],
        [
            "share of cut-off answers that is warned of",
            f"{answer.TRUNCATED_WARNING:.0%}",
            "`finetrap.answer.TRUNCATED_WARNING`",
        ],
        ["share of train that becomes validation", f"{data.VALIDATION_SHARE:.0%}", "`finetrap.data.VALIDATION_SHARE`"],
    ]
    return table(["number", "value", "where it is set"], rows)


def _setting_points(name: str) -> str:
    return f"{100 * Study.model_fields[name].default:g} points"
