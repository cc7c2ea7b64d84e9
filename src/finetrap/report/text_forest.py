"""The forest plot in a terminal's characters: an arm's difference to zero-shot, its adjusted interval, the margin."""

from collections.abc import Sequence

from finetrap.report.words import estimand
from finetrap.results import ArmResult

WIDTH = 45


def text_forest(arms: Sequence[ArmResult]) -> dict[str, str]:
    """By arm, a line of `WIDTH` characters; all of them have the same scale."""
    shown = {arm.arm: arm.vs_zero_shot for arm in arms if arm.vs_zero_shot is not None}
    reached = [0.0]
    for versus in shown.values():
        reached += [*estimand(versus)[1].ci95_adjusted, -versus.margin, versus.margin]
    low, high = min(reached), max(reached)

    def column(value: float) -> int:
        return round((value - low) / (high - low) * (WIDTH - 1))

    lines = {}
    for arm, versus in shown.items():
        kind, found = estimand(versus)
        left, right = (column(end) for end in found.ci95_adjusted)
        line = ["░" if column(-versus.margin) <= i <= column(versus.margin) else " " for i in range(WIDTH)]
        line[column(0)] = "│"
        line[left : right + 1] = "─" * (right + 1 - left)
        line[left], line[right] = "├", "┤"
        line[column(found.delta)] = "●" if kind == "recipe" else "■"
        lines[arm] = "".join(line)
    return lines
