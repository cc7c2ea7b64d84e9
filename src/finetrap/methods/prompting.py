"""Ways that train nothing: ask, ask with examples, or do not even read the question."""

from finetrap.errors import unknown
from finetrap.method import Method, chooses, method

TEMPLATES = {
    "plain": "",
    "careful": "Answer as accurately as you can.\n\n",
    "stepwise": "Let's think step by step.\n\n",
    "breath": "Take a deep breath and work on this problem step by step.\n\n",
}
"""By name, what stands in front of the task's own prompt; `plain` is that prompt, as every other arm sees it.

`stepwise` is from arXiv:2205.11916, `breath` the best that arXiv:2309.03409 found for arithmetic.
"""


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


@chooses(template=tuple(TEMPLATES))
def prompted(template: str = "stepwise") -> Method:
    """The untouched model, with an instruction in front of the task's prompt; tuning chooses which.

    Args:
        template: `plain`, `careful`, `stepwise` (arXiv:2205.11916) or `breath` (arXiv:2309.03409).
    """
    if template not in TEMPLATES:
        raise unknown("template", template, TEMPLATES)
    return Method(instruction=TEMPLATES[template])


@chooses(shots=(1, 3, 5, 8))
def few_shot(shots: int = 5) -> Method:
    """Solved examples from train in front of the question, drawn by seed (arXiv:2005.14165).

    Args:
        shots: How many. They are read again at every query.
    """
    return Method(shots=shots)
