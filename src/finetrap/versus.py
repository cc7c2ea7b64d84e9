"""Arms against the untouched model, and in pairs: tables of scores in, verdicts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from finetrap import stats
from finetrap.records import ItemRow
from finetrap.results import Artifact, Comparison, Recipe, Verdict, VersusZeroShot
from finetrap.retention import scores_of

LEAST_DF = 4
"""Seeds beyond the first, of all arms of a model and task together, from which verdicts are about recipes."""
TRIVIAL, ZERO_SHOT = "constant", "zero_shot"
REFERENCES = (TRIVIAL, ZERO_SHOT)


@dataclass(frozen=True)
class Scored:
    """An arm's scores, each (n, S): items down, seeds across."""

    table: stats.Scores
    """By the rule that decides."""
    by_rule: Mapping[str, stats.Scores] = field(default_factory=dict)
    """By the other rules, in which a gain or harm has to keep its sign."""

    @property
    def first(self) -> stats.Scores:
        """The first seed's, (n,)."""
        return self.table[:, 0]

    @property
    def has_seeds(self) -> bool:
        """Whether there is a second seed."""
        return bool(self.table.shape[1] > 1)


def scored_of(seeds: Sequence[Sequence[ItemRow]], *, states_format: bool) -> Scored:
    """The scores in the rows of each seed, by the rule that decides and by every other that says something.

    The strict rule says something where a format is asked for or taught: `states_format`.
    """
    rules = () if seeds[0][0].strict is None else ("strict", "anywhere") if states_format else ("anywhere",)
    table, *others = (np.stack([scores_of(rows, r) for rows in seeds], axis=1) for r in ("correct", *rules))
    return Scored(table, dict(zip(rules, others, strict=True)))


def pool_of(arms: Mapping[str, Scored]) -> stats.SeedPool | None:
    """What arms of a model and task say together of seeds; None where that is too little for verdicts on recipes."""
    tables = [arm.table for arm in arms.values() if arm.has_seeds]
    return stats.pool_seeds(tables) if sum(table.shape[1] - 1 for table in tables) >= LEAST_DF else None


def versus_zero_shot(
    arms: Mapping[str, Scored], *, margin: float, alpha: float = stats.ALPHA, reference: str = ZERO_SHOT
) -> dict[str, VersusZeroShot]:
    """The corrected family of a model and task: every arm but the trivial one against zero-shot, or another reference.

    `arms` are all on the same items. A verdict is about the recipe where the arm has one, else about the first seed's
    checkpoint; both are in one family. `alpha` is the level of this look at the data.
    """
    family = {name: arm for name, arm in arms.items() if name not in (TRIVIAL, reference)}
    if reference not in arms or not family:
        return {}
    zero, pool = arms[reference], pool_of(arms)
    trivial = trivial_of(arms)
    differences = {
        name: stats.difference(arm.table, zero.table, pool)
        for name, arm in family.items()
        if pool is not None and arm.has_seeds
    }
    of_checkpoints = {name: stats.between_checkpoints(arm.first, zero.first).p for name, arm in family.items()}
    decisive = {name: differences[name].p if name in differences else p for name, p in of_checkpoints.items()}
    adjusted = dict(zip(decisive, stats.holm(list(decisive.values())), strict=True))
    others = dict(zip(of_checkpoints, stats.holm(list(of_checkpoints.values())), strict=True))
    results = {}
    for name, arm in family.items():
        rest = [other.table for key, other in family.items() if key != name and other.has_seeds]
        compared = _Compared(arm, zero, trivial, pool, differences.get(name), rest, alpha, len(family))
        artifact = artifact_of(
            arm.first,
            zero.first,
            p_adjusted=others[name] if name in differences else adjusted[name],
            margin=margin,
            family=len(family),
            alpha=alpha,
        )
        recipe = compared.recipe(adjusted[name], margin)
        verdict = compared.verdict(recipe or artifact, margin)
        results[name] = VersusZeroShot(verdict=verdict, margin=margin, artifact=artifact, recipe=recipe)
    return results


def trivial_of(arms: Mapping[str, Scored]) -> stats.Scores:
    """The trivial arm's scores (n,) on the items of `arms`; where it is not among them, nothing is right."""
    return arms[TRIVIAL].first if TRIVIAL in arms else np.zeros(len(next(iter(arms.values())).table))


def artifact_of(
    a: stats.Scores,
    b: stats.Scores,
    *,
    p_adjusted: float | None = None,
    margin: float = 0.0,
    family: int = 1,
    alpha: float = stats.ALPHA,
) -> Artifact:
    """One checkpoint's scores (n,) against the untouched model's, in a family of so many at level `alpha`."""
    found = stats.between_checkpoints(a, b)
    p_adjusted = found.p if p_adjusted is None else p_adjusted
    simultaneous = found.interval(alpha / family)
    show, rule_out = _to_decide(found, a, b, None, margin=margin, alpha=alpha / family, shown=p_adjusted < alpha)
    interval, sign_only = stats.sign_only(simultaneous, p_adjusted, found.delta > 0, alpha=alpha)
    return Artifact(
        delta=found.delta,
        ci95=found.interval(stats.ALPHA),
        ci95_adjusted=interval,
        sign_only=sign_only,
        p=found.p,
        p_adjusted=p_adjusted,
        mde=stats.minimum_detectable_effect(a - b, alpha=alpha / family),
        items_needed=show.items,
        items_to_rule_out=rule_out.items,
    )


