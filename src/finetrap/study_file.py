"""A study file: YAML read into plain values, and the line on which each stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from finetrap.errors import StudyError
from finetrap.task import LM_EVAL

LineOf = Callable[[tuple[str | int, ...]], int]
"""The line, from 1, of the value at a location, such as ("models", 0)."""


def read_study_file(path: Path) -> tuple[dict[str, Any], LineOf]:
    """The values of a study file, not checked yet, and where they stand.

    Raises:
        StudyError: there is no such file, it is not YAML of `key: value` lines, or it names code; with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"there is no study file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read the study file {path}: {error}.") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise StudyError(f"{path}{line}: not valid YAML: {problem}.") from None
    if not isinstance(values, dict) or node is None:
        raise StudyError(f"{path}: expected `key: value` lines, such as `models: [smollm2-135m-instruct-q4]`.")
    _check_no_code(values, path)
    return values, lambda location: _line_of(node, location)


def _check_no_code(values: dict[str, Any], path: Path) -> None:
    """Check that the file names no code: lm-evaluation-harness runs what a task's file of its own says."""
    for field in ("tasks", "retention", "out_of_distribution"):
        named = values.get(field)
        for name in named if isinstance(named, list) else (named,):
            if isinstance(name, str) and name.startswith(LM_EVAL) and name.endswith((".yaml", ".yml")):
                raise StudyError(
                    f"{path}: {field}: '{name}' is a file that can run code, which a study file does not name; "
                    f"if you trust it, name it to `finetrap compare --task` or in Python."
                )


def _line_of(node: yaml.Node, location: tuple[str | int, ...]) -> int:
    """The line, from 1, of the deepest part of `location` that stands in the file."""
    line: int = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            key, node = found
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
