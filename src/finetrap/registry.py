"""Names to functions: a method, task or scorer exists because a file in its package, or a plugin, defines it."""

import hashlib
import importlib
import importlib.util
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from finetrap.errors import StudyError, unknown

Entry = TypeVar("Entry", bound=Callable[..., object])


@dataclass(frozen=True)
class Plugin:
    """A Python file of the user's own that adds to the registries."""

    path: Path
    digest: str
    """SHA-256 of the file: part of the key of all that it decides."""

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Within: whatever the plugin's code raises is a StudyError that names file and line.

        Raises:
            StudyError: the code raised something.
        """
        try:
            yield
        except (StudyError, KeyboardInterrupt):
            raise
        except BaseException as error:
            said = (str(error).strip() or "no message").splitlines()[0]
            line = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == self.path]
            where = line[-1] if line else getattr(error, "lineno", None)
            place = f"{self.path}:{where}" if where else str(self.path)
            raise StudyError(f"the plugin {place} raised {type(error).__name__}: {said}.") from error


class Registry(Generic[Entry]):
    """All functions of one kind, found by importing every module of `package`.

    Used as a decorator it registers a function under the function's own name.
    """

    _all: "list[Registry[Any]]" = []
    _loading: Plugin | None = None

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._plugins: dict[str, Plugin] = {}
        self._searched = False
        Registry._all.append(self)

    def __call__(self, function: Entry) -> Entry:
        name, plugin = function.__name__, Registry._loading
        if plugin is not None:
            if name in self._entries and self._plugins.get(name) != plugin:
                raise StudyError(
                    f"the plugin {plugin.path} defines the {self.kind} '{name}', and there is one already."
                )
            self._plugins[name] = plugin
        self._entries[name] = function
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

    def plugin_of(self, name: str) -> Plugin | None:
        """The plugin that defines `name`; None for what finetrap brings."""
        return self._plugins.get(name)

    def forget(self, plugin: Plugin) -> None:
        """Take back what a plugin registered."""
        for name in [name for name, origin in self._plugins.items() if origin == plugin]:
            del self._plugins[name], self._entries[name]


def load_plugin(path: str | Path) -> Plugin:
    """Run a Python file that registers methods, tasks or scorers.

    It is code: only the command line and a Python caller name it, never a study file or data.

    Raises:
        StudyError: there is no such file, it raises, it registers nothing, or a name is taken.
    """
    import finetrap.method
    import finetrap.scoring
    import finetrap.task  # noqa: F401  # each makes a registry

    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        raise StudyError(f"there is no plugin {path}; name a Python file.")
    plugin = Plugin(path.resolve(), hashlib.sha256(path.read_bytes()).hexdigest())
    for registry in Registry._all:
        registry.names()  # what finetrap brings comes first, so that a plugin cannot take its names
    spec = importlib.util.spec_from_file_location(f"finetrap_plugin_{plugin.digest[:12]}", plugin.path)
    assert spec is not None
    assert spec.loader is not None
    Registry._loading = plugin
    try:
        with plugin.blamed():
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except StudyError:
        for registry in Registry._all:
            registry.forget(plugin)
        raise
    finally:
        Registry._loading = None
    if not any(plugin in registry._plugins.values() for registry in Registry._all):
        raise StudyError(f"the plugin {path} defines no @method, @task or @scorer.")
    return plugin
