"""General text that is mixed into training, so that less is forgotten.

Experience replay (Rolnick et al. 2019, arXiv:1811.11682); with text like that of pretraining, Ibrahim et al. 2024
(arXiv:2403.08763). The text is carried in the package and no retention task asks of it.
"""

import random
from collections.abc import Iterable, Sequence
from functools import cache

from finetrap.rows.duplicates import normalise
from finetrap.task import Example, packaged_rows


@cache
def general_texts() -> tuple[str, ...]:
    """The passages of an encyclopedia that finetrap carries for replay."""
    return tuple(row["text"] for row in packaged_rows("general_text", "train"))


def untested(tested: Iterable[Example]) -> tuple[str, ...]:
    """Those of them that stand in no example that is `tested`."""
    asked = "\0".join(normalise(part) for e in tested for part in (e.question, *e.choices))
    return tuple(text for text in general_texts() if normalise(text) not in asked)


def mixed_in(texts: Sequence[str], rows: int, share: float, *, seed: int) -> tuple[str, ...]:
    """So many of `texts` that they are `share` of all beside `rows` training rows; 0 <= share < 1.

    Drawn by `seed`, each as often as any other; where there are too few they come again.
    """
    wanted = round(rows * share / (1 - share))
    generator = random.Random(seed)
    drawn: list[str] = []
    while texts and len(drawn) < wanted:
        drawn += generator.sample(texts, min(len(texts), wanted - len(drawn)))
    return tuple(drawn)
