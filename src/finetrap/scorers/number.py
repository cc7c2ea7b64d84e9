"""Answers that are one number."""

from collections.abc import Sequence

from finetrap.scoring import AnswerError, Scorer, Verdict, number_of, score_number, scorer


def _number(text: str, gold: str) -> Verdict:
    verdict = score_number(text, gold)
    alone = number_of(text)
    if verdict.formatted or alone is None:
        return verdict
    return verdict._replace(strict=alone == number_of(gold), formatted=True)


@scorer
def number(answers: Sequence[str]) -> Scorer:
    """The number after "#### ", else the last number of the output; strictly: stated so, or nothing else.

    Compared by value: 72.0 and $72 equal 72.

    Raises:
        AnswerError: a gold answer is not a number.
    """
    for index, answer in enumerate(answers):
        if number_of(answer) is None:
            raise AnswerError(index, f"the answer {answer!r} is not a number, which --score number needs")
    return Scorer(_number, rule="stated answer, else last number", asks="the number")
