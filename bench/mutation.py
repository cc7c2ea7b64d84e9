"""Mutants of what decides a verdict, and which of them the tests notice. Writes bench/results/mutation.json.

    python bench/mutation.py [--only stats --only versus] [--digits 37]

mutmut changes one thing at a time (an operator, a number, an argument) in the modules that `[tool.mutmut]` of
pyproject.toml names, and runs the tests there that call the function. It keeps what it has done in mutants/, and does
again what changed. A module of which not all mutants were run is a sample: the file has their number.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetrap.provenance import processor

ROOT = Path(__file__).parent.parent
MUTANTS = ROOT / "mutants" / "src" / "finetrap"
SURVIVED = (0, 5, 33)
"""Exit codes of mutmut: the tests passed, or none calls the function. All others are a failure, a hang or a crash."""


def _patterns(only: Sequence[str], digits: str) -> list[str]:
    return [f"finetrap.{name}.*__mutmut_*{digit}" for name in only or ("*",) for digit in digits or ("",)]


def _changes(mutant: str) -> list[str]:
    """The lines that a mutant takes out and puts in."""
    shown = subprocess.run([_mutmut(), "show", mutant], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return [line for line in shown.splitlines() if line[:2] in ("- ", "+ ", "-\t", "+\t")]


def _mutmut() -> str:
    return str(Path(sys.executable).parent / "mutmut")


def _module(meta: Path) -> dict[str, Any]:
    every = json.loads(meta.read_text())["exit_code_by_key"]
    codes = {name: code for name, code in every.items() if code is not None}
    survivors = [name for name, code in codes.items() if code in SURVIVED]
    return {
        "mutants": len(every),
        "killed": len(codes) - len(survivors),
        "survived": len(survivors),
        "share": round((len(codes) - len(survivors)) / len(codes), 4) if codes else None,
        "survivors": {name: _changes(name) for name in survivors},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the mutants, and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", action="append", default=[], help="a module or package of finetrap, as stats or recommend"
    )
    parser.add_argument("--digits", default="", help="a sample: mutants whose number ends in one of these digits")
    parser.add_argument("--processes", default="2")
    given = parser.parse_args(arguments)
    command = [_mutmut(), "run", "--max-children", given.processes, *_patterns(given.only, given.digits)]
    subprocess.run(command, check=True, cwd=ROOT)
    modules = {}
    for meta in sorted(MUTANTS.rglob("*.py.meta")):
        name = ".".join(meta.relative_to(MUTANTS).with_suffix("").with_suffix("").parts)
        found = _module(meta)
        if found["share"] is not None:
            modules[name] = found
    killed, survived = (sum(module[key] for module in modules.values()) for key in ("killed", "survived"))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "tool": f"mutmut {version('mutmut')}",
        "share": round(killed / (killed + survived), 4),
        "modules": modules,
    }
    path = ROOT / "bench" / "results" / "mutation.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name, module in modules.items():
        print(f"{name:24} {module['share']:7.1%} of {module['killed'] + module['survived']} of {module['mutants']}")
    print(f"{'all':24} {result['share']:7.1%} of {killed + survived}")


if __name__ == "__main__":
    main()
