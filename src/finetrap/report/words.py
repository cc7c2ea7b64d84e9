"""Verdicts in words: what is shown, how sure it is, and what would decide. Computes no statistic."""

from typing import Literal

from finetrap.results import ArmResult, Artifact, ClaimResult, Recipe, Recommendation, Rescue, VersusZeroShot

WORDS = {
    "gain": "gain",
    "harm": "HARM",
    "no_difference": "no difference",
    "format_only": "format only",
    "undecided": "undecided",
    "floor": "floor",
    "ceiling": "ceiling",
}


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f}%"


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:{form}}"


def points(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{100 * value:+.1f}"


def ends(interval: tuple[float, float]) -> str:
    """An interval of a difference in points."""
    return f"{points(interval[0])} to {points(interval[1])}"


def what_next(recommendation: Recommendation) -> tuple[str, ...]:
    """What would change the answer, and what others found where it is undecided, in lines."""
    advice = recommendation.prior_advice
    return (f"Next: {recommendation.next_step}", *((advice,) if advice else ()))


def estimand(versus: VersusZeroShot) -> tuple[Literal["recipe", "artifact"], Recipe | Artifact]:
    """What the verdict is about: the way of adapting over seeds where that is known, else the first checkpoint."""
    return "artifact" if versus.recipe is None else "recipe", versus.decisive


def in_words(arm: ArmResult) -> str | None:
    """The verdict on an arm in one or two sentences; None for what is not compared."""
    versus = arm.vs_zero_shot
    if versus is None:
        return None
    kind, found = estimand(versus)
    about = f"over {len(arm.seeds)} seeds" if kind == "recipe" else f"this checkpoint, seed {arm.seeds[0]}"
    measured = f"{points(found.delta)} points ({ends(found.ci95_adjusted)}; {about})"
    sure = "p below 0.0001" if found.p_adjusted < 1e-4 else f"p {found.p_adjusted:.2g}"
    corrected = f"{sure}, corrected for all arms"
    said = {
        "gain": f"{measured} against the untouched model, {corrected}.",
        "harm": f"{measured} against the untouched model, {corrected}.",
        "no_difference": f"{measured}; a difference of {100 * versus.margin:g} points or more is ruled out.",
        "format_only": f"{measured}, but not by every way of reading an answer: "
        f"{'the format was learned' if found.delta > 0 else 'the form of its answers changed'}, and no more is shown.",
        "undecided": f"{measured}; neither a difference is shown nor is one ruled out. {what_would_decide(versus)}",
        "floor": f"{measured}; neither it nor the untouched model is above the trivial answer, so that a difference "
        f"between them means nothing.",
        "ceiling": f"{measured}; the untouched model leaves less to gain than the {100 * found.mde:.1f} points that "
        f"this study would find four times in five.",
    }[versus.verdict]
    sign = " The sign is shown, the size is not." if found.sign_only else ""
    return f"{arm.arm}, {WORDS[versus.verdict]}: {said}{sign}"


def what_would_decide(versus: VersusZeroShot) -> str:
    """What this study could have found; items or seeds to show the difference, or that it is within the margin."""
    found = versus.decisive
    could = f"An effect of {100 * found.mde:.1f} points would be found four times in five."
    if isinstance(found, Recipe):
        show = _ways(found.items_needed, found.seeds_needed)
        rule_out = _ways(found.items_to_rule_out, found.seeds_to_rule_out)
    else:
        show, rule_out = _ways(found.items_needed), _ways(found.items_to_rule_out)
    if not show and not rule_out:
        # Of a checkpoint null may also mean that its record is of before.
        return f"{could} Neither more items nor more seeds alone would decide." if isinstance(found, Recipe) else could
    none = f"{rule_out} would rule out a difference of {100 * versus.margin:g} points or more"
    if show and rule_out:
        said = f"{show} would show this difference, {none}"
    else:
        said = f"{show} would decide" if show else none
    return f"{could} {said[0].upper()}{said[1:]}, if the scores stay as they are."


def _ways(items: int | None, seeds: int | None = None) -> str:
    """So many test items or seeds; empty where there is neither."""
    numbers = {"test items": items, "seeds": seeds}
    return " or ".join(f"about {number:,} {what}" for what, number in numbers.items() if number is not None)


def rescued(rescue: Rescue) -> str:
    """What came of a rescue, the answer first."""
    answer = {True: "Yes", False: "No", None: "Undecided"}[rescue.removes]
    return f"{answer}: {rescue.sentence}"


def claimed(claim: ClaimResult) -> str:
    """A claim with its verdict, and how sure that is."""
    sure = "" if claim.p_adjusted is None else f" (p {claim.p_adjusted:.2g}, corrected for all claims)"
    return f"{claim.verdict.capitalize()}{sure}: {claim.says}"
