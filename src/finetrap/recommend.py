"""From arms and their scores to a recommendation with its reasons, or "undecided"."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm

from finetrap import stats
from finetrap.rescue import conclusions, rescues_of
from finetrap.results import ArmResult, Recommendation

CONFIDENCE = 0.9
"""Of the regret bound, one-sided."""
QUERIES = 100_000
"""Over which the cost of a query counts when arms are ranked by the cost to own them."""


def cost_to_own(arm: ArmResult) -> float:
    """Operations to train it and to answer `QUERIES` queries, 2 a weight and token, training three times that.

    Tokens are counted, not seconds: the same merged model does not cost less because the machine was idle.
    """
    cost = arm.cost
    query_tokens = cost.prompt_tokens_per_query + cost.output_tokens_per_query
    return 2.0 * arm.params * (3 * cost.train_tokens + QUERIES * query_tokens)


def recommend(
    model: str,
    task: str,
    arms: Sequence[ArmResult],
    scores: Mapping[str, stats.Scores],
    *,
    margin: float,
    available: int,
    incomplete: Sequence[str] = (),
) -> Recommendation:
    """The cheapest arm to own whose regret is bounded by `margin`; what harms or forgets is dropped first.

    Dropping is a second look at the same data, so that dropped arms stay in the bound: they can only raise it.
    `scores` are the first seed's, as all that is bounded here. `available` test
    items there are in all. `incomplete` names arms that lack an evaluation or
    a seed: nothing is recommended then, since the missing one may be the best, or the one that forgets.
    """
    by_name = {arm.arm: arm for arm in arms}
    rescues = rescues_of(arms, margin=margin)
    candidates = [name for name in by_name if name != "constant"]
    dropped = {name: reason for name in candidates if (reason := _reason_to_drop(by_name[name]))}
    left = [name for name in candidates if name not in dropped]
    if incomplete or not left:
        return Recommendation(
            model=model,
            task=task,
            method="undecided",
            why=(f"The study is not complete: {', '.join(incomplete) or 'no arm is left'}.",),
            confidence=None,
            regret_upper=None,
            next_step="Run it again, with --retry-failed if something failed: what is done is kept.",
            dropped=dropped,
            rescues=rescues,
        )
    accuracy = {name: float(scores[name].mean()) for name in candidates}
    leader = max(left, key=lambda name: (accuracy[name], -cost_to_own(by_name[name])))
    trivial = scores.get("constant", np.zeros_like(scores["zero_shot"]))
    why = [*_why(by_name, left, dropped), *conclusions(rescues, arms)]
    if not any(stats.beats(scores[name], trivial) for name in candidates):
        best = max(accuracy.values())
        return Recommendation(
            model=model,
            task=task,
            method="floor",
            why=(
                f"No way of adapting this model is above the trivial answer ({_percent(float(trivial.mean()))}): "
                f"the best scores {_percent(best)} on {len(trivial)} items.",
                "Which of them scores highest is noise; nothing here shows that one is better.",
                *why,
            ),
            confidence=None,
            regret_upper=None,
            next_step="Take a larger model, or an easier task: at the floor more data of this study decides nothing.",
            leader=None,
            dropped=dropped,
            rescues=rescues,
        )
    bounds = stats.regret_bounds({name: scores[name] for name in candidates}, alpha=1 - CONFIDENCE)
    good = [name for name in left if bounds[name] <= margin]
    if good:
        chosen = min(good, key=lambda name: cost_to_own(by_name[name]))
        return Recommendation(
            model=model,
            task=task,
            method=chosen,
            why=(
                f"'{chosen}' is the cheapest to own of the arms that lose at most {_points(margin)} points against "
                f"the best: {_percent(accuracy[chosen])}, at most {_points(bounds[chosen])} points behind.",
                *why,
            ),
            confidence=CONFIDENCE,
            regret_upper=bounds[chosen],
            next_step=f"Check '{chosen}' on questions of your own before you ship it.",
            leader=leader,
            dropped=dropped,
            rescues=rescues,
        )
    return Recommendation(
        model=model,
        task=task,
        method="undecided",
        why=(
            f"'{leader}' leads with {_percent(accuracy[leader])}, but on {len(trivial)} items it may still lie "
            f"{_points(bounds[leader])} points behind another arm; {_points(margin)} would be accepted.",
            *why,
        ),
        confidence=None,
        regret_upper=bounds[leader],
        next_step=_next_step(leader, scores, candidates, margin, available=available),
        leader=leader,
        dropped=dropped,
        rescues=rescues,
    )


def _reason_to_drop(arm: ArmResult) -> str | None:
    if arm.vs_zero_shot is not None and arm.vs_zero_shot.verdict == "harm":
        return f"it is {_points(-arm.vs_zero_shot.artifact.delta)} points below the untouched model on the task"
    retention = arm.retention
    if retention is None or retention.verdict != "harm":
        return None
    parts = []
    if retention.bits_per_byte_delta is not None and retention.bits_per_byte_delta > 0:
        parts.append(f"general text costs {retention.bits_per_byte_delta:+.2f} bits a byte")
    parts += [f"{name} {_points(t.delta, sign=True)} points" for name, t in retention.tasks.items() if t.delta < 0]
    if retention.chat_format_delta is not None and retention.chat_format_delta < 0:
        parts.append(f"answers that are whole turns in chat {_points(retention.chat_format_delta, sign=True)} points")
    return f"it forgets: {', '.join(parts)}"


def _why(by_name: dict[str, ArmResult], left: Sequence[str], dropped: dict[str, str]) -> list[str]:
    """What every recommendation says, whatever it is."""
    lines = [f"'{name}' is out: {reason}." for name, reason in dropped.items()]
    gains = [name for name in left if (v := by_name[name].vs_zero_shot) is not None and v.verdict == "gain"]
    if gains:
        deltas = [
            f"{name} {_points(v.artifact.delta, sign=True)}" for name in gains if (v := by_name[name].vs_zero_shot)
        ]
        lines.append(f"Above the untouched model beyond doubt: {', '.join(deltas)} points.")
    formats = {
        name: v.artifact.delta
        for name in left
        if (v := by_name[name].vs_zero_shot) is not None and v.verdict == "format_only"
    }
    better = [name for name, delta in formats.items() if delta > 0]
    if better:
        lines.append(f"Learned the answer format and nothing more that is shown: {', '.join(better)}.")
    worse = [f"{name} {_points(delta, sign=True)}" for name, delta in formats.items() if delta < 0]
    if worse:
        lines.append(
            f"Below the untouched model, but not by every way of reading an answer: {', '.join(worse)} points; "
            f"look at the outputs before you take it."
        )
    return lines


def _next_step(
    leader: str, scores: Mapping[str, stats.Scores], candidates: Sequence[str], margin: float, *, available: int
) -> str:
    """How many test items would bring the leader's bound within the margin, if the scores stayed as they are."""
    n = len(scores[leader])
    z = float(norm.isf((1 - CONFIDENCE) / max(1, len(candidates) - 1)))
    needed = 0.0
    for other in candidates:
        if other != leader:
            difference = scores[other] - scores[leader]
            room = margin - float(difference.mean())
            if room <= 0:
                return (
                    f"'{other}' scores higher than '{leader}' but is out: mend what does harm in it, and compare again."
                )
            needed = max(needed, float((difference**2).mean() - difference.mean() ** 2) * (z / room) ** 2)
    items = max(math.ceil(needed / 100) * 100, n + 100)
    wanted = f"About {items:,} test items would decide if the scores stay as they are (now {n:,})"
    if items > available:
        return f"{wanted}, more than the {available:,} that the task has; accept a wider margin, or another task."
    return f"{wanted}: raise --limit-test, which re-uses the weights that are kept; or accept a wider margin."


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _points(value: float, *, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.1f}"
