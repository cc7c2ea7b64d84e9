"""Fair tuning: which setting to try next, and which one to take, decided by validation items alone.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) in which every rung trains from the untouched model
with a warmup and decay of its own: a rate read off the middle of a longer schedule would be another rate. Every method
that trains gets the same rungs, and so the same number of candidates, rows and tokens. Nothing here has a state: what
comes next follows from the records, so that a search that was stopped goes on by itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from finetrap.config import Study, Tune
from finetrap.method import Arm, Setting, build, choices, is_trained, learning_rate_prior, tunable
from finetrap.models import Source
from finetrap.plan import TaskItems, evaluation_of, plan, trial_of
from finetrap.records import TUNING_SEED, Plan, Planned
from finetrap.results import ArmResult, TuningCandidate
from finetrap.retention import scores_of
from finetrap.store import Store

STEP = 10**0.5
"""Between the rates of a grid, and by how much it is widened."""


class Rung(NamedTuple):
    """A round of the search."""

    share: float
    """Of the training rows that each candidate trains on."""
    start: int
    """Candidates at its beginning: of the grid, or the best of the rung before."""
    follow: int
    """Candidates after these, one by one beside the best so far."""


RUNGS: dict[Tune, tuple[Rung, ...]] = {
    "none": (),
    "quick": (Rung(1 / 2, 3, 1),),
    "standard": (Rung(1 / 4, 3, 2), Rung(1 / 2, 2, 1)),
    "thorough": (Rung(1 / 4, 5, 2), Rung(1 / 2, 3, 1), Rung(1, 2, 1)),
}
"""They cost 2, 2.75 and 6.75 trainings on all rows."""


class Tried(NamedTuple):
    """What came of a candidate."""

    value: Setting
    rung: int
    accuracy: float = 0.0
    """On the validation items."""
    loss: float | None = None
    """On them, in nats a completion token."""
    items: int = 1
    diverged: bool = False
    failed: bool = False


def ranked(tried: Sequence[Tried]) -> list[Tried]:
    """Candidates from best to worst, without those that failed.

    Those within one standard error of the highest accuracy count as equal (Hastie, Tibshirani and Friedman 2009,
    section 7.10) and the lower validation loss decides. What diverged comes last. The error is that of a proportion
    with one success and one failure more: without them, one right answer would always count as more than none.
    """
    whole = [t for t in tried if not t.failed]
    if not whole:
        return []
    top = max((t for t in whole), key=lambda t: (not t.diverged, t.accuracy))
    share = (top.accuracy * top.items + 1) / (top.items + 2)
    tie = top.accuracy - math.sqrt(share * (1 - share) / top.items)

    def place(candidate: Tried) -> tuple[bool, float, float]:
        loss = math.inf if candidate.loss is None else candidate.loss
        tied = candidate.accuracy >= tie
        return candidate.diverged, -math.inf if tied else -candidate.accuracy, loss

    return sorted(whole, key=place)


@dataclass(frozen=True)
class Search:
    """How the setting of an arm is looked for."""

    setting: str
    grid: tuple[Setting, ...]
    """What the first rung begins with."""
    rungs: tuple[Rung, ...]

    def following(self, tried: Sequence[Tried]) -> tuple[Setting, int] | None:
        """The next value and its rung; None where the search is over."""
        for index, rung in enumerate(self.rungs):
            here = [t for t in tried if t.rung == index]
            before = ranked([t for t in tried if t.rung == index - 1])
            begins = self.grid if index == 0 else tuple(t.value for t in before)
            left = [value for value in begins[: rung.start] if value not in {t.value for t in here}]
            if left:
                return left[0], index
            if len(here) < rung.start + rung.follow:
                best = ranked(here)
                return (_beside(float(best[0].value), tried), index) if best else None
        return None

    def chosen(self, tried: Sequence[Tried]) -> Setting | None:
        """The best value of the last rung; None where all of it failed."""
        best = ranked([t for t in tried if t.rung == len(self.rungs) - 1])
        return best[0].value if best else None


def _beside(best: float, tried: Sequence[Tried]) -> float:
    """The next rate: a step beyond the best where that lies on the edge, else halfway to its better neighbour.

    A method whose prior fits spends on a finer grid what another spends on a wider one.
    """
    losses = {float(t.value): math.inf if t.loss is None or t.failed else t.loss for t in tried}
    above, below = [r for r in losses if r > best], [r for r in losses if r < best]
    if not above:
        return _rounded(best * STEP)
    if not below:
        return _rounded(best / STEP)
    neighbour = min(min(above), max(below), key=lambda rate: losses[rate])
    return _rounded(math.sqrt(best * neighbour))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def on_edge(chosen: Setting, tried: Sequence[Setting]) -> bool:
    """Whether a chosen rate is the highest or the lowest that was tried."""
    return chosen in (min(tried, key=float), max(tried, key=float))


def search_of(arm: Arm, tune: Tune, *, width: int, fits: Callable[[int], bool] = lambda shots: True) -> Search | None:
    """How an arm is tuned on a model of hidden size `width`, into whose context so many shots fit; None if not."""
    if arm.tunes is None or tune == "none":
        return None
    rungs = RUNGS[tune]
    if is_trained(arm.method):
        prior, middle = learning_rate_prior(arm.method, width), (rungs[0].start - 1) / 2
        grid = tuple(_rounded(prior * STEP ** (i - middle)) for i in range(rungs[0].start))
        return Search(arm.tunes, grid, rungs)
    values = tuple(v for v in choices(arm.method) if arm.tunes != "shots" or fits(int(v)))
    return Search(arm.tunes, values, (Rung(1, len(values), 0),)) if values else None


class Tuning(NamedTuple):
    """How far the tuning of an arm on a model and task is."""

    candidates: tuple[Planned, ...]
    """What was tried, and what will be if no candidate is better than another."""
    following: Planned | None
    """What to try now; None where the search is over."""
    arm: Arm | None
    """With the settings to use, provisional while the search goes on; None where every candidate failed."""


def tuning_of(
    study: Study, source: Source, items: TaskItems, arm: Arm, search: Search, *, dtype: str, store: Store
) -> Tuning:
    """How far a search is, by the records."""
    make = partial(_candidate, study, source, items, arm, search, dtype=dtype)
    tried: list[Tried] = []
    candidates: list[Planned] = []
    following: Planned | None = None
    while (step := search.following(tried)) is not None:
        planned = make(*step)
        outcome = _outcome(planned, *step, store) if following is None else None
        if outcome is None and following is None:
            following = planned
        candidates.append(planned)
        tried.append(outcome or Tried(*step))
    value = search.grid[len(search.grid) // 2] if following is not None else search.chosen(tried)
    settled = None if value is None else replace(arm, settings={**arm.settings, search.setting: value})
    return Tuning(tuple(candidates), following, settled)


def plan_with_tuning(
    study: Study,
    sources: Sequence[Source],
    tasks: dict[str, TaskItems],
    search: Callable[[Source, TaskItems, Arm], Search | None],
    *,
    dtype: str,
    store: Store,
) -> tuple[list[Planned], list[Planned]]:
    """The candidates of every arm that `search` looks for, and every final trial with what they have chosen by now."""
    candidates: list[Planned] = []

    def settled(source: Source, items: TaskItems, arm: Arm) -> Arm | None:
        found = search(source, items, arm)
        if found is None:
            return arm
        tuning = tuning_of(study, source, items, arm, found, dtype=dtype, store=store)
        candidates.extend(tuning.candidates)
        return tuning.arm

    return candidates, plan(study, sources, tasks, dtype=dtype, settled=settled)


def _candidate(
    study: Study, source: Source, items: TaskItems, arm: Arm, search: Search, value: Setting, rung: int, *, dtype: str
) -> Planned:
    rows = None
    if is_trained(arm.method):
        rows = max(1, round(search.rungs[rung].share * len(items.splits.train)))
    seen = items.first(rows)
    settings = {**arm.settings, search.setting: value}
    method = build(arm.method, settings)
    trial = trial_of(source, seen, replace(arm, settings=settings), method, TUNING_SEED, dtype)
    task, shots = study.task(items.task.name), seen.shots(method, TUNING_SEED)
    asked = evaluation_of(source, task, "validation", items.splits.validation, shots)
    return Planned(trial=trial, evaluations=(asked,), rung=rung, train_rows=rows)


def _outcome(planned: Planned, value: Setting, rung: int, store: Store) -> Tried | None:
    """What came of a candidate, if it is done or failed."""
    trial, (asked,) = planned.trial, planned.evaluations
    record = store.evaluation(trial, asked)
    if record is None:
        return Tried(value, rung, failed=True) if store.failure(trial) is not None else None
    training = store.training(trial)
    scores = scores_of(store.rows(trial, asked))
    return Tried(
        value,
        rung,
        accuracy=float(scores.mean()),
        loss=record.validation_loss if training is None else training.validation_loss,
        items=len(scores),
        diverged=training is not None and training.outcome == "diverged",
    )


def with_tuning(arm: ArmResult, plan: Plan, store: Store) -> ArmResult:
    """The result of an arm with what its tuning tried and what that cost, from the records.

    An arm that goes on from another, or was made to rescue it, cost the search for that one's setting too.
    """
    tried = _tried_of(arm.arm, arm, plan, store)
    last = max((candidate.rung for candidate in tried), default=0)
    shown = [
        candidate.model_copy(
            update={"chosen": candidate.rung == last and candidate.value == arm.hyperparameters[candidate.setting]}
        )
        for candidate in tried
    ]
    parent = arm.rescue_of or arm.hyperparameters.get("of")
    owed = tried if parent is None or tried else _tried_of(str(parent), arm, plan, store)
    if not owed:
        return arm
    cost = arm.cost.model_copy(
        update={
            "tune_seconds": sum(candidate.seconds for candidate in owed),
            "tune_tokens": sum(candidate.tokens for candidate in owed),
            "tune_answer_tokens": sum(candidate.answer_tokens for candidate in owed),
        }
    )
    return arm.model_copy(update={"tuning": tuple(shown), "cost": cost})


def _tried_of(name: str, beside: ArmResult, plan: Plan, store: Store) -> list[TuningCandidate]:
    """What was tried of the arm called `name`, on the model and task of another."""
    found = []
    for planned in plan.candidates:
        trial = planned.trial
        if (trial.model.label, trial.task, trial.arm) == (beside.model, beside.task, name):
            found += _tried(planned, store)
    return found


def _tried(planned: Planned, store: Store) -> list[TuningCandidate]:
    """A candidate as results show it; none where it is still to be tried."""
    trial, (asked,), setting = planned.trial, planned.evaluations, tunable(planned.trial.method)
    if setting is None or planned.rung is None:
        return []
    value = trial.settings[setting]
    outcome = _outcome(planned, value, planned.rung, store)
    if outcome is None:
        return []
    training, record = store.training(trial), store.evaluation(trial, asked)
    return [
        TuningCandidate(
            rung=planned.rung,
            setting=setting,
            value=value,
            train_rows=planned.train_rows,
            n=asked.n,
            accuracy=None if outcome.failed else outcome.accuracy,
            validation_loss=outcome.loss,
            seconds=(training.train_seconds if training else 0.0) + (record.eval_seconds if record else 0.0),
            tokens=training.train_tokens if training else 0,
            answer_tokens=record.prompt_tokens + record.output_tokens if record else 0,
            diverged=outcome.diverged,
        )
    ]


def warnings_of(arms: Sequence[ArmResult]) -> list[str]:
    """What a reader has to know of the tuning: a chosen rate beyond which a better one may lie."""
    warnings = []
    for arm in arms:
        rates = [candidate.value for candidate in arm.tuning if candidate.setting == "learning_rate"]
        chosen = next((candidate.value for candidate in arm.tuning if candidate.chosen), None)
        if chosen is not None and chosen in rates and on_edge(chosen, rates):
            end = "highest" if chosen == max(rates, key=float) else "lowest"
            warnings.append(
                f"{arm.arm} on {arm.task}: its learning rate {chosen:g} is the {end} that was tried; "
                f"a larger --size searches further."
            )
    return warnings
