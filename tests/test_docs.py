"""What is generated is up to date, and the committed records are what the schema says."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "docs" / "results").glob("*/results.json"))


def test_readme_and_schema_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_results_follow_the_schema(path: Path) -> None:
    schema = json.loads((ROOT / "src" / "finetrap" / "results.schema.json").read_text())
    jsonschema.validate(json.loads(path.read_text()), schema)


def test_records_of_the_issue_are_committed() -> None:
    assert {"demo", "smollm2_gsm8k_quick"} <= {path.parent.name for path in RESULTS}
