"""Looks: a study that is changed after its answer was read tests again, and its level has to last for that."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetrap import stats
from finetrap.config import Study
from finetrap.records import Answered, Plan, digest
from finetrap.store import Store, now


class LookAt(NamedTuple):
    """Which answer to the same question this is."""

    number: int
    """From 1."""
    alpha: float
    """Level of its tests."""
    exploratory: bool
    """Earlier looks left less than that of the 5%."""
    left_out: tuple[str, ...] = ()
    """Arms that an earlier answer was about, and this one is not."""

    def warnings(self, model: str, task: str) -> list[str]:
        """What a reader has to know of it; nothing of a first look."""
        warnings = []
        if self.exploratory:
            warnings.append(
                f"{task} with {model}: this is answer {self.number}: items, seeds or settings were changed after one "
                f"was read, which had spent the 5%. Its verdicts are exploratory. A study that may grow says "
                f"`looks: many` before its first answer."
            )
        elif self.number > 1:
            warnings.append(
                f"{task} with {model}: this is look {self.number}, tested at {100 * self.alpha:.2g}%, so that all "
                f"looks together stay within 5%."
            )
        if self.left_out:
            warnings.append(
                f"{task} with {model}: an earlier answer was about {', '.join(self.left_out)} too. Corrected for the "
                f"arms that are left alone, what is shown here is worth less than it says; report all that were tried."
            )
        return warnings


def look_at(study: Study, plan: Plan, store: Store, model: str, task: str) -> LookAt:
    """The look that an answer about a model and task is by now."""
    before = [answered for answered in store.answers() if (answered.model, answered.task) == (model, task)]
    return _look(study, before, _evaluated(plan, model, task))[0]


def least_level(study: Study, plan: Plan, store: Store) -> float:
    """The level of what is said over models and tasks: that of the one which was looked at most."""
    asked = dict.fromkeys((p.trial.model.label, p.trial.task) for p in plan.planned)
    return min((look_at(study, plan, store, *one).alpha for one in asked), default=stats.ALPHA)


def log_answers(study: Study, plan: Plan, store: Store) -> None:
    """Count the answers that are about to be given: of each model and task all of whose target evaluations are done."""
    for model, task in dict.fromkeys((p.trial.model.label, p.trial.task) for p in plan.planned):
        mine = [p for p in plan.planned if (p.trial.model.label, p.trial.task) == (model, task)]
        targets = [(p.trial, e) for p in mine for e in p.evaluations if e.purpose == "target"]
        if any(store.evaluation(trial, evaluation) is None for trial, evaluation in targets):
            continue
        before = [answered for answered in store.answers() if (answered.model, answered.task) == (model, task)]
        evaluated = _evaluated(plan, model, task)
        look, same = _look(study, before, evaluated)
        if not same:
            store.log_answer(Answered(time=now(), model=model, task=task, evaluated=evaluated, alpha=look.alpha))


def _look(study: Study, before: Sequence[Answered], evaluated: Mapping[str, str]) -> tuple[LookAt, bool]:
    """The look, and whether it was given before: an arm that is added is none, one that is evaluated anew is."""
    left_out = tuple(dict.fromkeys(arm for answered in before for arm in answered.evaluated if arm not in evaluated))
    for index, answered in enumerate(before):
        if all(evaluated[arm] == key for arm, key in answered.evaluated.items() if arm in evaluated):
            return LookAt(index + 1, answered.alpha, _spent(before[: index + 1]) > stats.ALPHA, left_out), True
    number = len(before) + 1
    alpha = round(stats.look_alpha(number), 12) if study.looks == "many" else stats.ALPHA
    return LookAt(number, alpha, _spent(before) + alpha > stats.ALPHA, left_out), False


def _spent(looks: Sequence[Answered]) -> float:
    # Rounded, as the levels of the schedule add up to 5% from below.
    return round(sum(look.alpha for look in looks), 12)


def _evaluated(plan: Plan, model: str, task: str) -> dict[str, str]:
    keys: dict[str, list[str]] = {}
    for planned in plan.planned:
        if (planned.trial.model.label, planned.trial.task) == (model, task):
            targets = [e.key(planned.trial.training_key) for e in planned.evaluations if e.purpose == "target"]
            keys.setdefault(planned.trial.arm, []).extend(targets)
    return {arm: digest(sorted(found)) for arm, found in keys.items()}
