"""From records to results: every number is derived here, from the items' rows, and stored nowhere else."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from finetrap import stats
from finetrap.claims import judge_study
from finetrap.config import REFERENCE_ARMS, Study
from finetrap.looks import LookAt, look_at
from finetrap.plan import missing
from finetrap.recommend import recommend
from finetrap.records import PROTOCOL, Evaluation, ItemRow, Plan, Planned, TaskRecord, Trial
from finetrap.results import (
    ArmCost,
    ArmResult,
    Comparison,
    Failure,
    OutOfDistribution,
    Recommendation,
    Results,
    Retention,
    VersusZeroShot,
)
from finetrap.retention import mean, over_seeds, retention_of, samples_of, scores_of
from finetrap.store import Store
from finetrap.tune import warnings_of, with_tuning
from finetrap.versus import Scored, pairs, pool_of, scored_of, versus_zero_shot

AWAY = "out_of_distribution"
TRUNCATED_WARNING = 0.05
"""Share of truncated answers from which a table says so."""


class _Cell:
    """The done trials of one arm on one model and task, and their rows."""

    def __init__(self, planned: Sequence[Planned], store: Store, task: TaskRecord | None) -> None:
        self.store = store
        self.task = task
        self.planned = [p for p in planned if store.evaluation(p.trial, _target(p)) is not None]
        self.trial = planned[0].trial
        self.rescue_of = planned[0].rescue_of
        trained = {p.trial.seed: store.parent(p.trial) or p.trial for p in self.planned}
        self.trainings = {seed: record for seed, trial in trained.items() if (record := store.training(trial))}
        self.target = [store.rows(p.trial, _target(p)) for p in self.planned]

    @property
    def states_format(self) -> bool:
        """Whether the strict rule says something: not of choices, nor where a format is neither asked nor taught."""
        return self.first[0].strict is not None and (self.task is None or self.task.states_format)

    @property
    def first(self) -> list[ItemRow]:
        """Target rows of the first seed."""
        return self.target[0]

    @property
    def questions(self) -> int:
        """Test items, or where they are groups all that is asked in them."""
        return len(self.first) // samples_of(self.first)

    @property
    def scored(self) -> Scored:
        """Its scores on the target by every rule that says something, items down and seeds across."""
        return scored_of(self.target, states_format=self.states_format)

    def rows_of(self, purpose: str, seed: int = 0) -> dict[str, list[ItemRow]]:
        """By task, the rows of evaluations that are done, of the first seed or the one at that place."""
        planned = self.planned[seed]
        return {
            e.task: self.store.rows(planned.trial, e)
            for e in planned.evaluations
            if e.purpose == purpose and self.store.evaluation(planned.trial, e) is not None
        }


def _target(planned: Planned) -> Evaluation:
    return next(e for e in planned.evaluations if e.purpose == "target")


def build_results(study: Study, plan: Plan, store: Store) -> Results:
    """Derive everything from the records that are there."""
    arms: list[ArmResult] = []
    comparisons: list[Comparison] = []
    recommendations: list[Recommendation] = []
    warnings: list[str] = []
    for model, task in dict.fromkeys((p.trial.model.label, p.trial.task) for p in plan.planned):
        cells: dict[str, list[Planned]] = {}
        for planned in plan.planned:
            if (planned.trial.model.label, planned.trial.task) == (model, task):
                cells.setdefault(planned.trial.arm, []).append(planned)
        done = {arm: cell for arm, ps in cells.items() if (cell := _Cell(ps, store, plan.tasks.get(task))).planned}
        if not done:
            continue
        look = look_at(study, plan, store, model, task)
        warnings += look.warnings(model, task)
        group = _arm_results(study, {arm: cell for arm, cell in done.items() if cell.rescue_of is None}, look)
        rescues = {arm: cell for arm, cell in done.items() if cell.rescue_of is not None or arm in REFERENCE_ARMS}
        group += [arm for arm in _arm_results(study, rescues, look) if arm.rescue_of is not None]
        group = [with_tuning(arm, plan, store) for arm in group]
        scored = {arm: cell.scored for arm, cell in done.items()}
        arms.extend(group)
        warnings += _means_of_seeds(group, scored)
        comparisons.extend(pairs(model, task, scored))
        incomplete = [
            arm
            for arm, ps in cells.items()
            if any(store.evaluation(p.trial, e) is None for p in ps for e in p.evaluations)
        ]
        tuned = [p.trial.arm for p in plan.candidates if (p.trial.model.label, p.trial.task) == (model, task)]
        # Where every candidate failed there is no final trial.
        incomplete += [arm for arm in dict.fromkeys(tuned) if arm not in cells]
        available = plan.tasks[task].test_available if task in plan.tasks else len(done["zero_shot"].scored.table)
        chosen = recommend(
            study,
            group,
            scored,
            aligned=next(iter(done.values())).trial.model.aligned,
            alpha=look.alpha,
            available=available,
            incomplete=incomplete,
        )
        recommendations.append(chosen.model_copy(update={"look": look.number, "alpha": look.alpha}))
    failures = tuple(
        Failure(trial=p.trial.folder, error=failure.error)
        for p in (*plan.candidates, *plan.planned)
        if (failure := store.failure(p.trial)) is not None and missing(p, store)
    )
    records, tuned_by = (
        [r for p in several for e in p.evaluations if (r := store.evaluation(p.trial, e)) is not None]
        for several in (plan.planned, plan.candidates)
    )
    environments = {r.environment for r in (*tuned_by, *records)}
    return Results(
        study={
            "name": study.name,
            "protocol": max((p.trial.protocol for p in plan.planned), default=PROTOCOL),
            "settings": study.model_dump(mode="json"),
            "command": plan.command,
            "finished": max((r.finished for r in records), default=None),
            "dropped_train_rows": plan.dropped_train_rows,
            "trials_planned": len(plan.planned),
            "trials_done": sum(all(store.evaluation(p.trial, e) for e in p.evaluations) for p in plan.planned),
        },
        environment=plan.environment,
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        recommendations=tuple(recommendations),
        claims=judge_study(study, plan, store),
        failures=failures,
        warnings=(*warnings, *_warnings(arms, plan, environments)),
    )


def _means_of_seeds(arms: Sequence[ArmResult], scored: Mapping[str, Scored]) -> list[str]:
    """Of arms whose verdict is about the first seed's checkpoint while another accuracy, the mean, stands beside it."""
    warnings = []
    for arm in arms:
        first = f"{scored[arm.arm].first.mean():.1%}"
        if arm.vs_zero_shot and arm.vs_zero_shot.recipe is None and first != f"{arm.accuracy:.1%}":
            warnings.append(
                f"{arm.arm} on {arm.task}: accuracy is the mean of {len(arm.seeds)} seeds and the verdict is of the "
                f"first ({first}): more seeds or arms would make it a verdict on the recipe."
            )
    return warnings


