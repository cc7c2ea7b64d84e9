"""Looks at the data: a study that is extended after its answer was read tests again."""

from finetrap.stats.artifact import ALPHA


def look_alpha(look: int, alpha: float = ALPHA) -> float:
    """The level of the `look`-th answer, from 1: 0.8 alpha 0.2**(look - 1), which adds up to alpha over all looks.

    Valid under any dependence and any reason to go on, and also for who keeps what an earlier look rejected.

    Raises:
        ValueError: `look` is below 1.
    """
    if look < 1:
        raise ValueError(f"looks are counted from 1, not {look}.")
    return 0.8 * alpha * 0.2 ** (look - 1)
