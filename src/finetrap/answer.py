"""From records to results: every number is derived here, from the items' rows, and stored nowhere else."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from finetrap import stats
from finetrap.claims import cells_of, judge
from finetrap.config import REFERENCE_ARMS, Study
from finetrap.plan import missing
from finetrap.recommend import recommend
from finetrap.records import PROTOCOL, Evaluation, ItemRow, Plan, Planned, TaskRecord
from finetrap.results import (
    ArmCost,
    ArmResult,
    Artifact,
    Comparison,
    Failure,
    OutOfDistribution,
    Recommendation,
    Results,
    Retention,
    Verdict,
    VersusZeroShot,
)
from finetrap.retention import mean, retention_of, scores_of
from finetrap.store import Store
from finetrap.tune import warnings_of, with_tuning

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

    def rows_of(self, purpose: str) -> dict[str, list[ItemRow]]:
        """By task, the first seed's rows of evaluations that are done."""
        first = self.planned[0]
        return {
            e.task: self.store.rows(first.trial, e)
            for e in first.evaluations
            if e.purpose == purpose and self.store.evaluation(first.trial, e) is not None
        }


def _target(planned: Planned) -> Evaluation:
    return next(e for e in planned.evaluations if e.purpose == "target")


def build_results(study: Study, plan: Plan, store: Store) -> Results:
    """Derive everything from the records that are there."""
    arms: list[ArmResult] = []
    comparisons: list[Comparison] = []
    recommendations: list[Recommendation] = []
    for model, task in dict.fromkeys((p.trial.model.label, p.trial.task) for p in plan.planned):
        cells: dict[str, list[Planned]] = {}
        for planned in plan.planned:
            if (planned.trial.model.label, planned.trial.task) == (model, task):
                cells.setdefault(planned.trial.arm, []).append(planned)
        done = {arm: cell for arm, ps in cells.items() if (cell := _Cell(ps, store, plan.tasks.get(task))).planned}
        if not done:
            continue
        group = _arm_results(study, {arm: cell for arm, cell in done.items() if cell.rescue_of is None})
        rescues = {arm: cell for arm, cell in done.items() if cell.rescue_of is not None or arm in REFERENCE_ARMS}
        group += [arm for arm in _arm_results(study, rescues) if arm.rescue_of is not None]
        group = [with_tuning(arm, plan, store) for arm in group]
        scores = {arm: scores_of(cell.first) for arm, cell in done.items()}
        arms.extend(group)
        comparisons.extend(_comparisons(model, task, scores))
        incomplete = [
            arm
            for arm, ps in cells.items()
            if any(store.evaluation(p.trial, e) is None for p in ps for e in p.evaluations)
        ]
        available = plan.tasks[task].test_available if task in plan.tasks else len(scores["zero_shot"])
        recommendations.append(
            recommend(model, task, group, scores, margin=study.margin, available=available, incomplete=incomplete)
        )
    failures = tuple(
        Failure(trial=p.trial.folder, error=failure.error)
        for p in (*plan.candidates, *plan.planned)
        if (failure := store.failure(p.trial)) is not None and missing(p, store)
    )
    records = [r for p in plan.planned for e in p.evaluations if (r := store.evaluation(p.trial, e)) is not None]
    environments = {r.environment for r in records}
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
        claims=judge(study.claims, cells_of(plan, store)) if study.claims else (),
        failures=failures,
        warnings=tuple(_warnings(arms, plan, environments)),
    )


