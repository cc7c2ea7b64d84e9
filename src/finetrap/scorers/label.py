"""Classification: the answer is one of a few labels."""

import re
from collections.abc import Sequence

from finetrap.scoring import AnswerError, Scorer, Verdict, first_line, plain, scorer

MOST_LABELS = 100


@scorer
def label(answers: Sequence[str]) -> Scorer:
    """The label that the output's first line is, else the only label that the output names; accuracy and macro-F1.

    An output that names several labels, or none, has no answer. Strictly: the label and nothing else.

    Raises:
        AnswerError: there are more than a hundred different answers, or two differ in case or marks only.
    """
    labels = sorted(dict.fromkeys(answer.strip() for answer in answers))
    by_name: dict[str, str] = {}
    for name in dict.fromkeys(answer.strip() for answer in answers):
        if by_name.setdefault(plain(name), name) != name:
            index = next(i for i, answer in enumerate(answers) if answer.strip() == name)
            raise AnswerError(index, f"the labels {name!r} and {by_name[plain(name)]!r} differ in case or marks only")
    if len(labels) > MOST_LABELS:
        raise AnswerError(
            0, f"there are {len(labels)} different answers, and --score label is for {MOST_LABELS} at most"
        )
    # The longest first, so that "not spam" is not read as "spam".
    longest_first = sorted(by_name, key=len, reverse=True)
    named = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def score(text: str, gold: str) -> Verdict:
        every = {by_name[name] for name in named.findall(" ".join(text.casefold().split()))}
        answer = by_name.get(plain(first_line(text))) or (every.pop() if len(every) == 1 else None)
        right = answer == gold.strip()
        strict = text.strip() == gold.strip()
        return Verdict(
            answer,
            correct=right,
            strict=strict,
            anywhere=right or (gold.strip() in every and len(every) < len(labels)),
            formatted=text.strip() in labels,
        )

    return Scorer(
        score,
        rule="the label that the output begins with or alone names",
        asks=f"one of these labels ({', '.join(labels)})",
        classes=tuple(labels),
    )