def _warnings(arms: Sequence[ArmResult], plan: Plan, environments: set[str]) -> list[str]:
    warnings = []
    for name, facts in plan.tasks.items():
        if facts.test_carved:
            warnings.append(
                f"{name}: no test set was given; {facts.test_available} test items were cut from train, "
                f"near-duplicates kept together. Questions of another source may be harder."
            )
        if facts.near_overlap:
            like = "differ little from a train row" + (" or are of one group with it" if facts.grouped else "")
            warnings.append(
                f"{name}: {facts.near_overlap} of {facts.test_available} test items {like}, "
                f"which flatters what was trained."
            )
    for task, count in plan.dropped_train_rows.items():
        if count:
            warnings.append(f"{task}: {count} train rows stand in test; they were left out of train.")
    for arm in arms:
        if arm.truncated_rate > TRUNCATED_WARNING:
            warnings.append(
                f"{arm.arm} on {arm.task}: the limit of new tokens cut off {arm.truncated_rate:.0%} of its answers."
            )
        if arm.skipped_too_long:
            warnings.append(
                f"{arm.arm} on {arm.task}: {arm.skipped_too_long} training examples are longer than the model reads; "
                f"they were left out."
            )
        if arm.diverged_seeds:
            warnings.append(
                f"{arm.arm} on {arm.task}: training diverged with seeds {list(arm.diverged_seeds)}; "
                f"scored at the best validation checkpoint."
            )
        if (recipe := arm.vs_zero_shot.recipe if arm.vs_zero_shot else None) and recipe.seeds_stand_out:
            warnings.append(
                f"{arm.arm} on {arm.task}: its accuracy varies {math.sqrt(recipe.seed_ratio):.1f} times as much "
                f"between seeds as that of all arms together; its interval may be too narrow. More seeds would show."
            )
    warnings += warnings_of(arms)
    if len(environments) > 1:
        warnings.append(
            "the records come from more than one environment (versions or hardware); small differences may be theirs."
        )
    return warnings


