"""All cells, and the part of them that is computed in every test."""

import random
from collections.abc import Sequence

from same_answers import generation, likelihood, low_precision, training
from same_answers.cells import Cell
from same_answers.subjects import SMOLLM2


def matrix(models: Sequence[str]) -> list[Cell]:
    """Every cell, those of a model one after the other."""
    parts = (generation, likelihood, training, low_precision)
    return [cell for model in models for part in parts for cell in part.cells([model])]


def sample(cells: Sequence[Cell]) -> list[Cell]:
    """A few of the tiny models' cells: all that is compared; and each kind with each method, batch and shots."""
    order = [cell for cell in cells if cell.model != SMOLLM2]
    random.Random(0).shuffle(order)
    seen: set[tuple[object, ...]] = set()
    chosen = []
    for cell in order:
        kind = cell.what.partition(",")[0]
        sides: set[tuple[object, ...]] = {(cell.what,), (kind, cell.rows), (kind, "shots", cell.shots)}
        # A whole run takes seconds.
        if "a run of" not in cell.what:
            sides |= {(kind, cell.method, cell.adapter), (cell.model, cell.method)}
        if not sides <= seen:
            chosen.append(cell)
            seen |= sides
    return sorted(chosen, key=lambda cell: (cell.model, cell.method, str(cell.adapter)))