def _to_decide(
    found: stats.Difference | stats.Discordant,
    a: stats.Scores,
    b: stats.Scores,
    pool: stats.SeedPool | None,
    *,
    margin: float,
    alpha: float,
    shown: bool,
) -> tuple[stats.Needed, stats.Needed]:
    """What would show the difference found, and what would rule out one of `margin`; nothing of what is done."""
    if shown:
        return stats.Needed(None, None), stats.Needed(None, None)
    room = 0.0 if stats.equivalent(found, margin, alpha=alpha) else margin - abs(found.delta)
    return (
        stats.needed(a, b, pool, target=abs(found.delta), alpha=alpha),
        stats.needed(a, b, pool, target=room, alpha=2 * alpha),
    )


@dataclass(frozen=True)
class _Compared:
    """An arm, what it is compared with, and the family it is in."""

    arm: Scored
    zero: Scored
    trivial: stats.Scores
    pool: stats.SeedPool | None
    difference: stats.Difference | None
    rest: Sequence[stats.Scores]
    alpha: float
    family: int

    def recipe(self, p_adjusted: float, margin: float) -> Recipe | None:
        """The difference over items and seeds; None where the arm has no seeds to speak of."""
        if self.difference is None or self.pool is None:
            return None
        difference, level = self.difference, self.alpha / self.family
        interval, sign_only = stats.adjusted(difference, p_adjusted, self.family, alpha=self.alpha)
        tables, shown = (self.arm.table, self.zero.table), p_adjusted < self.alpha
        show, rule_out = _to_decide(difference, *tables, self.pool, margin=margin, alpha=level, shown=shown)
        return Recipe(
            delta=difference.delta,
            ci95=difference.interval(stats.ALPHA),
            ci95_adjusted=interval,
            sign_only=sign_only,
            p=difference.p,
            p_adjusted=p_adjusted,
            mde=difference.mde(level),
            seeds=self.arm.table.shape[1],
            df_seeds=self.pool.df if np.isfinite(self.pool.df) else None,
            items_needed=show.items,
            seeds_needed=show.seeds,
            items_to_rule_out=rule_out.items,
            seeds_to_rule_out=rule_out.seeds,
            seed_ratio=stats.seed_ratio(self.arm.table, self.pool),
            seeds_stand_out=bool(self.rest) and stats.seeds_stand_out(self.arm.table, self.rest),
        )

    def verdict(self, evidence: Artifact | Recipe, margin: float) -> Verdict:
        """The word, by the first of the rules that holds."""
        zero_is_above = stats.above(self.zero.table, self.trivial, self.pool)
        if not zero_is_above and not stats.above(self.arm.table, self.trivial, self.pool):
            return "floor"
        if evidence.p_adjusted < self.alpha:
            if evidence.delta < 0 and not zero_is_above:
                return "floor"
            if not self._same_sign_by_every_rule(evidence.delta):
                return "format_only"
            return "gain" if evidence.delta > 0 else "harm"
        if self._equivalent(margin):
            return "no_difference"
        left = 1 - float(self.zero.table.mean())
        return "ceiling" if left < evidence.mde or not self._gain_can_be_shown() else "undecided"

    def _same_sign_by_every_rule(self, delta: float) -> bool:
        """A difference in generated answers has to be there strictly and anywhere too, else a format was learned."""

        def change(rule: str) -> float:
            ours, theirs = self.arm.by_rule[rule], self.zero.by_rule[rule]
            if self.difference is None:
                ours, theirs = ours[:, :1], theirs[:, :1]
            # Sums, as means of thirds differ where sums do not; rounded, as scores may be thirds themselves.
            return round(float(ours.sum() * theirs.shape[1] - theirs.sum() * ours.shape[1]), 6)

        return all(change(rule) * delta > 0 for rule in self.arm.by_rule)

    def _equivalent(self, margin: float) -> bool:
        found = self.difference or stats.between_checkpoints(self.arm.first, self.zero.first)
        return stats.equivalent(found, margin, alpha=self.alpha / self.family)

    def _gain_can_be_shown(self) -> bool:
        """Whether an arm that is right everywhere would be told from the untouched model."""
        perfect = np.ones_like(self.zero.first)
        if self.difference is not None:
            p = stats.difference(perfect, self.zero.table).p
        else:
            p = stats.between_checkpoints(perfect, self.zero.first).p
        return p < self.alpha / self.family


def pairs(model: str, task: str, arms: Mapping[str, Scored]) -> list[Comparison]:
    """Pairs of arms other than the references, exploratory: recipes where both have seeds, else first seeds."""
    pool = pool_of(arms)
    names = [name for name in arms if name not in REFERENCES]
    above = {name for name in names if stats.above(arms[name].table, trivial_of(arms), pool)}
    comparisons = []
    for a, b in combinations(names, 2):
        one, other = arms[a], arms[b]
        if pool is not None and one.has_seeds and other.has_seeds:
            difference = stats.difference(one.table, other.table, pool)
            delta, interval, p = difference.delta, difference.interval(stats.ALPHA), difference.p
            estimand: Literal["artifact", "recipe"] = "recipe"
        else:
            found = artifact_of(one.first, other.first)
            delta, interval, p, estimand = found.delta, stats.Interval(*found.ci95), found.p, "artifact"
        sign: Literal["gain", "harm"] = "gain" if delta > 0 else "harm"
        said: Literal["gain", "harm", "undecided"] = sign if p < stats.ALPHA else "undecided"
        comparisons.append(
            Comparison(
                model=model,
                task=task,
                a=a,
                b=b,
                delta=delta,
                ci95=interval,
                p=p,
                p_adjusted=None,
                verdict=said if above & {a, b} else "floor",
                estimand=estimand,
            )
        )
    return comparisons
