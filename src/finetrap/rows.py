"""Rows of a data set from the Hub or a local folder."""

from typing import Any


def dataset_rows(repository: str, split: str) -> list[dict[str, Any]]:
    """The rows of a split."""
    raise NotImplementedError
