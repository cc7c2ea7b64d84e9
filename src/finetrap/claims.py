"""Claims against records: each is supported, refuted or undetermined, with the numbers that say so.

A claim is judged by its cases, a model on a task each (of an interaction: a model). In a case both directions are
tested. `r` of `K` cases have to hold (all: K, any: 1, most: more than half), which is a partial conjunction; its p is
(K - r + 1) p_(r), with p_(1) the least (Benjamini and Heller 2008, section 2, with Bonferroni's combination): the
largest p for `all`, the intersection-union test, and K times the least for `any`. A claim is refuted where so many
cases are the other way round that `r` cannot hold. Holm over the claims of the study makes them one family.

What cannot be told apart at the floor decides nothing, and neither does what only another format explains.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from finetrap import stats
from finetrap.claim_spec import Claim, Equivalence, Interaction
from finetrap.config import Study
from finetrap.looks import least_level, stated_late
from finetrap.records import ItemRow, ModelRecord, Plan
from finetrap.results import ClaimResult, ClaimVerdict
from finetrap.store import Store
from finetrap.versus import Scored, pool_of, scored_of, trivial_of

LATE = "Stated, of these models and tasks, after an answer was read: exploratory."


@dataclass(frozen=True)
class Cell:
    """The scores of a model on a task."""

    model: ModelRecord
    task: str
    arms: Mapping[str, Scored]
    """Those that are done."""

    @property
    def label(self) -> str:
        return f"{self.model.label} on {self.task}"


class _Part(NamedTuple):
    """Cells of one task, averaged item by item, and their weight in a contrast of tasks."""

    cells: tuple[Cell, ...]
    weight: float


class _Compared(NamedTuple):
    """Two arms on a task, and the pool of the seeds of all arms there."""

    a: Scored
    b: Scored
    pool: stats.SeedPool | None


@dataclass(frozen=True)
class _Case:
    """What a claim has to hold in."""

    label: str
    parts: tuple[_Part, ...]
    missing: str = ""
    """What is not there."""
    void: str = ""
    """Why what is there decides nothing."""


class _Judged(NamedTuple):
    """A case: p for and against the claim, and the sentence that says it."""

    supports: float
    refutes: float
    says: str


def judge(claims: Sequence[Claim], cells: Sequence[Cell], *, alpha: float = stats.ALPHA) -> tuple[ClaimResult, ...]:
    """Judge the claims of a study as one family, which holds the claims that cannot be judged too."""
    verdicts = [_judge(claim, cells) for claim in claims]
    least = [min(verdict.supports, verdict.refutes) for verdict, _ in verdicts]
    results = []
    for claim, (verdict, evidence), p, adjusted in zip(claims, verdicts, least, stats.holm(least), strict=True):
        decided = adjusted < alpha
        said: ClaimVerdict = "supported" if verdict.supports < verdict.refutes else "refuted"
        known = p < 1
        corrected = f"; p {_p(p)}, {_p(adjusted)} corrected for {len(claims)} claims" if known else ""
        results.append(
            ClaimResult(
                id=claim.id,
                says=claim.says,
                verdict=said if decided else "undetermined",
                p=p if known else None,
                p_adjusted=adjusted if known else None,
                evidence=(*evidence, f"{verdict.says}{corrected}."),
            )
        )
    return tuple(results)


def judge_study(study: Study, plan: Plan, store: Store) -> tuple[ClaimResult, ...]:
    """The claims of a study against its records, at the level of this look."""
    if not study.claims:
        return ()
    late = stated_late(study, plan, store)
    return tuple(
        result.model_copy(update={"evidence": (*result.evidence, LATE)}) if result.id in late else result
        for result in judge(study.claims, cells_of(plan, store), alpha=least_level(study, plan, store))
    )


def _judge(claim: Claim, cells: Sequence[Cell]) -> tuple[_Judged, tuple[str, ...]]:
    cases = list(_cases(claim, cells))
    if not cases:
        return _Judged(1.0, 1.0, f"The study has no model {claim.models}"), ()
    judged = [_judge_case(claim, case) for case in cases]
    evidence = tuple(f"{one.says}." for one in judged)
    if claim.quantifier == "mean":
        return _judge_mean(claim, cases), evidence
    total = len(judged)
    needed = {"all": total, "any": 1, "most": total // 2 + 1}[claim.quantifier]
    supports = _at_least(needed, [one.supports for one in judged])
    refutes = _at_least(total - needed + 1, [one.refutes for one in judged])
    holding = sum(one.supports < stats.ALPHA for one in judged)
    contrary = sum(one.refutes < stats.ALPHA for one in judged)
    told = f"Has to hold in {needed} of {total}: it does in {holding}, the contrary does in {contrary}"
    return _Judged(supports, refutes, told), evidence


def _at_least(r: int, p_values: Sequence[float]) -> float:
    """The p of that at least `r` of the hypotheses are false."""
    return min(1.0, (len(p_values) - r + 1) * sorted(p_values)[r - 1])


def _judge_mean(claim: Claim, cases: Sequence[_Case]) -> _Judged:
    """The mean over the cases that are above the floor; the models are taken as they are, not as a sample of models."""
    missing = [case.missing for case in cases if case.missing]
    if missing:
        return _Judged(1.0, 1.0, "The mean cannot be taken: something is missing")
    kept = [case for case in cases if not case.void]
    if not kept:
        return _Judged(1.0, 1.0, "The mean cannot be taken: nothing is above the floor")
    by_task: dict[str, tuple[list[Cell], float]] = {}
    for part in (part for case in kept for part in case.parts):
        cells, weight = by_task.get(part.cells[0].task, ([], 0.0))
        by_task[part.cells[0].task] = ([*cells, *part.cells], weight + part.weight / len(kept))
    parts = tuple(_Part(tuple(cells), weight) for cells, weight in by_task.values())
    return _judge_case(claim, _Case(f"The mean of {len(kept)}", parts))


def _cases(claim: Claim, cells: Sequence[Cell]) -> Iterator[_Case]:
    chosen = [c for c in cells if claim.models.holds(c.model.name, c.model.parameters, aligned=c.model.aligned)]
    for model in {cell.model.label: cell.model for cell in chosen}.values():
        of_model = {cell.task: cell for cell in chosen if cell.model == model}
        wanted = [of_model.get(task, Cell(model, task, {})) for task in claim.tasks or of_model]
        if isinstance(claim, Interaction):
            yield _case(claim, f"{model.label}, {claim.tasks[0]} less {claim.tasks[1]}", wanted, (1.0, -1.0))
        else:
            for cell in wanted:
                yield _case(claim, cell.label, [cell], (1.0,))


def _case(claim: Claim, label: str, cells: Sequence[Cell], weights: Sequence[float]) -> _Case:
    missing = [f"'{arm}' on {cell.task}" for cell in cells for arm in (claim.a, claim.b) if arm not in cell.arms]
    case = _Case(label, tuple(_Part((cell,), weight) for cell, weight in zip(cells, weights, strict=True)))
    if missing:
        return replace(case, missing=f"there are no scores of {' and '.join(missing)} yet")
    floors = [cell.task for cell in cells if _at_floor(cell, claim.a, claim.b)]
    if floors:
        return replace(
            case, void=f"on {' and '.join(floors)} neither arm beats the trivial one, and floors decide nothing"
        )
    return case


def _at_floor(cell: Cell, a: str, b: str) -> bool:
    """Whether the better arm is not above the trivial one (one-sided, 5%); blind to which of the two it is."""
    compared = _compared([cell], a, b)
    ahead = max((compared.a.table, compared.b.table), key=lambda table: float(table.mean()))
    return not stats.above(ahead, trivial_of(cell.arms), compared.pool)


def _compared(cells: Sequence[Cell], a: str, b: str) -> _Compared:
    """Two arms on a task, of models averaged; with too few seeds for a pool, their first seeds alone."""
    arms = set.intersection(*(set(cell.arms) for cell in cells))
    averaged = {arm: _average([cell.arms[arm] for cell in cells]) for arm in sorted(arms)}
    pool = pool_of(averaged)
    if pool is None:
        return _Compared(_seeds(averaged[a], 1), _seeds(averaged[b], 1), None)
    return _Compared(averaged[a], averaged[b], pool)


def _judge_case(claim: Claim, case: _Case) -> _Judged:
    if case.missing:
        return _Judged(1.0, 1.0, f"{case.label}: {case.missing}")
    contrast = [(part.weight, _compared(part.cells, claim.a, claim.b)) for part in case.parts]
    estimate, sample = _contrast(contrast)
    low, high = _interval(estimate)
    ends = f"{_points(low)} to {_points(high)}"
    said = f"{case.label}: {claim.a} - {claim.b} {_points(estimate.delta)} points (95% interval {ends}; {sample})"
    if isinstance(claim, Equivalence):
        said = f"{said}, {_points(claim.margin).lstrip('+')} at most claimed"
    if case.void:
        return _Judged(1.0, 1.0, f"{said}; {case.void}")
    if isinstance(claim, Equivalence):
        # Within the margin: two one-sided tests (Schuirmann 1987). Beyond it: on either side.
        above, below = (_beyond(one, claim.margin) for one in (estimate, estimate._replace(centre=-estimate.centre)))
        return _Judged(1 - min(above, below), min(1.0, 2 * min(above, below)), said)
    p = estimate.p
    if p < stats.ALPHA and not _by_every_rule(contrast, estimate.delta):
        return _Judged(1.0, 1.0, f"{said}; not by every way of reading an answer, so it decides nothing")
    return _Judged(p, 1.0, said) if estimate.centre > 0 else _Judged(1.0, p, said)


def _beyond(estimate: stats.Difference, bound: float) -> float:
    """One-sided p of that the difference is above `bound`."""
    shifted = estimate._replace(centre=estimate.centre - bound)
    return shifted.p / 2 if shifted.centre > 0 else 1 - shifted.p / 2


def _interval(estimate: stats.Difference) -> stats.Interval:
    half = estimate.half_width(stats.ALPHA)  # a difference of differences may leave [-1, 1]
    return stats.Interval(estimate.centre - half, estimate.centre + half)


def _contrast(contrast: Sequence[tuple[float, _Compared]]) -> tuple[stats.Difference, str]:
    """The difference a - b, summed over tasks with their weights, and what it is of: items and seeds.

    Tasks share no items, so their variances add; the fewest degrees of freedom stand for all. Models share items:
    their scores are averaged item by item and seed by seed, and the mean is compared as one model would be.
    """
    differences = [(weight, stats.difference(a.table, b.table, pool)) for weight, (a, b, pool) in contrast]
    items = sum(len(a.table) for _, (a, _, _) in contrast)
    seeds = max(arm.table.shape[1] for _, (a, b, _) in contrast for arm in (a, b))
    whole = stats.Difference(
        delta=sum(w * d.delta for w, d in differences),
        centre=sum(w * d.centre for w, d in differences),
        item_variance=sum(w**2 * d.item_variance for w, d in differences),
        seed_variance=sum(w**2 * d.seed_variance for w, d in differences),
        item_df=min(d.item_df for _, d in differences),
        seed_df=min(d.seed_df for _, d in differences),
    )
    return whole, f"{items} items, {f'{seeds} seeds' if seeds > 1 else 'one seed, which says nothing of another'}"


def _average(models: Sequence[Scored]) -> Scored:
    """The mean of models' scores, over the seeds that all have; by a rule that one lacks, with those that decide."""
    seeds = min(one.table.shape[1] for one in models)
    kept = [_seeds(one, seeds) for one in models]
    rules = {rule: np.mean([one.by_rule.get(rule, one.table) for one in kept], axis=0) for rule in _rules(kept)}
    return Scored(np.mean([one.table for one in kept], axis=0), rules)