def _warnings(arms: Sequence[ArmResult], plan: Plan, environments: set[str]) -> list[str]:
    warnings = []
    for name, facts in plan.tasks.items():
        if facts.test_carved:
            warnings.append(
                f"{name}: no test set was given; {facts.test_available} rows were cut from train as one, "
                f"near-duplicates kept together. Questions of another source may be harder."
            )
        if facts.near_overlap:
            warnings.append(
                f"{name}: {facts.near_overlap} of {facts.test_available} test items differ little from a train row, "
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
    warnings += warnings_of(arms)
    if len(environments) > 1:
        warnings.append(
            "the records come from more than one environment (versions or hardware); small differences may be theirs."
        )
    return warnings


def _arm_results(study: Study, cells: dict[str, _Cell]) -> list[ArmResult]:
    versus = _versus_zero_shot(study, cells)
    reference = cells.get("zero_shot")
    compared = len([arm for arm in cells if arm not in ("constant", "zero_shot")])
    return [_arm_result(study, cell, reference, versus.get(arm), compared) for arm, cell in cells.items()]


def _versus_zero_shot(study: Study, cells: dict[str, _Cell]) -> dict[str, VersusZeroShot]:
    """The corrected family of a model and task: every arm but the trivial one against zero-shot."""
    if "zero_shot" not in cells:
        return {}
    zero = cells["zero_shot"]
    family = {arm: cell for arm, cell in cells.items() if arm not in ("constant", "zero_shot")}
    pairs = {arm: stats.discordant(scores_of(cell.first), scores_of(zero.first)) for arm, cell in family.items()}
    p_values = [stats.paired_p(*pairs[arm]) for arm in family]
    adjusted = dict(zip(family, stats.holm(p_values), strict=True))
    results = {}
    for arm, cell in family.items():
        artifact = _artifact(cell.first, zero.first, adjusted[arm], len(family))
        constant = cells.get("constant")
        verdict = _verdict(study, artifact, cell, zero, constant, len(family))
        results[arm] = VersusZeroShot(verdict=verdict, margin=study.margin, artifact=artifact)
    return results


def _artifact(rows: Sequence[ItemRow], zero: Sequence[ItemRow], p_adjusted: float | None, family: int) -> Artifact:
    a, b = scores_of(rows), scores_of(zero)
    only_a, only_b = stats.discordant(a, b)
    p = stats.paired_p(only_a, only_b)
    simultaneous = stats.ALPHA / max(1, family)
    adjusted = stats.tango(only_a, only_b, len(a), alpha=simultaneous)
    if p_adjusted is not None and p_adjusted < stats.ALPHA and adjusted.low <= 0 <= adjusted.high:
        # Holm claims signs, not sizes: where it rejects and the simultaneous interval holds 0, its near end is 0.
        adjusted = stats.Interval(0.0, adjusted.high) if only_a > only_b else stats.Interval(adjusted.low, 0.0)
    return Artifact(
        delta=(only_a - only_b) / len(a),
        ci95=stats.tango(only_a, only_b, len(a), alpha=stats.ALPHA),
        ci95_adjusted=adjusted,
        p=p,
        p_adjusted=p if p_adjusted is None else p_adjusted,
        mde=stats.minimum_detectable_effect(a - b, alpha=simultaneous),
    )


def _verdict(
    study: Study, artifact: Artifact, cell: _Cell, zero: _Cell, constant: _Cell | None, family: int
) -> Verdict:
    arm, reference = scores_of(cell.first), scores_of(zero.first)
    trivial = scores_of(constant.first) if constant is not None else np.zeros_like(reference)
    zero_is_above = stats.beats(reference, trivial)
    if not zero_is_above and not stats.beats(arm, trivial):
        return "floor"
    if artifact.p_adjusted < stats.ALPHA:
        if artifact.delta < 0 and not zero_is_above:
            return "floor"
        if not _same_sign_by_every_rule(cell, zero, artifact.delta):
            return "format_only"
        return "gain" if artifact.delta > 0 else "harm"
    only_a, only_b = stats.discordant(arm, reference)
    within = stats.tango(only_a, only_b, len(arm), alpha=2 * stats.ALPHA / family)
    if -study.margin < within.low and within.high < study.margin:
        return "no_difference"
    return "ceiling" if 1 - reference.mean() < artifact.mde else "undecided"


def _same_sign_by_every_rule(cell: _Cell, zero: _Cell, delta: float) -> bool:
    """A difference in generated answers has to be there strictly and anywhere too, else a format was learned."""
    if cell.first[0].strict is None:
        return True
    rules = ("strict", "anywhere") if cell.states_format else ("anywhere",)
    return all(float((scores_of(cell.first, r) - scores_of(zero.first, r)).sum()) * delta > 0 for r in rules)


def _arm_result(
    study: Study,
    cell: _Cell,
    reference: _Cell | None,
    versus: VersusZeroShot | None,
    compared: int,
) -> ArmResult:
    trial, every = cell.trial, [row for rows in cell.target for row in rows]
    accuracy = float(np.mean([row.correct for row in every]))
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
        n_test=len(cell.first),
        accuracy=accuracy,
        ci95=stats.wilson(accuracy, len(cell.first)),
        accuracy_strict=mean([bool(row.strict) for row in every]) if cell.states_format else None,
        accuracy_raw=None if every[0].raw is None else mean([bool(row.raw) for row in every]),
        format_rate=mean([bool(row.formatted) for row in every]) if cell.states_format else None,
        macro_f1=mean([stats.macro_f1([(r.gold, r.extracted) for r in rows]) for rows in cell.target])
        if cell.task is not None and cell.task.classes
        else None,
        fields=_fields(every),
        rule=cell.task.rule if cell.task is not None else "",
        vs_zero_shot=versus,
        retention=_retention(study, cell, reference, compared),
        out_of_distribution=tuple(_out_of_distribution(cell, reference)),
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
    n = len(cell.first)
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
        output_tokens_per_query=mean([e.output_tokens / n for e in evaluations]),
    )


def _retention(study: Study, cell: _Cell, reference: _Cell | None, compared: int) -> Retention | None:
    if reference is None or cell.trial.method == "constant":
        return None
    before = reference.rows_of("retention")
    prompts_only = cell.trial.method in ("zero_shot", "few_shot", "prompted")
    after = before if prompts_only else cell.rows_of("retention")
    return retention_of(study, before, after, arms=compared, prompts_only=prompts_only)


def _out_of_distribution(cell: _Cell, reference: _Cell | None) -> list[OutOfDistribution]:
    before = reference.rows_of("out_of_distribution") if reference is not None and reference is not cell else {}
    results = []
    for name, rows in cell.rows_of("out_of_distribution").items():
        accuracy = float(scores_of(rows).mean())
        results.append(
            OutOfDistribution(
                task=name,
                n_test=len(rows),
                accuracy=accuracy,
                ci95=stats.wilson(accuracy, len(rows)),
                vs_zero_shot=_artifact(rows, before[name], None, 1) if name in before else None,
            )
        )
    return results


def _comparisons(model: str, task: str, scores: dict[str, stats.Scores]) -> list[Comparison]:
    """Pairs of arms other than the references, exploratory."""
    names = [arm for arm in scores if arm not in ("constant", "zero_shot")]
    comparisons = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            only_a, only_b = stats.discordant(scores[a], scores[b])
            p = stats.paired_p(only_a, only_b)
            sign: Literal["gain", "harm"] = "gain" if only_a > only_b else "harm"
            comparisons.append(
                Comparison(
                    model=model,
                    task=task,
                    a=a,
                    b=b,
                    delta=(only_a - only_b) / len(scores[a]),
                    ci95=stats.tango(only_a, only_b, len(scores[a])),
                    p=p,
                    p_adjusted=None,
                    verdict=sign if p < stats.ALPHA else "undecided",
                )
            )
    return comparisons
