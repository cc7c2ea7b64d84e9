"""Every chart of a model on a task, with its caption and its text for who does not see it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from finetrap.report.charts.accuracy import accuracy_chart
from finetrap.report.charts.canvas import WIDE, Canvas, settings
from finetrap.report.charts.cost import cost_chart, seconds_once
from finetrap.report.charts.forest import forest_chart
from finetrap.report.charts.learn_forget import learn_forget_chart
from finetrap.report.charts.learning import learning_chart
from finetrap.report.charts.outcomes import outcome_chart
from finetrap.report.charts.tuning import curve_of, rate_of, tuning_chart
from finetrap.report.sections import Section
from finetrap.report.words import ends, estimand, in_words, number, percent, points
from finetrap.results import ArmResult, Retention, TuningCandidate


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn in several sizes, each of them once."""

    kind: str
    """Unique in a section; a part of the file's name."""
    caption: str
    said: str
    """What is to be seen, in words and numbers, for who does not see it."""
    drawing: Callable[[Canvas], str | None]
    _drawn: dict[Canvas, str | None] = field(default_factory=dict)

    def draw(self, canvas: Canvas) -> str | None:
        """The chart as SVG without a ground; None where there is nothing to draw."""
        if canvas not in self._drawn:
            import matplotlib

            with matplotlib.rc_context(settings(canvas)):
                self._drawn[canvas] = self.drawing(canvas)
        return self._drawn[canvas]

    def file(self) -> str | None:
        """The same as a file that stands by itself, on white."""
        drawn = self.draw(WIDE)
        white = '<rect width="100%" height="100%" fill="#ffffff"/>'
        return drawn and drawn.replace('<g id="figure_1">', f'{white}\n <g id="figure_1">', 1)

    @property
    def alternative(self) -> str:
        """The text in the chart's place."""
        return f"Chart: {self.caption} {self.said}".strip()


def charts_of(section: Section) -> list[Chart]:
    """Every chart that a section may have, in the order in which they are read."""
    arms, recommendation = section.arms, section.recommendation
    marked = recommendation.leader if recommendation.undecided else recommendation.method
    compared = [(arm, estimand(arm.vs_zero_shot)[1]) for arm in arms if arm.vs_zero_shot is not None]
    return [
        Chart(
            "forest",
            "Difference of each arm to the untouched model, with the interval that holds for all arms at once: "
            "a gain or harm is read from it. Differences in the shaded band, the margin, would not change the choice.",
            _listed(line for arm in arms if (line := in_words(arm))),
            lambda canvas: forest_chart(arms, canvas),
        ),
        Chart(
            "learn-forget",
            "What each arm learned (to the right) and forgot (down); beyond the dashed line forgetting is more than "
            "was to be tolerated. Lines are intervals: adjusted on the task, 95% of what is forgotten.",
            _listed(
                f"{arm.arm}: {points(found.delta)} points on the task, {_forgotten(arm.retention)}."
                for arm, found in compared
                if arm.retention is not None
            ),
            lambda canvas: learn_forget_chart(
                arms, canvas, tolerance=section.tolerance, bits_tolerance=section.bits_tolerance
            ),
        ),
        Chart(
            "cost",
            "Accuracy with its 95% interval, by the cost to adapt and by the cost to own: training, and "
            f"{section.queries:,} queries, in operations. The dotted line is the trivial answer, a "
            "ring marks the arm that is recommended or leads.",
            _listed(f"{arm.arm}: {percent(arm.accuracy)}, {seconds_once(arm):.0f} s to adapt." for arm in arms),
            lambda canvas: cost_chart(arms, canvas, queries=section.queries, recommended=marked),
        ),
        Chart(
            "outcomes",
            "What became of the answers: right, wrong, none given, cut off, or degenerate.",
            _listed(f"{arm.arm}: {_shares(arm)}." for arm in arms),
            lambda canvas: outcome_chart(arms, canvas),
        ),
        Chart(
            "tuning",
            "Learning rates that were tried, on validation examples; a ring marks the one chosen. Dotted lines "
            "are earlier rounds of the search, with a shorter training.",
            _listed(f"{arm.arm}: {_tried(curve)}." for arm in arms if (curve := curve_of(arm))),
            lambda canvas: tuning_chart(arms, canvas),
        ),
        Chart(
            "accuracy",
            "Accuracy of every arm with its 95% interval. The dashed line is the untouched model, the dotted one the "
            "trivial answer.",
            _listed(f"{arm.arm}: {percent(arm.accuracy)} ({_between(arm.ci95)})." for arm in arms),
            lambda canvas: accuracy_chart(arms, canvas),
        ),
        Chart(
            "learning",
            "Loss on validation examples as training goes on, first seed; lower is better.",
            "",
            lambda canvas: learning_chart(section.logs, canvas),
        ),
    ]


def _listed(sentences: Iterable[str]) -> str:
    return " ".join(sentences)


def _between(interval: tuple[float, float]) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}"


def _forgotten(retention: Retention) -> str:
    said = []
    if retention.delta is not None:
        interval = f" ({ends(retention.ci95)})" if retention.ci95 else ""
        said.append(f"{points(retention.delta)} on general tasks{interval}")
    if retention.bits_per_byte_delta is not None:
        said.append(f"{retention.bits_per_byte_delta:+.3f} bits a byte on general text")
    return ", ".join(said) or "retention unknown"


def _tried(curve: Sequence[TuningCandidate]) -> str:
    """The last round's rates with their losses, and the one that was chosen."""
    return ", ".join(
        f"{rate_of(candidate):g}{' (chosen)' if candidate.chosen else ''} with a loss of "
        f"{number(candidate.validation_loss, '.3f')}"
        for candidate in curve
        if candidate.rung == curve[-1].rung
    )


def _shares(arm: ArmResult) -> str:
    answers = sum(arm.outcomes.values())
    return ", ".join(
        f"{percent(count / answers, 0)} {outcome.replace('_', ' ')}" for outcome, count in arm.outcomes.items()
    )
