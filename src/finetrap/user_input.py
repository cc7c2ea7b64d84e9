"""What a user writes, in a file or in Python: what is wrong with it is said in one line, with its place."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError, model_validator

from finetrap.errors import StudyError, unknown
from finetrap.records import Record


class Input(Record):
    """What a user writes, in a file or in Python: what is wrong with it is a StudyError that says where."""

    @model_validator(mode="wrap")
    @classmethod
    def _said_in_one_line(cls, values: Any, validate: Callable[[Any], "Input"]) -> "Input":
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                raise unknown("setting", str(key), known).at(key)
        try:
            return validate(values)
        except ValidationError as error:
            first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        seen = " ".join(repr(first["input"]).split())
        seen = seen if len(seen) <= 80 else f"{seen[:80]}..."
        if not name:
            raise StudyError(f"expected the settings of {cls.__name__}, got {seen}.")
        if first["type"] == "missing":
            raise StudyError(f"'{name}' is missing.").at(*first["loc"])
        raise StudyError(f"'{name}': {first['msg'].lower()}, got {seen}.").at(*first["loc"])
