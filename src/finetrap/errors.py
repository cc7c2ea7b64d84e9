"""What a user can mend, as opposed to what is a bug."""

from collections.abc import Iterable
from difflib import get_close_matches


class StudyError(Exception):
    """The input is wrong. The message is one line: what was seen, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """

    location: tuple[str | int, ...] = ()
    """Where in a study the wrong value stands: keys and indices; empty for the study as a whole."""

    def at(self, *location: str | int) -> "StudyError":
        """The same error, with its location."""
        self.location = location
        return self

    def within(self, *outer: str | int) -> "StudyError":
        """The same error of a value that stands in another."""
        name = ".".join(map(str, self.location))
        place = ".".join(map(str, outer))
        text = str(self).replace(f"'{name}'", f"'{place}.{name}'", 1) if name else f"'{place}': {self}"
        return StudyError(text).at(*outer, *self.location)


def unknown(kind: str, name: str, known: Iterable[str]) -> StudyError:
    """The error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}."
    return StudyError(f"unknown {kind} '{name}'; {hint}")
