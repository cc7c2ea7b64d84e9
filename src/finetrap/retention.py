"""Forgetting: what an arm's model can still do, paired by item with the untouched model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from finetrap import stats
from finetrap.config import Study
from finetrap.records import ItemRow
from finetrap.results import Retention, RetentionTask, Verdict

Loss = Callable[[float], stats.Interval]
"""Of an alpha: the interval of what was lost beyond the tolerance."""
RowsOfTasks = Mapping[str, Sequence[ItemRow]]
"""By retention task: its rows, in the order of its items."""


def scores_of(rows: Sequence[ItemRow], rule: str = "correct") -> stats.Scores:
    """One score an item, by the rule that decides or another one of `ItemRow`.

    Of drawn answers, and of the questions of a group, the share that is right.
    """
    every = np.array([float(bool(getattr(row, rule))) for row in rows])
    if any(row.group for row in rows):
        of_item = np.unique([row.group or row.id for row in rows], return_inverse=True)[1]
        shares: stats.Scores = np.bincount(of_item, weights=every) / np.bincount(of_item)
        return shares
    share: stats.Scores = every.reshape(-1, samples_of(rows)).mean(axis=1)
    return share


def samples_of(rows: Sequence[ItemRow]) -> int:
    """How many rows each item has."""
    return 1 + max((row.sample or 0 for row in rows), default=0)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return float(np.mean(values)) if values else 0.0


def retention_of(
    study: Study,
    before: RowsOfTasks,
    after: RowsOfTasks,
    *,
    arms: int,
    prompts_only: bool,
    alpha: float = stats.ALPHA,
    seeds: int = 1,
) -> Retention | None:
    """What an arm's model can still do (`after`), against the untouched one; None where a task is missing.

    The verdict is simultaneous over so many `arms`: retention is a family of its own, at level `alpha` of this look; to
    show harm it is simultaneous over so many `seeds` of the arm too. An arm that only prompts has it unchanged, by
    construction.
    """
    if not before or set(after) != set(before):
        return None
    tasks: dict[str, RetentionTask] = {}
    differences: list[stats.Scores] = []
    scales: list[float] = []
    normalised: list[float] = []
    text: list[tuple[ItemRow, ItemRow]] = []
    turns: list[tuple[ItemRow, ItemRow]] = []
    moved: list[ItemRow] = []
    for name, rows in after.items():
        pairs = list(zip(rows, before[name], strict=True))
        if rows[0].kl is not None:
            moved.extend(rows)
            continue
        if rows[0].bits is not None:
            text.extend(pairs)
            continue
        if rows[0].chat_format is not None:
            turns.extend(pairs)
        a, b = scores_of(rows), scores_of(before[name])
        unchanged = stats.Interval(0.0, 0.0)
        interval = unchanged if prompts_only else stats.between_checkpoints(a, b).interval(stats.ALPHA)
        chance = float(np.mean([1 / len(row.loglikelihoods) for row in rows])) if rows[0].loglikelihoods else 0.0
        known = stats.wilson(float(b.mean()), len(b)).low > chance
        tasks[name] = RetentionTask(
            score=float(a.mean()), delta=float((a - b).mean()), ci95=interval, at_chance=not known
        )
        if known:
            differences.append(a - b)
            scales.append(1 / (1 - chance))
            normalised.append((float(a.mean()) - chance) / (1 - chance))
    delta = mean([float(d.mean()) * s for d, s in zip(differences, scales, strict=True)]) if differences else None
    mean_interval = _mean_interval(differences, scales, stats.ALPHA, prompts_only)
    bits, bits_delta, bits_interval = _bits(text, stats.ALPHA)
    return Retention(
        mean=mean(normalised) if differences else None,
        delta=delta,
        ci95=mean_interval,
        verdict="no_difference"
        if prompts_only
        else _verdict(*_losses(study, differences, scales, text, turns), alpha=alpha / max(1, arms), seeds=seeds),
        bits_per_byte=bits,
        bits_per_byte_delta=bits_delta,
        bits_per_byte_ci95=bits_interval,
        **_divergence(moved),
        **_chat_format(turns, prompts_only),
        tasks=tasks,
    )


def over_seeds(each: Mapping[int, Retention]) -> Retention | None:
    """Of an arm's checkpoints by seed: the first that forgets, else the first, with the verdict over all of them.

    Harm is shown by any checkpoint, and ruled out where each of them rules it out (Berger 1982): whoever trains once
    more gets one of such checkpoints. None where there is none.
    """
    if not each:
        return None
    verdicts = {str(seed): one.verdict for seed, one in each.items()}
    shown = next((seed for seed, one in each.items() if one.verdict == "harm"), next(iter(each)))
    agreed = "no_difference" if set(verdicts.values()) == {"no_difference"} else "undecided"
    verdict = "harm" if "harm" in verdicts.values() else agreed
    return each[shown].model_copy(update={"verdict": verdict, "seed": shown, "seeds": verdicts})


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


def _divergence(rows: Sequence[ItemRow]) -> dict[str, Any]:
    """Nats a token over all texts, over those of each kind, and the interval over texts."""
    if not rows:
        return {}
    nats, tokens = (np.array([float(getattr(row, name) or 0) for row in rows]) for name in ("kl", "kl_tokens"))
    kinds = [row.id.partition("-")[0] for row in rows]
    of_kind = {kind: np.array([other == kind for other in kinds]) for kind in dict.fromkeys(kinds)}
    return {
        "kl": float(nats.sum() / tokens.sum()),
        "kl_ci95": stats.ratio_interval(nats, tokens) if len(rows) > 1 else None,
        "kl_texts": {kind: float(nats[chosen].sum() / tokens[chosen].sum()) for kind, chosen in of_kind.items()},
    }


def _chat_format(turns: Sequence[tuple[ItemRow, ItemRow]], unchanged: bool) -> dict[str, Any]:
    """The share of answers that are whole turns, after, and its difference to before."""
    if not turns:
        return {}
    after, before = (scores_of(rows, "chat_format") for rows in zip(*turns, strict=True))
    return {
        "chat_format": float(after.mean()),
        "chat_format_delta": float((after - before).mean()),
        "chat_format_ci95": stats.Interval(0.0, 0.0)
        if unchanged
        else stats.between_checkpoints(after, before).interval(stats.ALPHA),
    }


def _losses(
    study: Study,
    differences: Sequence[stats.Scores],
    scales: Sequence[float],
    text: Sequence[tuple[ItemRow, ItemRow]],
    turns: Sequence[tuple[ItemRow, ItemRow]],
) -> tuple[list[Loss], list[Loss]]:
    """What the verdict is about: losses that it shows or rules out, and those that it can only show."""
    tolerance = study.forgetting_tolerance

    def accuracy(alpha: float) -> stats.Interval:
        low, high = stats.mean_interval(differences, scales, alpha=alpha)
        return stats.Interval(-tolerance - high, -tolerance - low)

    def bits(alpha: float) -> stats.Interval:
        interval = _bits(text, alpha)[2]
        assert interval is not None
        return stats.Interval(*(end - study.bits_per_byte_tolerance for end in interval))

    def chat_format(alpha: float) -> stats.Interval:
        after, before = (scores_of(rows, "chat_format") for rows in zip(*turns, strict=True))
        low, high = stats.between_checkpoints(after, before).interval(alpha)
        return stats.Interval(-tolerance - high, -tolerance - low)

    losses: list[Loss] = [accuracy] if differences else []
    return [*losses, *([bits] if text else [])], [chat_format] if turns else []


def _verdict(losses: Sequence[Loss], shown_only: Sequence[Loss], *, alpha: float, seeds: int) -> Verdict:
    """One-sided non-inferiority at level `alpha`, by two-sided intervals at twice that.

    Harm is shown by any of the losses, and by any of the `seeds`, so that they share alpha; it is ruled out where each
    of them rules it out, for which none has to give way (Berger 1982).
    """
    count = seeds * (len(losses) + len(shown_only))
    if any(loss(2 * alpha / count).low > 0 for loss in (*losses, *shown_only)):
        return "harm"
    if losses and all(loss(2 * alpha).high < 0 for loss in losses):
        return "no_difference"
    return "undecided"
