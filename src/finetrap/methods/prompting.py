"""Ways that train nothing: ask, ask with examples, or do not even read the question."""

from finetrap.method import Method, method


@method
def constant() -> Method:
    """The trivial arm: the most common answer in train; for multiple choice the likeliest choice without its question.

    What does not beat it has learned nothing of the task.
    """
    return Method(trivial=True)


@method
def zero_shot() -> Method:
    """The untouched model and the bare prompt: what every other arm is compared with."""
    return Method()


@method
def few_shot(shots: int = 5) -> Method:
    """Solved examples from train in front of the question, drawn by seed (arXiv:2005.14165).

    Args:
        shots: How many. They are read again at every query.
    """
    return Method(shots=shots)
