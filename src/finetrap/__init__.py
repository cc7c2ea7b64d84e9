"""finetrap: how to adapt a small language model to a task, answered with evidence.

from finetrap import Study

results = Study(models="smollm2-135m-instruct-q4", tasks="arc_easy", limit_train=400, limit_test=300).run()
print(results.table())
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetrap.config import ModelSpec, Study, load_study
    from finetrap.errors import StudyError
    from finetrap.registry import load_plugin
    from finetrap.results import Results
    from finetrap.rows.own_data import OwnData

__version__ = "0.1.0"
__all__ = ["ModelSpec", "OwnData", "Results", "Study", "StudyError", "load_plugin", "load_study"]

_HOME = {
    "ModelSpec": "config",
    "OwnData": "rows.own_data",
    "Results": "results",
    "Study": "config",
    "StudyError": "errors",
    "load_plugin": "registry",
    "load_study": "config",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that `finetrap --help` does not wait for pydantic.
    if name not in _HOME:
        raise AttributeError(f"module 'finetrap' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"finetrap.{_HOME[name]}"), name)