def _arm_results(study: Study, cells: dict[str, _Cell], look: LookAt) -> list[ArmResult]:
    scored = {arm: cell.scored for arm, cell in cells.items()}
    versus, pool = versus_zero_shot(scored, margin=study.margin, alpha=look.alpha), pool_of(scored)
    reference = cells.get("zero_shot")
    compared = len([arm for arm in cells if arm not in ("constant", "zero_shot")])
    kept = {arm: _retention(study, cell, reference, compared, look) for arm, cell in cells.items()}
    away = _out_of_distribution(study, cells, look)
    return [_arm_result(cell, versus.get(arm), kept[arm], away[arm], pool) for arm, cell in cells.items()]


def _arm_result(
    cell: _Cell,
    versus: VersusZeroShot | None,
    retention: Retention | None,
    away: Sequence[OutOfDistribution],
    pool: stats.SeedPool | None,
) -> ArmResult:
    trial, every = cell.trial, [row for rows in cell.target for row in rows]
    table = cell.scored.table

    def share(rule: str) -> float:
        return mean([float(scores_of(rows, rule).mean()) for rows in cell.target])

    counts = Counter(row.outcome for row in every if row.outcome is not None)
    trainings = cell.trainings
    return ArmResult(
        arm=trial.arm,
        method=trial.method,
        model=trial.model.label,
        params=trial.model.parameters,
        task=trial.task,
        hyperparameters=trial.settings,
        rescue_of=cell.rescue_of,
        seeds=tuple(p.trial.seed for p in cell.planned),
        n_test=len(table),
        n_questions=cell.questions if len(table) < cell.questions else None,
        sampled=_target(cell.planned[0]).sampled,
        accuracy=float(table.mean()),
        ci95=stats.accuracy_interval(table, pool),
        accuracy_strict=share("strict") if cell.states_format else None,
        accuracy_raw=None if every[0].raw is None else share("raw"),
        format_rate=share("formatted") if cell.states_format else None,
        macro_f1=mean([stats.macro_f1([(r.gold, r.extracted) for r in rows]) for rows in cell.target])
        if cell.task is not None and cell.task.classes
        else None,
        fields=_fields(every),
        rule=cell.task.rule if cell.task is not None else "",
        vs_zero_shot=versus,
        retention=retention,
        out_of_distribution=tuple(away),
        cost=_cost(cell),
        outcomes={outcome: counts[outcome] for outcome in sorted(counts)},
        truncated_rate=float(np.mean([row.truncated for row in every])),
        skipped_too_long=max((record.skipped_too_long for record in trainings.values()), default=0),
        diverged_seeds=tuple(seed for seed, record in trainings.items() if record.outcome == "diverged"),
        shots={str(p.trial.seed): _target(p).shots for p in cell.planned if _target(p).shots},
    )


