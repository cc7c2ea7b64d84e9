"""From arms and their scores to a recommendation with its reasons, or "undecided"."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

from finetrap import stats
from finetrap.advice import prior_advice
from finetrap.config import Study
from finetrap.method import is_trained
from finetrap.rescue import conclusions, does_harm, rescues_of
from finetrap.results import ArmResult, Estimand, Recommendation, Retention
from finetrap.versus import Scored, pool_of, trivial_of

CONFIDENCE = 0.9
"""Of the regret bound, one-sided, where a look has the whole level of its tests."""


def cost_to_own(arm: ArmResult, *, queries: int) -> float:
    """Operations to tune it, train it and answer so many queries: 2 a weight and token, training three times that.

    Tokens are counted, not seconds: the same merged model does not cost less because the machine was idle.
    """
    cost = arm.cost
    query_tokens = cost.prompt_tokens_per_query + cost.output_tokens_per_query
    trained, answered = cost.train_tokens + (cost.tune_tokens or 0), cost.tune_answer_tokens or 0
    return 2.0 * arm.params * (3 * trained + answered + queries * query_tokens)


def _turning_point(chosen: ArmResult, good: Sequence[ArmResult], *, queries: int) -> str:
    """From or up to how many queries another of the `good` arms is the cheapest to own; nothing where none ever is."""
    fixed = {arm.arm: cost_to_own(arm, queries=0) for arm in good}
    each = {arm.arm: cost_to_own(arm, queries=1) - fixed[arm.arm] for arm in good}
    turns = []
    for other in fixed:
        if each[other] != each[chosen.arm]:
            turn = (fixed[other] - fixed[chosen.arm]) / (each[chosen.arm] - each[other])
            if turn > 0:
                turns.append((abs(math.log(turn / max(queries, 1))), turn, other))
    if not turns:
        return ""
    _, turn, other = min(turns)
    side = "Below" if turn < queries else "Above"
    return f" {side} about {float(f'{turn:.2g}'):,.0f} queries in its life, '{other}' would be cheaper to own."


def recommend(
    study: Study,
    arms: Sequence[ArmResult],
    scored: Mapping[str, Scored],
    *,
    aligned: bool,
    available: int,
    incomplete: Sequence[str] = (),
    alpha: float = stats.ALPHA,
) -> Recommendation:
    """The cheapest arm to own whose regret is bounded by the study's margin; what harms or forgets is dropped first.

    Dropping is a second look at the same data, so that dropped arms stay in the bound: they can only raise it. The
    bound is over items and seeds where the arms have the seeds for it; an arm without them is in it as its checkpoint.
    `available` test items there are in all. `incomplete` names arms that lack an evaluation or a seed: nothing is
    recommended then, since the missing one may be the best, or the one that forgets. `alpha` is the level of this look.
    """
    by_name = {arm.arm: arm for arm in arms}
    rescues = rescues_of(arms, study)
    candidates = [name for name in by_name if name != "constant"]
    dropped = {name: reason for name in candidates if (reason := _reason_to_drop(study, by_name[name]))}
    left = [name for name in candidates if name not in dropped]
    pool = pool_of(scored)
    estimand: Estimand = "artifact" if pool is None else "recipe"
    answer = partial(
        Recommendation,
        model=arms[0].model,
        task=arms[0].task,
        dropped=dropped,
        rescues=rescues,
        estimand=estimand,
        confidence=None,
    )
    if incomplete or not left:
        return answer(
            method="undecided",
            why=_incomplete(incomplete, dropped),
            regret_upper=None,
            next_step="Run it again, with --retry-failed if something failed: what is done is kept."
            if incomplete
            else "Take another model, or accept more: --max-size, or a larger forgetting tolerance.",
        )
    tables = {name: arm.first if pool is None else _columns(arm.table) for name, arm in scored.items()}
    accuracy = {name: float(tables[name].mean()) for name in candidates}
    leader = max(left, key=lambda name: (accuracy[name], -cost_to_own(by_name[name], queries=study.queries)))
    n = len(scored[leader].table)
    trivial = trivial_of(scored)
    why = [*_why(by_name, left, dropped), *conclusions(rescues, arms), *_rescue_hint(study, arms)]
    if not any(stats.above(scored[name].table, trivial, pool) for name in candidates):
        best = max(accuracy.values())
        return answer(
            method="floor",
            why=(
                f"No way of adapting this model is above the trivial answer ({_percent(float(trivial.mean()))}): "
                f"the best scores {_percent(best)} on {n} items.",
                "Which of them scores highest is noise; nothing here shows that one is better.",
                *why,
            ),
            regret_upper=None,
            next_step="Take a larger model, or an easier task: at the floor more data of this study decides nothing.",
            leader=None,
        )
    level = (1 - CONFIDENCE) * alpha / stats.ALPHA
    compared = {name: tables[name] for name in candidates}
    bounds = stats.regret_bounds(compared, pool, alpha=level)
    good = [name for name in left if bounds[name] <= study.margin]
    if good:
        chosen = min(good, key=lambda name: cost_to_own(by_name[name], queries=study.queries))
        return answer(
            method=chosen,
            why=(
                f"'{chosen}' is the cheapest to own, over {study.queries:,} queries, of the arms that lose at most "
                f"{_points(study.margin)} points against the best: {_percent(accuracy[chosen])}, at most "
                f"{_points(bounds[chosen])} points behind{_about(scored[chosen], pool)}.",
                *why,
            ),
            confidence=1 - level,
            regret_upper=bounds[chosen],
            next_step=f"Check '{chosen}' on questions of your own before you ship it."
            f"{_turning_point(by_name[chosen], [by_name[name] for name in good], queries=study.queries)}",
            leader=leader,
        )
    behind = [
        name for name in candidates if name != leader and _may_be_ahead(compared, leader, name, pool, level, study)
    ]
    return answer(
        method="undecided",
        why=(
            f"'{leader}' leads with {_percent(accuracy[leader])}, but on {n} items{_about(scored[leader], pool)} it "
            f"may still lie {_points(bounds[leader])} points behind another arm; {_points(study.margin)} would be "
            f"accepted.",
            *why,
        ),
        regret_upper=bounds[leader],
        next_step=_next_step(leader, compared, behind, pool, study, level=level, available=available),
        leader=leader,
        prior_advice=prior_advice(by_name[leader].params, aligned=aligned),
    )


def _columns(table: stats.Scores) -> stats.Scores:
    return table if table.shape[1] > 1 else table[:, 0]


def _about(arm: Scored, pool: stats.SeedPool | None) -> str:
    """What a bound is about, for a sentence."""
    if pool is None:
        return ""
    return f" and {arm.table.shape[1]} seeds" if arm.has_seeds else " and as this one checkpoint"


def _incomplete(incomplete: Sequence[str], dropped: Mapping[str, str]) -> tuple[str, ...]:
    if incomplete:
        return (f"The study is not complete: {', '.join(incomplete)}.",)
    return ("No arm is left.", *(f"'{name}' is out: {reason}." for name, reason in dropped.items()))


def _level(tables: Mapping[str, stats.Scores], alpha: float) -> float:
    """Two-sided, of each of the pairs that `regret_bounds` holds."""
    return 2 * alpha / max(1, len(tables) - 1)


def _may_be_ahead(
    tables: Mapping[str, stats.Scores],
    leader: str,
    other: str,
    pool: stats.SeedPool | None,
    alpha: float,
    study: Study,
) -> bool:
    loss = stats.difference(tables[other], tables[leader], pool, kappa=stats.REGRET_KAPPA)
    return loss.centre + loss.half_width(_level(tables, alpha)) > study.margin


def _next_step(
    leader: str,
    tables: Mapping[str, stats.Scores],
    behind: Sequence[str],
    pool: stats.SeedPool | None,
    study: Study,
    *,
    level: float,
    available: int,
) -> str:
    """Items, or seeds, that would bring the leader's bound within the margin if the scores stayed as they are."""
    n = len(tables[leader])
    needed = []
    for other in behind:
        room = study.margin - float(stats.difference(tables[other], tables[leader], pool).delta)
        if room <= 0:
            return f"'{other}' scores higher than '{leader}' but is out: mend what does harm in it, and compare again."
        alpha = _level(tables, level)
        one, best = tables[other], tables[leader]
        needed.append(stats.needed(one, best, pool, target=room, alpha=alpha, kappa=stats.REGRET_KAPPA))
    items = _most([need.items for need in needed])
    seeds = _most([need.seeds for need in needed])
    by_seeds = None if seeds is None or pool is None else f"about {seeds} seeds"
    if by_seeds and items is not None and items > available:
        items = None  # more than there are, and there is another way
    by_items = None if items is None else f"about {max(math.ceil(items / 100) * 100, n + 100):,} test items"
    wider = "or accept a wider margin"
    if by_items is None and by_seeds is None:
        return f"Neither more test items nor more seeds alone would decide: raise --limit-test and --seeds, {wider}."
    if items is not None and items > available and by_seeds is None:
        return _sentence(
            f"{by_items} would decide if the scores stay as they are (now {n:,}), more than the {available:,} that the "
            f"task has; accept a wider margin, or another task."
        )
    ways = " or ".join(way for way in (by_items, by_seeds) if way)
    options = " or ".join(option for way, option in ((by_items, "--limit-test"), (by_seeds, "--seeds")) if way)
    kept = ", which re-uses the weights that are kept" if by_items and study.keep != "none" else ""
    return _sentence(
        f"{ways} would decide if the scores stay as they are (now {n:,} items): raise {options}{kept}; {wider}."
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _most(numbers: Sequence[int | None]) -> int | None:
    """The largest; None where for one of them no number suffices, or there is none."""
    known = [number for number in numbers if number is not None]
    return max(known) if known and len(known) == len(numbers) else None


def _reason_to_drop(study: Study, arm: ArmResult) -> str | None:
    shipped = arm.cost.shipped_bytes
    if study.max_size is not None and shipped is not None and shipped > study.max_size:
        return f"its weights take {_megabytes(shipped)} as they ship, and {_megabytes(study.max_size)} is the limit"
    if arm.vs_zero_shot is not None and arm.vs_zero_shot.verdict == "harm":
        return f"it is {_points(-arm.vs_zero_shot.decisive.delta)} points below the untouched model on the task"
    retention = arm.retention
    if retention is None or retention.verdict != "harm":
        return None
    which = f" (seed {retention.seed} of {len(retention.seeds)})" if len(retention.seeds) > 1 else ""
    return f"it forgets{which}: {', '.join(_forgotten(study, retention))}"


def _forgotten(study: Study, retention: Retention) -> list[str]:
    """What is less than before, as far as its own interval says so; all of it where none does."""
    lost: list[tuple[str, bool]] = []
    if retention.bits_per_byte_delta is not None and retention.bits_per_byte_delta > 0:
        shown = retention.bits_per_byte_ci95 is None or retention.bits_per_byte_ci95[0] > study.bits_per_byte_tolerance
        lost.append((f"general text costs {retention.bits_per_byte_delta:+.2f} bits a byte", shown))
    tasks = [(name, task) for name, task in retention.tasks.items() if task.delta < 0 and not task.at_chance]
    lost += [(f"{name} {_points(task.delta, sign=True)} points", task.ci95[1] < 0) for name, task in tasks]
    if retention.delta is not None and retention.ci95 is not None and not any(task.ci95[1] < 0 for _, task in tasks):
        mean = f"general tasks {_points(retention.delta, sign=True)} points in the mean"
        lost += [(mean, True)] if retention.ci95[1] < -study.forgetting_tolerance else []
    if retention.chat_format_delta is not None and retention.chat_format_delta < 0:
        text = f"answers that are whole turns in chat {_points(retention.chat_format_delta, sign=True)} points"
        shown = retention.chat_format_ci95 is None or retention.chat_format_ci95[1] < -study.forgetting_tolerance
        lost.append((text, shown))
    # The verdict's own level may show what no interval at 95% does.
    return [text for text, shown in lost if shown] or [text for text, _ in lost]


def _why(by_name: dict[str, ArmResult], left: Sequence[str], dropped: dict[str, str]) -> list[str]:
    """What every recommendation says, whatever it is."""
    lines = [f"'{name}' is out: {reason}." for name, reason in dropped.items()]
    gains = [name for name in left if (v := by_name[name].vs_zero_shot) is not None and v.verdict == "gain"]
    if gains:
        deltas = [
            f"{name} {_points(v.decisive.delta, sign=True)}" for name in gains if (v := by_name[name].vs_zero_shot)
        ]
        lines.append(f"Shown to be above the untouched model: {', '.join(deltas)} points.")
    formats = {
        name: v.decisive.delta
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


def _rescue_hint(study: Study, arms: Sequence[ArmResult]) -> list[str]:
    """What to do about harm that no rescue was tried on."""
    harmful = [arm.arm for arm in arms if does_harm(arm) and (is_trained(arm.method) or arm.method == "checkpoint")]
    if study.rescue or not harmful:
        return []
    who = ", ".join(map(repr, harmful))
    return [f"Whether a lower rate, replay or going half-way back removes the harm of {who}: --rescue tries it."]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _points(value: float, *, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.1f}"
