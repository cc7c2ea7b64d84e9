"""Forgetting: what an arm's model can still do, paired by item with the untouched model."""

from collections.abc import Mapping, Sequence

import numpy as np

from finetrap import stats
from finetrap.config import Study
from finetrap.records import ItemRow
from finetrap.results import Retention, RetentionTask, Verdict

RowsOfTasks = Mapping[str, Sequence[ItemRow]]
"""By retention task: its rows, in the order of its items."""


def scores_of(rows: Sequence[ItemRow], rule: str = "correct") -> stats.Scores:
    """One score an item, by the rule that decides or another one of `ItemRow`."""
    return np.array([float(bool(getattr(row, rule))) for row in rows])


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return float(np.mean(values)) if values else 0.0


def retention_of(
    study: Study, before: RowsOfTasks, after: RowsOfTasks, *, arms: int, prompts_only: bool
) -> Retention | None:
    """What an arm's model can still do (`after`), against the untouched one; None where a task is missing.

    The verdict's intervals are simultaneous over so many `arms`: retention is a family of its own. An arm that only
    prompts has it unchanged, by construction.
    """
    if not before or set(after) != set(before):
        return None
    tasks: dict[str, RetentionTask] = {}
    differences: list[stats.Scores] = []
    scales: list[float] = []
    normalised: list[float] = []
    text: list[tuple[ItemRow, ItemRow]] = []
    for name, rows in after.items():
        if rows[0].bits is not None:
            text.extend(zip(rows, before[name], strict=True))
            continue
        a, b = scores_of(rows), scores_of(before[name])
        unchanged = stats.Interval(0.0, 0.0)
        interval = unchanged if prompts_only else stats.tango(*stats.discordant(a, b), len(a))
        tasks[name] = RetentionTask(score=float(a.mean()), delta=float((a - b).mean()), ci95=interval)
        chance = float(np.mean([1 / len(row.loglikelihoods) for row in rows])) if rows[0].loglikelihoods else 0.0
        if stats.wilson(float(b.mean()), len(b)).low > chance:
            differences.append(a - b)
            scales.append(1 / (1 - chance))
            normalised.append((float(a.mean()) - chance) / (1 - chance))
    delta = mean([float(d.mean()) * s for d, s in zip(differences, scales, strict=True)]) if differences else None
    alpha = stats.ALPHA / max(1, arms)
    mean_interval = _mean_interval(differences, scales, stats.ALPHA, prompts_only)
    bits, bits_delta, bits_interval = _bits(text, stats.ALPHA)
    _, _, bits_adjusted = _bits(text, alpha)
    return Retention(
        mean=mean(normalised) if differences else None,
        delta=delta,
        ci95=mean_interval,
        verdict="no_difference"
        if prompts_only
        else _retention_verdict(study, _mean_interval(differences, scales, alpha, prompts_only), bits_adjusted),
        bits_per_byte=bits,
        bits_per_byte_delta=bits_delta,
        bits_per_byte_ci95=bits_interval,
        tasks=tasks,
    )


def _mean_interval(
    differences: Sequence[stats.Scores], scales: Sequence[float], alpha: float, unchanged: bool
) -> tuple[float, float] | None:
    if not differences:
        return None
    return (0.0, 0.0) if unchanged else stats.mean_interval(differences, scales, alpha=alpha)


def _bits(
    text: Sequence[tuple[ItemRow, ItemRow]], alpha: float
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """Bits per byte after, its difference to before, and the difference's interval over texts."""
    if not text:
        return None, None, None
    after = np.array([row.bits or 0.0 for row, _ in text])
    before = np.array([row.bits or 0.0 for _, row in text])
    lengths = np.array([float(row.bytes or 0) for row, _ in text])
    interval = stats.ratio_interval(after - before, lengths, alpha=alpha)
    total = float(lengths.sum())
    return float(after.sum()) / total, float((after - before).sum()) / total, interval


def _retention_verdict(study: Study, accuracy: tuple[float, float] | None, bits: tuple[float, float] | None) -> Verdict:
    tolerance, bits_tolerance = study.forgetting_tolerance, study.bits_per_byte_tolerance
    if (accuracy is not None and accuracy[1] < -tolerance) or (bits is not None and bits[0] > bits_tolerance):
        return "harm"
    if (accuracy is None or accuracy[0] > -tolerance) and (bits is None or bits[1] < bits_tolerance):
        return "no_difference"
    return "undecided"