def _seeds(arm: Scored, count: int) -> Scored:
    """Its first so many seeds."""
    return Scored(arm.table[:, :count], {rule: table[:, :count] for rule, table in arm.by_rule.items()})


def _rules(arms: Iterable[Scored]) -> set[str]:
    return {rule for arm in arms for rule in arm.by_rule}


def _by_every_rule(contrast: Sequence[tuple[float, _Compared]], delta: float) -> bool:
    """Whether every rule of scoring that says something of a part gives the whole the same sign."""

    def accuracy(arm: Scored, rule: str) -> float:
        return float(arm.by_rule.get(rule, arm.table).mean())

    def change(rule: str) -> float:
        return sum(weight * (accuracy(a, rule) - accuracy(b, rule)) for weight, (a, b, _) in contrast)

    rules = _rules(arm for _, (a, b, _) in contrast for arm in (a, b))
    # Rounded, as scores may be thirds.
    return all(delta * round(change(rule), 12) > 0 for rule in rules)


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.0001 else "below 0.0001"


def cells_of(plan: Plan, store: Store) -> list[Cell]:
    """What is done of a study, for each model and task; arms that rescue another came of what the first ones showed."""
    seeds: dict[tuple[str, str], dict[str, list[Sequence[ItemRow]]]] = {}
    models = {planned.trial.model.label: planned.trial.model for planned in plan.planned}
    for trial, evaluations in ((p.trial, p.evaluations) for p in plan.planned if p.rescue_of is None):
        arms = seeds.setdefault((trial.model.label, trial.task), {})
        for evaluation in evaluations:
            if evaluation.purpose == "target" and store.evaluation(trial, evaluation):
                arms.setdefault(trial.arm, []).append(store.rows(trial, evaluation))
    return [
        Cell(models[label], task, {arm: _scored(plan, task, rows) for arm, rows in arms.items()})
        for (label, task), arms in seeds.items()
    ]


def _scored(plan: Plan, task: str, seeds: Sequence[Sequence[ItemRow]]) -> Scored:
    return scored_of(seeds, states_format=task not in plan.tasks or plan.tasks[task].states_format)
