"""Results with everything that a report can show: what a short study of a random model does not have."""

from copy import deepcopy
from typing import Any

from finetrap.results import Results

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
ADVICE = "Prior advice, not evidence of this study: others advise adapters."
CLAIM = "LoRA is above full fine-tuning on every aligned model."


def rich(results: Results) -> Results:
    """The same study as if it had three seeds, had tuned its arms, been rescued, and stated claims."""
    said: dict[str, Any] = results.model_dump(mode="json", by_alias=True)
    arms = said["arms"]
    lora = next(arm for arm in arms if arm["arm"] == "lora")
    for index, arm in enumerate(("full", "dora", "careless", "half-careless")):
        spread = {"accuracy": 0.1 + 0.1 * index, "ci95": [0.05 + 0.1 * index, 0.2 + 0.1 * index]}
        arms.append(deepcopy(lora) | {"arm": arm} | spread)
    verdicts = ("undecided", "gain", "no_difference", "format_only", "harm", "undecided")
    compared = [arm for arm in arms if arm["vs_zero_shot"] is not None]
    for index, (arm, verdict) in enumerate(zip(compared, verdicts, strict=True)):
        delta = (0.01, 0.12, 0.002, 0.05, -0.11, -0.03)[index]
        recipe = {"delta": delta, "ci95": [delta - 0.05, delta + 0.05], "ci95_adjusted": [delta - 0.08, delta + 0.08]}
        recipe |= {"p": 0.01, "p_adjusted": 0.04, "mde": 0.09, "seeds": 3, "items_needed": 4100, "seeds_needed": 7}
        arm["vs_zero_shot"] |= {"verdict": verdict, "recipe": None if arm["arm"] == "few_shot" else recipe}
        arm["outcomes"] = {
            "correct": 5 + index,
            "wrong": 20,
            "no_answer": 3,
            "truncated": 2 * index,
            "degenerate": index,
        }
        moved = 0.0 if arm["arm"] == "few_shot" else -0.012 * index
        arm["retention"] |= {
            "delta": moved,
            "ci95": [moved - 0.02, moved + 0.02],
            "verdict": "harm" if verdict == "harm" else "undecided",
            "kl": 0.02 * index,
            "kl_ci95": [0.018 * index, 0.022 * index],
            "kl_texts": {"general": 0.01 * index, "chat": 0.04 * index},
            "chat_format": 0.9 - 0.1 * index,
            "chat_format_delta": -0.1 * index,
            "chat_format_ci95": [-0.1 * index - 0.05, -0.1 * index + 0.05],
        }
        arm["cost"] |= {"train_tokens": 9000 * index, "tune_seconds": 40.0 * index, "train_seconds": 21.0 * index}
        if arm["arm"] != "few_shot":
            arm["seeds"] = [0, 1, 2]
            arm["tuning"] = [
                {
                    "rung": rung,
                    "setting": "learning_rate",
                    "value": rate,
                    "train_rows": 100 * (1 + rung),
                    "n": 50,
                    "accuracy": 0.4 - 0.05 * abs(place - 2) + 0.03 * rung + 0.01 * index,
                    "validation_loss": 1.5 + 0.1 * abs(place - 2) - 0.2 * rung + 0.05 * index,
                    "seconds": 4.0,
                    "tokens": 2000,
                    "chosen": rung == 1 and place == 2,
                }
                for rung, places in enumerate(((0, 1, 2, 3), (1, 2)))
                for place, rate in enumerate(RATES)
                if place in places
            ]
    (recommendation,) = said["recommendations"]
    recommendation["prior_advice"] = ADVICE
    recommendation["rescues"] = [
        {"arm": "half-careless", "of": "careless", "way": "half", "removes": True, "sentence": "half-way back helps."},
        {"arm": "dora", "of": "careless", "way": "lower", "removes": None, "sentence": "a lower rate may help."},
    ]
    said["claims"] = [
        {"id": "one", "says": CLAIM, "verdict": "supported", "p": 0.001, "p_adjusted": 0.002, "evidence": ["It is."]},
        {
            "id": "two",
            "says": "5-shot is best.",
            "verdict": "refuted",
            "p": 0.01,
            "p_adjusted": 0.02,
            "evidence": ["No."],
        },
        {"id": "three", "says": "DoRA is.", "verdict": "undetermined", "p": None, "p_adjusted": None, "evidence": []},
    ]
    return Results.model_validate(said)
