"""Simulate every cell and write bench/results/truth.json.

    PYTHONPATH=bench python -m truth [--only KIND] [--processes N] [--keep]

A cell that the file holds is not simulated again, as long as neither finetrap.stats nor this folder changed. With
--keep not even then; every cell says by which code it was simulated.
"""

import argparse
import hashlib
import json
import multiprocessing
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, machine, now

import finetrap
from finetrap import stats
from truth.cells import cells, key, simulate_named

PATH = RESULTS / "truth.json"


def code() -> str:
    """A hash of all that decides a cell, but for the packages."""
    folders = (Path(stats.__file__).parent, Path(__file__).parent)
    files = sorted(file for folder in folders for file in folder.rglob("*.py") if file != Path(__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "scipy")}
    return {"finetrap": finetrap.__version__, "code": code(), "python": platform.python_version(), **packages}


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers at the head of the file: means over cells, extremes with their Monte Carlo standard error."""
    found: dict[str, float] = {}
    plain = [row for row in rows if "coverage" in row and row["kind"] != "stress"]
    equal = [row for row in rows if row["kind"] == "coverage"]
    stress = [row for row in rows if row["kind"] == "stress"]

    def extreme(name: str, field: str, of: list[dict[str, Any]], choose: Any) -> None:
        values = [row[part] for row in of for part in field.split("|") if row.get(part) is not None]
        if values:
            one = choose(values, key=lambda value: value["mean"])
            found[name], found[f"{name}_se"] = one["mean"], one["se"]

    def mean(name: str, field: str, of: list[dict[str, Any]]) -> None:
        values = [row[field] for row in of if row.get(field) is not None]
        if values:
            found[name] = float(np.mean([value["mean"] if isinstance(value, dict) else value for value in values]))

    extreme("coverage_min", "coverage|coverage_pair", plain, min)
    extreme("coverage_min_stress", "coverage|coverage_pair", stress, min)
    mean("coverage_mean", "coverage", equal)
    mean("width_ratio_to_oracle", "width_ratio", [row for row in equal if row["world"]["seeds"] == 3])
    extreme("familywise_error_max", "familywise_error", rows, max)
    power = [row for row in rows if row["kind"] == "power"]
    if power:
        found["power_gap"] = float(np.mean([row["power_oracle"]["mean"] - row["power"]["mean"] for row in power]))
    choices = [row for row in rows if row["kind"] == "regret"]
    for name in ("wrong_ours", "wrong_common", "undecided_ours", "undecided_oracle", "wrong_tuned", "wrong_oracle"):
        mean(name, name, choices)
    by_item = [row for row in plain if row["kind"] != "clusters"]
    extreme("coverage_accuracy_min", "coverage_accuracy", by_item, min)
    extreme("coverage_accuracy_min_stress", "coverage_accuracy", stress, min)
    return {name: round(value, 5) for name, value in found.items()}


def write(rows: list[dict[str, Any]]) -> None:
    seconds = round(sum(row["seconds"] for row in rows))
    head = {"date": now(), "machine": machine(), "versions": versions(), "seconds": seconds, **summary(rows)}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    partial = PATH.with_suffix(".partial")
    partial.write_text(json.dumps(head, indent=1)[:-2] + f',\n "cells": [\n{lines}\n ]\n}}\n')
    partial.replace(PATH)


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether finetrap's statistics hold, where the truth is known.")
    parser.add_argument("--only", default="", help="simulate the cells of this kind")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--keep", action="store_true", help="keep cells of older code, where what changed moves no number"
    )
    given = parser.parse_args()

    everything = {key(cell.kind, cell.world): cell for cell in cells()}
    done = _done(everything, keep=given.keep)
    missing = [name for name, cell in everything.items() if name not in done and given.only in cell.kind]
    # The quick ones first, so that something of every kind is soon there.
    missing.sort(key=lambda name: everything[name].studies * everything[name].world["n"])
    print(f"{len(everything) - len(missing)} of {len(everything)} cells are there, or not asked for", flush=True)
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for count, (name, row) in enumerate(pool.imap_unordered(simulate_named, missing), start=1):
            done[name] = {**row, "code": code()}
            write([done[each] for each in everything if each in done])
            print(f"{count} of {len(missing)}: {name}  {row['seconds']} s", flush=True)
    write([done[each] for each in everything if each in done])
    return 0


def _done(names: Iterable[str], *, keep: bool) -> dict[str, dict[str, Any]]:
    if not PATH.is_file():
        return {}
    rows = {key(row["kind"], row["world"]): row for row in json.loads(PATH.read_text())["cells"]}
    return {name: rows[name] for name in names if name in rows and (keep or rows[name]["code"] == code())}


if __name__ == "__main__":
    sys.exit(main())
