"""Names to functions: a method or a task exists because a file in its package defines it."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from finetrap.errors import unknown

Entry = TypeVar("Entry", bound=Callable[..., object])


class Registry(Generic[Entry]):
    """All functions of one kind, found by importing every module of `package`.

    Used as a decorator it registers a function under the function's own name.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._searched = False

    def __call__(self, function: Entry) -> Entry:
        self._entries[function.__name__] = function
        return function

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        if not self._searched:
            self._searched = True
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        return sorted(self._entries)

    def __getitem__(self, name: str) -> Entry:
        """The function called `name`.

        Raises:
            StudyError: there is none; the message names the nearest.
        """
        known = self.names()
        if name not in self._entries:
            raise unknown(self.kind, name, known)
        return self._entries[name]
