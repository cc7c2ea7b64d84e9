"""Claims against records: each is supported, refuted or undetermined, with the numbers that say so.

A claim is judged by its cases, a model on a task each (of an interaction: a model). In a case both directions are
tested. `r` of `K` cases have to hold (all: K, any: 1, most: more than half), which is a partial conjunction; its p is
(K - r + 1) p_(r), with p_(1) the least (Benjamini and Heller 2008, section 2, with Bonferroni's combination): the
largest p for `all`, the intersection-union test, and K times the least for `any`. A claim is refuted where so many
cases are the other way round that `r` cannot hold. Holm over the claims of the study makes them one family.

What cannot be told apart at the floor decides nothing, and neither does what only another format explains.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from finetrap import stats
from finetrap.claim_spec import Claim, Equivalence, Interaction
from finetrap.config import Study
from finetrap.looks import least_level
from finetrap.records import ModelRecord, Plan, Planned
from finetrap.results import ClaimResult, ClaimVerdict
from finetrap.retention import scores_of
from finetrap.store import Store

LEAST_SEED_DF = 4
"""Of the pool of a model and task: with fewer, only the first seeds are compared."""


@dataclass(frozen=True)
class Cell:
    """The scores of a model on a task."""

    model: ModelRecord
    task: str
    tables: Mapping[str, stats.Scores]
    """By arm that is done: (n,) of one seed or a fixed arm, (n, S) of several seeds."""
    rules: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By another rule of scoring: the arms' accuracy by it."""

    @property
    def label(self) -> str:
        return f"{self.model.label} on {self.task}"


class _Part(NamedTuple):
    """Cells of one task, averaged item by item, and their weight in a contrast of tasks."""

    cells: tuple[Cell, ...]
    weight: float


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
    return judge(study.claims, cells_of(plan, store), alpha=least_level(study, plan, store))


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
    missing = [f"'{arm}' on {cell.task}" for cell in cells for arm in (claim.a, claim.b) if arm not in cell.tables]
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
    tables, pool = _pooled(cell.tables)
    ahead = max((tables[a], tables[b]), key=lambda table: float(table.mean()))
    trivial = tables["constant"] if "constant" in tables else np.zeros(len(ahead))
    return not stats.above(ahead, trivial, pool)


def _pooled(tables: Mapping[str, stats.Scores]) -> tuple[dict[str, stats.Scores], stats.SeedPool | None]:
    """The tables with their pool of seeds; with too few seeds for one, the first seeds alone."""
    degrees = sum(table.shape[1] - 1 for table in tables.values() if table.ndim == 2)
    if degrees >= LEAST_SEED_DF:
        return dict(tables), stats.pool_seeds(tables.values())
    return {arm: table if table.ndim == 1 else table[:, 0] for arm, table in tables.items()}, None


def _judge_case(claim: Claim, case: _Case) -> _Judged:
    if case.missing:
        return _Judged(1.0, 1.0, f"{case.label}: {case.missing}")
    estimate, sample = _contrast(claim, case.parts)
    low, high = _interval(estimate)
    ends = f"{_points(low)} to {_points(high)}"
    said = f"{case.label}: {claim.a} - {claim.b} {_points(estimate.delta)} points (95% interval {ends}; {sample})"
    if case.void:
        return _Judged(1.0, 1.0, f"{said}; {case.void}")
    if isinstance(claim, Equivalence):
        # Within the margin: two one-sided tests (Schuirmann 1987). Beyond it: on either side.
        above, below = (_beyond(one, claim.margin) for one in (estimate, estimate._replace(centre=-estimate.centre)))
        return _Judged(1 - min(above, below), min(1.0, 2 * min(above, below)), said)
    p = estimate.p
    if p < stats.ALPHA and not _by_every_rule(claim, case.parts, estimate.delta):
        return _Judged(1.0, 1.0, f"{said}; not by every way of reading an answer, so it decides nothing")
    return _Judged(p, 1.0, said) if estimate.centre > 0 else _Judged(1.0, p, said)


def _beyond(estimate: stats.Difference, bound: float) -> float:
    """One-sided p of that the difference is above `bound`."""
    shifted = estimate._replace(centre=estimate.centre - bound)
    return shifted.p / 2 if shifted.centre > 0 else 1 - shifted.p / 2


