"""Rescue before rejection: an arm that does harm is tried again in three ways, each an arm of its own.

Half-way back to the untouched model needs no training (WiSE-FT, arXiv:2109.01903); a lower rate separates the method
from its rate; replay of general text (arXiv:1811.11682) answers forgetting. They are a second stage, chosen after
looking at the first one's verdicts: a family of its own, exploratory (docs/decisions/0013).
"""

from collections.abc import Sequence
from typing import Literal

from finetrap.config import Study
from finetrap.method import Arm, complete_settings, is_trained
from finetrap.records import Planned
from finetrap.results import ArmResult, Rescue, Retention

Way = Literal["half", "lower", "replay"]

HALF = 0.5
LOWER = 1 / 10
"""Of the arm's rate: about what lies between the usual rates of adapters and of full fine-tuning."""
REPLAY = 0.1


def does_harm(arm: ArmResult) -> tuple[str, ...]:
    """Where an arm is shown to do harm: on the `task`, to `retention`, on both, or nowhere."""
    task = arm.vs_zero_shot is not None and arm.vs_zero_shot.verdict == "harm"
    general = arm.retention is not None and arm.retention.verdict == "harm"
    return (*(("task",) if task else ()), *(("retention",) if general else ()))


def rescue_arms(arms: Sequence[ArmResult], planned: Sequence[Planned]) -> dict[str, list[Arm]]:
    """By arm of one model and task that does harm: the arms that may remove it.

    Only of what was trained, by the study or as a checkpoint before it. An arm of the study that is called so already
    stays what it is.
    """
    taken = {p.trial.arm for p in planned}
    trials = {p.trial.arm: p.trial for p in planned}
    rescues = {}
    for arm in arms:
        if arm.rescue_of is None and does_harm(arm):
            trial = trials[arm.arm]
            tried = [_half(arm.arm)] if trial.method == "checkpoint" else []
            if is_trained(trial.method):
                lower = {**trial.settings, "learning_rate": float(trial.settings["learning_rate"]) * LOWER}
                replay = {**trial.settings, "replay": REPLAY}
                # What was tuned takes its best checkpoint: these do as well, and are not tuned again.
                tunes = "learning_rate" if trial.best_checkpoint else None
                tried = [
                    _half(arm.arm),
                    Arm(f"{arm.arm}+lower", trial.method, lower, tunes=tunes),
                    Arm(f"{arm.arm}+replay", trial.method, replay, tunes=tunes),
                ]
            rescues[arm.arm] = [a for a in tried if a.name not in taken and a.settings != trial.settings]
    return {of: tried for of, tried in rescues.items() if tried}


def _half(of: str) -> Arm:
    return Arm(f"{of}+half", "interpolated", complete_settings("interpolated", {"of": of, "weight": HALF}))


def rescues_of(arms: Sequence[ArmResult], study: Study) -> tuple[Rescue, ...]:
    """What came of the rescue arms of one model and task."""
    by_name = {arm.arm: arm for arm in arms}
    found = []
    for arm in arms:
        if arm.rescue_of is not None:
            rescued = by_name[arm.rescue_of]
            removes = _removes(arm, rescued, study)
            way = _way(arm, rescued)
            sentence = f"'{arm.arm}' ({_said_of(way, arm, rescued)}) {_SAID[removes]} '{rescued.arm}': {_now(arm)}."
            found.append(Rescue(arm=arm.arm, of=rescued.arm, way=way, removes=removes, sentence=sentence))
    return tuple(found)


_SAID = {True: "removes the harm of", False: "does harm as well as", None: "may remove the harm of"}


def _removes(arm: ArmResult, rescued: ArmResult, study: Study) -> bool | None:
    """Whether the harm is gone: True where what was shown of the rescued arm is ruled out, False where some is there.

    Against the untouched model and not against the rescued arm, which was chosen for being low on these very items and
    would be expected higher on others.
    """
    if does_harm(arm):
        return False
    ruled_out = {
        "task": arm.vs_zero_shot is not None
        and (
            arm.vs_zero_shot.verdict in ("gain", "no_difference")
            or arm.vs_zero_shot.decisive.ci95_adjusted[0] > -study.margin
        ),
        "retention": arm.retention is not None
        and arm.retention.verdict == "no_difference"
        and _keeps_the_chat_format(arm.retention, rescued.retention, tolerance=study.forgetting_tolerance),
    }
    return True if all(ruled_out[where] for where in does_harm(rescued)) else None


def _keeps_the_chat_format(after: Retention, rescued: Retention | None, *, tolerance: float) -> bool:
    """Whether its loss is ruled out where there was one: no verdict on retention rules it out by itself."""
    lost = None if rescued is None else rescued.chat_format_delta
    if lost is None or lost >= -tolerance:
        return True
    return after.chat_format_ci95 is not None and after.chat_format_ci95[0] > -tolerance


def _way(arm: ArmResult, rescued: ArmResult) -> Way:
    if arm.method == "interpolated":
        return "half"
    return "lower" if arm.hyperparameters["learning_rate"] != rescued.hyperparameters["learning_rate"] else "replay"


def _said_of(way: Way, arm: ArmResult, rescued: ArmResult) -> str:
    if way == "half":
        return f"{float(arm.hyperparameters['weight']):.0%} of the way from the untouched model, nothing trained"
    if way == "lower":
        rates = (float(one.hyperparameters["learning_rate"]) for one in (arm, rescued))
        return "learning rate {:.2g} in place of {:.2g}".format(*rates)
    return f"{float(arm.hyperparameters['replay']):.0%} of the rows general text"


def _now(arm: ArmResult) -> str:
    versus, retention = arm.vs_zero_shot, arm.retention
    parts = []
    if versus is not None:
        low, high = (100 * end for end in versus.decisive.ci95_adjusted)
        parts.append(f"{100 * versus.decisive.delta:+.1f} points on the task ({low:+.1f} to {high:+.1f})")
    if retention is not None and retention.delta is not None:
        parts.append(f"{100 * retention.delta:+.1f} on general tasks")
    if retention is not None and retention.bits_per_byte_delta is not None:
        parts.append(f"{retention.bits_per_byte_delta:+.2f} bits a byte of general text")
    return ", ".join(parts) or "nothing else is measured"


def conclusions(rescues: Sequence[Rescue], arms: Sequence[ArmResult]) -> list[str]:
    """A sentence for each arm that was to be rescued: whether its method did the harm, or its rate."""
    by_name = {arm.arm: arm for arm in arms}
    lines = []
    for of in dict.fromkeys(rescue.of for rescue in rescues):
        tried = [rescue for rescue in rescues if rescue.of == of]
        lower = next((rescue.removes for rescue in tried if rescue.way == "lower"), None)
        remove = [rescue.arm for rescue in tried if rescue.removes]
        if lower:
            why = "the learning rate did the harm, not the method"
        elif lower is False:
            why = "a lower learning rate does harm too"
        else:
            why = "whether its rate or its method did the harm is undecided"
        who = f"{' and '.join(map(repr, remove))} removes" if remove else "No rescue is shown to remove"
        lines.append(f"{who} the harm of '{of}' ({by_name[of].method}): {why}. Exploratory: tried after looking.")
    return lines
