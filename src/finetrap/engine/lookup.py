"""Drafts of what an answer goes on with, looked up in what stands before: numbers, names and phrases come again."""

from collections.abc import Sequence

KNOWN = 2
"""Tokens at the end that are looked up: one is found more often and followed by something else, three too seldom."""
DRAFTED = 2
"""Tokens of a draft, at most: later ones are seldom right."""


class Lookup:
    """The tokens of a prompt and its answer, and what followed every `KNOWN` of them when they last stood there.

    Drafts that a model checks in one pass leave its answers as they are (arXiv:2211.17192, section 2); that the text
    itself is the draft is prompt lookup decoding, as Transformers' `prompt_lookup_num_tokens`.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._followed_at: dict[tuple[int, ...], int] = {}
        """Where what followed begins."""
        self.add(prompt)

    def add(self, tokens: Sequence[int]) -> None:
        """Go on by some tokens."""
        for token in tokens:
            if len(self._tokens) >= KNOWN:
                # Only now: the last tokens are not to find themselves.
                self._followed_at[tuple(self._tokens[-KNOWN:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """What followed the last tokens when they stood there before, `most` tokens at most; often nothing."""
        start = self._followed_at.get(tuple(self._tokens[-KNOWN:]))
        return [] if start is None else self._tokens[start : start + min(DRAFTED, most)]
