"""Between the untouched model and what an arm trained."""

from finetrap.method import Method, method


@method
def interpolated(of: str, weight: float = 0.5) -> Method:
    """W + weight (W' - W), W' another arm's trained weights; nothing is trained (WiSE-FT, arXiv:2109.01903, 3).

    Args:
        of: The arm whose weights they are: one that trains, or a checkpoint. An adapter is merged first.
        weight: From 0, the untouched model, to 1, the arm itself.
    """
    return Method(of=of, weight=weight)
