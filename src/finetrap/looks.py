"""Looks: a study that is changed after its answer was read tests again, and its level has to last for that."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetrap import stats
from finetrap.claim_spec import Claim
from finetrap.config import Study
from finetrap.records import Answered, ModelRecord, Plan, digest
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
    of_retention: "LookAt | None" = None
    """The later look that its retention is, where items of retention alone were changed."""

    @property
    def retention(self) -> "LookAt":
        """Which answer about retention this is."""
        return self.of_retention or self

    def warnings(self, model: str, task: str) -> list[str]:
        """What a reader has to know of it; nothing of a first look."""
        warnings = self._said(f"{task} with {model}: this", "items, seeds or settings")
        if self.of_retention is not None:
            said = f"{task} with {model}: what is said of retention"
            warnings += self.of_retention._said(said, "its items")
        if self.left_out:
            warnings.append(
                f"{task} with {model}: an earlier answer was about {', '.join(self.left_out)} too. Corrected for the "
                f"arms that are left alone, what is shown here is worth less than it says; report all that were tried."
            )
        return warnings

    def _said(self, what: str, changed: str) -> list[str]:
        if self.exploratory:
            return [
                f"{what} is answer {self.number}: {changed} were changed after one was read, which had spent the 5%. "
                f"Its verdicts are exploratory. A study that may grow says `looks: many` before its first answer."
            ]
        if self.number > 1:
            return [
                f"{what} is look {self.number}, tested at {100 * self.alpha:.2g}%, so that all looks together stay "
                f"within 5%."
            ]
        return []


def look_at(study: Study, plan: Plan, store: Store, model: str, task: str) -> LookAt:
    """The look that an answer about a model and task is by now."""
    asked = _asked(study, plan, store, model, task)
    looks = _looks(store, model, task)
    target, retention = _place(looks, asked.evaluated, {}), _place(looks, asked.evaluated, asked.retention)
    left_out = tuple(dict.fromkeys(arm for look in looks for arm in look.evaluated if arm not in asked.evaluated))
    look = _look(study, looks, target)._replace(left_out=left_out)
    return look if target == retention else look._replace(of_retention=_look(study, looks, retention))


def least_level(study: Study, plan: Plan, store: Store) -> float:
    """The level of what is said over models and tasks: that of the one which was looked at most."""
    return min((look_at(study, plan, store, *one).alpha for one in _cells(plan)), default=stats.ALPHA)


def stated_late(study: Study, plan: Plan, store: Store) -> set[str]:
    """Ids of the claims that an answer was given without, or about fewer models and tasks than they are about by now.

    What answers stated before claims were logged is not known, and not held against a claim.
    """
    first: dict[tuple[str, str], tuple[str, ...]] = {}
    for answered in store.answers():
        if answered.claims is not None:
            first.setdefault((answered.model, answered.task), answered.claims)
    return {
        claim.id
        for claim in study.claims
        if any(_key(claim, plan) not in first[cell] for cell in _about(claim, plan) if cell in first)
    }


def log_answers(study: Study, plan: Plan, store: Store) -> None:
    """Keep what the answers about to be given are of, where it is new: of each model and task with all targets done."""
    for model, task in _cells(plan):
        mine = [p for p in plan.planned if (p.trial.model.label, p.trial.task) == (model, task)]
        targets = [(p.trial, e) for p in mine for e in p.evaluations if e.purpose == "target"]
        if any(store.evaluation(trial, evaluation) is None for trial, evaluation in targets):
            continue
        asked = _asked(study, plan, store, model, task)
        looks = _looks(store, model, task)
        place = _place(looks, asked.evaluated, asked.retention)
        if place == len(looks) or _joined(looks[place], asked) != looks[place]:
            store.log_answer(asked.model_copy(update={"alpha": _look(study, looks, place).alpha}))


def _looks(store: Store, model: str, task: str) -> list[Answered]:
    """One of each look: an answer that only adds arms or retention tasks belongs to the look that it adds to."""
    looks: list[Answered] = []
    for answered in store.answers():
        if (answered.model, answered.task) == (model, task):
            place = _place(looks, answered.evaluated, answered.retention)
            looks[place : place + 1] = [_joined(looks[place], answered) if place < len(looks) else answered]
    return looks


def _joined(look: Answered, added: Answered) -> Answered:
    """A look with what it lacks."""
    return look.model_copy(
        update={
            "evaluated": {**look.evaluated, **added.evaluated},
            "retention": {**look.retention, **added.retention},
            "claims": added.claims if look.claims is None else look.claims,
        }
    )


def _place(looks: Sequence[Answered], evaluated: Mapping[str, str], retention: Mapping[str, str]) -> int:
    """Of the first look in which nothing was asked otherwise, or of the next one."""

    def same(then: Mapping[str, str], now: Mapping[str, str]) -> bool:
        return all(now.get(name, key) == key for name, key in then.items())

    found = (i for i, look in enumerate(looks) if same(look.evaluated, evaluated) and same(look.retention, retention))
    return next(found, len(looks))


def _look(study: Study, looks: Sequence[Answered], place: int) -> LookAt:
    if place < len(looks):
        return LookAt(place + 1, looks[place].alpha, _spent(looks[: place + 1]) > stats.ALPHA)
    alpha = round(stats.look_alpha(place + 1), 12) if study.looks == "many" else stats.ALPHA
    return LookAt(place + 1, alpha, _spent(looks) + alpha > stats.ALPHA)


def _spent(looks: Sequence[Answered]) -> float:
    # Rounded, as the levels of the schedule add up to 5% from below.
    return round(sum(look.alpha for look in looks), 12)


def _asked(study: Study, plan: Plan, store: Store, model: str, task: str) -> Answered:
    """What an answer would be of; its level is left open."""
    target: dict[str, list[str]] = {}
    retention: dict[str, set[str]] = {}
    for trial, evaluations in ((p.trial, p.evaluations) for p in plan.planned):
        if (trial.model.label, trial.task) == (model, task):
            for e in evaluations:
                if e.purpose == "target":
                    target.setdefault(trial.arm, []).append(e.key(trial.training_key))
                elif e.purpose == "retention" and store.evaluation(trial, e) is not None:
                    retention.setdefault(e.task, set()).add(e.key(""))  # of any arm: only what is asked
    return Answered(
        time=now(),
        model=model,
        task=task,
        evaluated={arm: digest(sorted(keys)) for arm, keys in target.items()},
        alpha=stats.ALPHA,
        retention={name: digest(sorted(keys)) for name, keys in retention.items()},
        claims=tuple(_key(claim, plan) for claim in study.claims),
    )


def _cells(plan: Plan) -> dict[tuple[str, str], ModelRecord]:
    """The models and tasks of a plan, by label and name."""
    return {(p.trial.model.label, p.trial.task): p.trial.model for p in plan.planned}


def _about(claim: Claim, plan: Plan) -> list[tuple[str, str]]:
    """The models and tasks that a claim is about."""
    return [
        (label, task)
        for (label, task), model in _cells(plan).items()
        if claim.models.holds(model.name, model.parameters, aligned=model.aligned)
        and (not claim.tasks or task in claim.tasks)
    ]


def _key(claim: Claim, plan: Plan) -> str:
    """Digest of a claim, whatever its words, with the models and tasks that it is about."""
    return digest([claim.model_dump(mode="json", exclude={"id", "says"}), sorted(_about(claim, plan))])
