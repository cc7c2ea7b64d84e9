"""Names to functions: a method, task or scorer exists because a file in its package, or a plugin, defines it."""

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from finetrap.errors import StudyError, unknown

Made = TypeVar("Made")
R = TypeVar("R")


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

    def guarded(self, made: R) -> R:
        """The same dataclass, with each of its functions blamed for what it raises."""

        def guard(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def blamed(*args: Any, **settings: Any) -> Any:
                with self.blamed():
                    return function(*args, **settings)

            return blamed

        values = {field.name: getattr(made, field.name) for field in fields(cast("Any", made))}
        functions = {name: guard(value) for name, value in values.items() if callable(value)}
        return cast("R", replace(cast("Any", made), **functions))


class Registry(Generic[Made]):
    """All functions that make one kind of value, found by importing every module of `package`.

    Used as a decorator it registers a function under the function's own name.
    """

    _all: "list[Registry[Any]]" = []
    _loading: Plugin | None = None

    def __init__(self, kind: str, package: str, makes: type[Made]) -> None:
        self.kind = kind
        self.package = package
        self.makes = makes
        self._entries: dict[str, Callable[..., Made]] = {}
        self._plugins: dict[str, Plugin] = {}
        self._searched = False
        Registry._all.append(self)

    def __call__(self, function: Callable[..., Made]) -> Callable[..., Made]:
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

    def __getitem__(self, name: str) -> Callable[..., Made]:
        """The function called `name`.

        Raises:
            StudyError: there is none; the message names the nearest.
        """
        if name not in self.names():
            raise self.unknown(name)
        return self._entries[name]

    def unknown(self, name: str) -> StudyError:
        """The error for a name that nothing has."""
        return StudyError(f"{unknown(self.kind, name, self.names())} If a plugin brings it, name that with --plugin.")

    def make(self, name: str, *args: Any, **settings: Any) -> Made:
        """What the function called `name` makes; what a plugin's raises, then or later, names file and line.

        Raises:
            StudyError: there is none, or it is a plugin's and raises or makes something else.
        """
        function, plugin = self[name], self._plugins.get(name)
        if plugin is None:
            return function(*args, **settings)
        with plugin.blamed():
            made = function(*args, **settings)
        if not isinstance(made, self.makes):
            raise StudyError(
                f"the plugin {plugin.path}: the {self.kind} '{name}' returns {type(made).__name__}, "
                f"and has to return a {self.makes.__name__}."
            )
        return plugin.guarded(made)

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
        for former in [known for known in registry._plugins.values() if known.path == plugin.path]:
            registry.forget(former)  # edited since, as in a notebook
    spec = importlib.util.spec_from_file_location(f"finetrap_plugin_{plugin.digest[:12]}", plugin.path)
    assert spec is not None
    assert spec.loader is not None
    Registry._loading = plugin
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        with plugin.blamed():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        for registry in Registry._all:
            registry.forget(plugin)
        raise
    finally:
        Registry._loading = None
    if not any(plugin in registry._plugins.values() for registry in Registry._all):
        raise StudyError(f"the plugin {path} defines no @method, @task or @scorer.")
    return plugin
