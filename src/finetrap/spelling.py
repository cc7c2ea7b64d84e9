"""The ways in which the values of a study may be written: one for a list of one, 300MB for a number of bytes."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from finetrap.claim_spec import Claim, as_tuple, make_claim
from finetrap.errors import StudyError
from finetrap.rows.in_memory import is_model, is_table, named_model
from finetrap.rows.own_data import OwnData
from finetrap.user_input import Input


class ModelSpec(Input):
    """A model as the user names it."""

    name: Annotated[str, BeforeValidator(named_model)]
    """Preset, Hub id, local folder or GGUF file; in Python also a loaded model, or (model, tokenizer)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub repository."""
    chat: bool | None = None
    """Prompt through the chat template; by default where the model is aligned."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings. Off unless you wrote or read that code."""


def _model_specs(value: object) -> object:
    entries = (value,) if is_model(value) else as_tuple(value)
    return tuple(_each("models", _model_spec, entries))


def _model_spec(entry: object) -> object:
    if isinstance(entry, str | Path) or is_model(entry):
        return ModelSpec.model_validate({"name": entry})
    return ModelSpec.model_validate(entry)


def _tasks(value: object) -> object:
    return tuple(_each("tasks", _task, as_tuple(value)))


def _task(entry: object) -> object:
    if isinstance(entry, str):
        return entry
    return OwnData.model_validate({"train": entry} if is_table(entry) else entry)


def _claims(value: object) -> object:
    return tuple(_each("claims", make_claim, as_tuple(value)))


def _each(field: str, make: Callable[[object], object], entries: tuple[object, ...]) -> Iterator[object]:
    for index, entry in enumerate(entries):
        try:
            yield make(entry)
        except StudyError as error:
            raise error.within(field, index) from None


def _seeds(value: object) -> object:
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmg])(i?)b?|b)?", re.IGNORECASE)


def _bytes(value: object) -> object:
    """300MB as a number of bytes."""
    if not isinstance(value, str):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise StudyError(f"'{value}' is no size; write bytes, or as 300MB or 1.5GiB.").at("max_size")
    number, unit, binary = found.groups()
    return round(float(number) * (1024 if binary else 1000) ** (" kmg".index((unit or " ").lower())))


Models = Annotated[tuple[ModelSpec, ...], BeforeValidator(_model_specs)]
Tasks = Annotated[tuple[str | OwnData, ...], BeforeValidator(_tasks)]
Claims = Annotated[tuple[Claim, ...], BeforeValidator(_claims)]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds)]
"""A list, or how many."""
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]
