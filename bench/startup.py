"""How long `finetrap --help` takes, against Python itself in the same run. Writes bench/results/startup.json."""

import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from finetrap import __version__
from finetrap.provenance import processor

RUNS = 15
COMMANDS = {"help": [sys.executable, "-m", "finetrap", "--help"], "python": [sys.executable, "-c", "pass"]}


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Alternate the two, after one warm-up of each."""
    for command in COMMANDS.values():
        _seconds(command)
    runs: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            runs[name].append(_seconds(command))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    row = {
        "work": "help",
        "variant": "finetrap --help",
        "model": None,
        "peer": "python -c pass",
        "ours": medians["help"],
        "theirs": medians["python"],
        "unit": "seconds",
        "ratio": medians["python"] / medians["help"],
        "runs": RUNS,
        "limit": 0.5,
    }
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": processor(),
        "versions": {"finetrap": __version__, "python": platform.python_version()},
        "rows": [row],
    }
    path = Path(__file__).parent / "results" / "startup.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"finetrap --help: {medians['help']:.3f} s (median of {RUNS}; python alone {medians['python']:.3f} s)")


if __name__ == "__main__":
    main()
