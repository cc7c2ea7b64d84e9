"""Compute the matrix and write bench/results/same_answers.json; exits 1 where a cell fails.

    PYTHONPATH=bench:tests python -m same_answers [--sample] [--only TEXT] [--seconds N]

A cell that the file holds is not computed again, as long as no module changed that was loaded to compute it. Several
calls may compute different cells side by side.
"""

import argparse
import fcntl
import gc
import hashlib
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetrap
from finetrap.provenance import processor
from same_answers.cells import Cell, Outcome
from same_answers.low_precision import possible, summary
from same_answers.matrix import matrix, sample
from same_answers.subjects import SMOLLM2, models

PATH = Path(__file__).parent.parent / "results" / "same_answers.json"
PACKAGES = ("torch", "transformers", "peft", "trl")


def _modules() -> list[str]:
    """What decides a cell, but for the packages: all that is loaded of finetrap, of this folder and of the tests."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("finetrap", "same_answers", "tiny")]
    return sorted(name for name in loaded if not name.endswith("__main__"))


def _code(modules: Sequence[str]) -> str:
    """A hash of some modules as they are now."""
    return hashlib.sha256(b"".join(map(_source, modules))).hexdigest()[:16]


def _source(module: str) -> bytes:
    """Nothing of a module that is gone."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return b""
    return Path(spec.origin).read_bytes() if spec is not None and spec.origin else b""


def _guard(known: dict[str, str]) -> None:
    """End where a module is no longer what it was when it was loaded: its cells would be told under another hash."""
    for module in _modules():
        if known.setdefault(module, _code([module])) != _code([module]):
            raise SystemExit(f"{module} was changed while cells were computed; begin again")


def _versions(modules: Sequence[str]) -> dict[str, str]:
    packages = {name: version(name) for name in PACKAGES}
    code = _code(modules)
    return {"finetrap": finetrap.__version__, "code": code, "python": platform.python_version(), **packages}


def _written() -> dict[str, Any]:
    """The file, as long as nothing changed that decides its cells."""
    written: dict[str, Any] = json.loads(PATH.read_text()) if PATH.is_file() else {"versions": None}
    return written if written["versions"] == _versions(written.get("modules", [])) else {}


def _key(row: dict[str, Any]) -> str:
    return Cell(
        **{name: row[name] for name in ("what", "model", "method", "rows", "shots", "adapter")}, compute=_none
    ).key


def _none() -> Outcome:
    raise AssertionError("a cell that was read is not computed")


def _row(cell: Cell) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        outcome = cell.compute()
    except Exception as error:  # What breaks is a cell that failed; the others are still to be known.
        outcome = Outcome(0, 0, 0, says=f"{type(error).__name__}: {error}"[:300])
    named = {name: getattr(cell, name) for name in ("what", "model", "method", "rows", "shots", "adapter")}
    found = {name: value for name, value in outcome._asdict().items() if name not in ("says", "counts") or value}
    return {**named, **found, "seconds": round(time.perf_counter() - started, 2)}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within it, no other call writes there."""
    folder.mkdir(exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _write(cells: Sequence[dict[str, Any]], modules_before: Sequence[str]) -> None:
    modules = sorted({*modules_before, *_modules()})
    head = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "versions": _versions(modules),
        "modules": modules,
        "passed": sum(cell["passed"] for cell in cells),
        "failed": sum(not cell["passed"] for cell in cells),
        "bfloat16": summary([cell for cell in cells if "counts" in cell]),
    }
    lines = ",\n".join(f"  {json.dumps(cell)}" for cell in cells)
    partial = PATH.with_suffix(".partial")
    partial.write_text(json.dumps(head, indent=1)[:-2] + f',\n "cells": [\n{lines}\n ]\n}}\n')
    partial.replace(PATH)


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether finetrap's engine gives the answers of others.")
    parser.add_argument("--sample", action="store_true", help="compute the part that the tests do; write nothing")
    parser.add_argument("--only", default="", help="compute the cells whose name holds this")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after that; go on next time")
    given = parser.parse_args()

    warnings.simplefilter("ignore")
    everything = matrix(models())
    written = {} if given.sample else _written()
    done = {_key(cell): cell for cell in written.get("cells", [])}
    chosen = [cell for cell in (sample(everything) if given.sample else everything) if given.only in cell.key]
    missing = [cell for cell in chosen if cell.key not in done]
    print(f"{len(chosen) - len(missing)} of {len(chosen)} cells are there", flush=True)
    code: dict[str, str] = {}
    _guard(code)
    started = time.perf_counter()
    for index, cell in enumerate(missing):
        if time.perf_counter() - started > given.seconds:
            print(f"{len(missing) - index} cells are left")
            break
        row = done[cell.key] = _row(cell)
        print(
            f"{'ok    ' if row['passed'] else 'FAILED'} {cell.key}  {row['seconds']} s  {row.get('says', '')}",
            flush=True,
        )
        gc.collect()
        if not given.sample:
            _guard(code)
            with _locked(PATH.parent):
                # Another call may have written to it since.
                written = _written() or written
                done = {_key(cell): cell for cell in written.get("cells", [])} | done
                _write([done[c.key] for c in everything if c.key in done], written.get("modules", []))
    if SMOLLM2 not in models():
        print("without SmolLM2, which is not on this machine: finetrap models get smollm2-135m-instruct-q4")
    elif not possible():
        print("without answers in bfloat16, in which this processor does not multiply")
    failed = [cell.key for cell in chosen if cell.key in done and not done[cell.key]["passed"]]
    print(f"{len(failed)} failed" if failed else "all the same")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