def _interval(estimate: stats.Difference) -> stats.Interval:
    half = estimate.half_width(stats.ALPHA)  # a difference of differences may leave [-1, 1]
    return stats.Interval(estimate.centre - half, estimate.centre + half)


def _contrast(claim: Claim, parts: Sequence[_Part]) -> tuple[stats.Difference, str]:
    """The difference a - b, summed over tasks with their weights, and what it is of: items and seeds.

    Tasks share no items, so their variances add; the fewest degrees of freedom stand for all. Models share items:
    their scores are averaged item by item and seed by seed, and the mean is compared as one model would be.
    """
    differences, items, seeds = [], 0, 1
    for part in parts:
        arms = set.intersection(*(set(cell.tables) for cell in part.cells))
        tables, pool = _pooled({arm: _average([cell.tables[arm] for cell in part.cells]) for arm in sorted(arms)})
        a, b = tables[claim.a], tables[claim.b]
        differences.append((part.weight, stats.difference(a, b, pool)))
        items += len(a)
        seeds = max(seeds, *(table.shape[1] for table in (a, b) if table.ndim == 2), 1)
    whole = stats.Difference(
        delta=sum(w * d.delta for w, d in differences),
        centre=sum(w * d.centre for w, d in differences),
        item_variance=sum(w**2 * d.item_variance for w, d in differences),
        seed_variance=sum(w**2 * d.seed_variance for w, d in differences),
        item_df=min(d.item_df for _, d in differences),
        seed_df=min(d.seed_df for _, d in differences),
    )
    return whole, f"{items} items, {f'{seeds} seeds' if seeds > 1 else 'one seed, which says nothing of another'}"


def _average(tables: Sequence[stats.Scores]) -> stats.Scores:
    """The mean of models' scores: over the seeds that all have, or over first seeds where one has no second."""
    if all(table.ndim == 2 for table in tables):
        seeds = min(table.shape[1] for table in tables)
        kept = [table[:, :seeds] for table in tables]
    else:
        kept = [table if table.ndim == 1 else table[:, 0] for table in tables]
    mean: stats.Scores = np.mean(kept, axis=0)
    return mean


def _by_every_rule(claim: Claim, parts: Sequence[_Part], delta: float) -> bool:
    """Whether every rule of scoring that says something gives the difference the same sign."""
    rules = set.intersection(*(set(cell.rules) for part in parts for cell in part.cells))

    def change(rule: str) -> float:
        return sum(
            part.weight * float(np.mean([c.rules[rule][claim.a] - c.rules[rule][claim.b] for c in part.cells]))
            for part in parts
        )

    # Rounded, as scores may be thirds.
    return all(delta * round(change(rule), 12) > 0 for rule in rules)


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.0001 else "below 0.0001"


def cells_of(plan: Plan, store: Store) -> list[Cell]:
    """What is done of a study, for each model and task."""
    by_arm: dict[tuple[str, str], dict[str, list[Planned]]] = {}
    for planned in plan.planned:
        trial = planned.trial
        by_arm.setdefault((trial.model.label, trial.task), {}).setdefault(trial.arm, []).append(planned)
    return [_cell(arms, plan, store) for arms in by_arm.values()]


def _cell(arms: Mapping[str, Sequence[Planned]], plan: Plan, store: Store) -> Cell:
    trial = next(iter(arms.values()))[0].trial
    facts = plan.tasks.get(trial.task)
    tables: dict[str, stats.Scores] = {}
    rules: dict[str, dict[str, float]] = {"strict": {}, "anywhere": {}}
    if facts is not None and not facts.states_format:
        del rules["strict"]
    for arm, trials in arms.items():
        done = [
            (p.trial, e)
            for p in trials
            for e in p.evaluations
            if e.purpose == "target" and store.evaluation(p.trial, e)
        ]
        seeds = [store.rows(trial, evaluation) for trial, evaluation in done]
        if seeds:
            table = np.stack([scores_of(rows) for rows in seeds], axis=1)
            tables[arm] = table if len(seeds) > 1 else table[:, 0]
            for rule, accuracies in rules.items():
                accuracies[arm] = float(np.mean([scores_of(rows, rule) for rows in seeds]))
    generated = any(
        e.kind == "generate" for ps in arms.values() for p in ps for e in p.evaluations if e.purpose == "target"
    )
    return Cell(trial.model, trial.task, tables, rules if generated else {})
