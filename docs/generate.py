"""Write what is generated: the README's table out of the demo's committed record, and the JSON Schema of results.json.

Usage: python docs/generate.py [--check]   (--check: write nothing, exit with 1 if something is out of date)
"""

import json
import sys
from pathlib import Path

from finetrap.results import Results
from finetrap.sections import machine
from finetrap.table import arms_grid, groups, headline, legend, markdown

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "docs" / "results" / "demo" / "results.json"
BEGIN, END = "<!-- demo: written by docs/generate.py -->", "<!-- /demo -->"


def readme(text: str) -> str:
    """The README with the demo's table in place."""
    results = Results.model_validate_json(DEMO.read_bytes())
    ((_, _, arms, recommendation),) = groups(results)
    why = "\n".join(f"- {line}" for line in (*recommendation.why, f"Next: {recommendation.next_step}"))
    date = str(results.study["finished"])[:10]
    block = "\n\n".join(
        [
            BEGIN,
            markdown(arms_grid(arms)),
            f"**{headline(recommendation)}**",
            why,
            f"{legend(arms)} From [`docs/results/demo/results.json`](docs/results/demo/results.json), which "
            f"`finetrap demo` wrote on {date}: {machine(results.environment)}",
            END,
        ]
    )
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + block + after


def main() -> int:
    """Write, or check, all that is generated."""
    path = ROOT / "README.md"
    wanted = {
        path: readme(path.read_text()),
        ROOT / "src" / "finetrap" / "results.schema.json": json.dumps(Results.json_schema(), indent=1) + "\n",
    }
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(wanted[path])
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is out of date; run: make readme")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
