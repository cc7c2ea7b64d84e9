"""The run-time type checker of the tests: an int is a float, as everywhere else in typing."""

import typer
from beartype import BeartypeConf, FrozenDict, beartype

# typer wants its own Context as the annotation, and hands over another.
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({typer.Context: object})))