def _fields(rows: Sequence[ItemRow]) -> dict[str, float]:
    """Of structured answers: by field, the share of the items with it in which it matches."""
    names = sorted({name for row in rows for name in row.parts})
    return {name: mean([row.parts[name] for row in rows if name in row.parts]) for name in names}


def _cost(cell: _Cell) -> ArmCost:
    evaluations = [e for p in cell.planned if (e := cell.store.evaluation(p.trial, _target(p))) is not None]
    trainings = list(cell.trainings.values())
    n = cell.questions
    return ArmCost(
        trainable_params=max((t.trainable_parameters for t in trainings), default=0),
        train_tokens=round(mean([t.train_tokens for t in trainings])),
        train_seconds=mean([t.train_seconds for t in trainings]),
        eval_seconds=mean([e.eval_seconds for e in evaluations]),
        tokens_per_second=mean([t.tokens_per_second for t in trainings]) if trainings else None,
        peak_memory_bytes=max(
            *(e.peak_memory_bytes for e in evaluations), *(t.peak_memory_bytes for t in trainings), 0
        ),
        artifact_bytes=max((t.artifact_bytes for t in trainings), default=0),
        prompt_tokens_per_query=mean([e.prompt_tokens / n for e in evaluations]),
        output_tokens_per_query=mean([e.output_tokens / len(cell.first) for e in evaluations]),
        shipped_bytes=_shipped_bytes(cell.trial, trained=bool(trainings)),
    )


def _shipped_bytes(trial: Trial, *, trained: bool) -> int | None:
    """Bytes of weights that a device needs; a model that was changed is no longer in the file that it came from."""
    if trained or trial.method == "checkpoint":
        return trial.model.parameters * (2 if trial.dtype == "bfloat16" else 4)
    return trial.model.file_bytes


def _retention(study: Study, cell: _Cell, reference: _Cell | None, compared: int, look: LookAt) -> Retention | None:
    if reference is None or cell.trial.method == "constant":
        return None
    before = reference.rows_of("retention")
    if cell.trial.method in ("zero_shot", "few_shot", "prompted"):
        return retention_of(study, before, before, arms=compared, prompts_only=True)
    seeds = [p.trial.seed for p in cell.planned]
    each = {
        seed: kept
        for place, seed in enumerate(seeds)
        if (after := cell.rows_of("retention", place))
        and (
            kept := retention_of(
                study, before, after, arms=compared, prompts_only=False, alpha=look.retention.alpha, seeds=len(seeds)
            )
        )
    }
    return over_seeds(each)


def _out_of_distribution(study: Study, cells: Mapping[str, _Cell], look: LookAt) -> dict[str, list[OutOfDistribution]]:
    """By arm, each task that none was trained for: compared as the target is, in a family of its own."""
    results: dict[str, list[OutOfDistribution]] = {arm: [] for arm in cells}
    for task in study.out_of_distribution:
        rows = {
            arm: seeds
            for arm, cell in cells.items()
            if (seeds := [r for place in range(len(cell.planned)) if (r := cell.rows_of(AWAY, place).get(task))])
        }
        # A format that no answer of any arm has was neither asked nor taught.
        formatted = any(row.formatted for seeds in rows.values() for answers in seeds for row in answers)
        scored = {arm: scored_of(seeds, states_format=formatted) for arm, seeds in rows.items()}
        versus, pool = versus_zero_shot(scored, margin=study.margin, alpha=look.alpha), pool_of(scored)
        for arm, one in scored.items():
            results[arm].append(
                OutOfDistribution(
                    task=task,
                    n_test=len(one.table),
                    accuracy=float(one.table.mean()),
                    ci95=stats.accuracy_interval(one.table, pool),
                    vs_zero_shot=versus.get(arm),
                )
            )
    return results
