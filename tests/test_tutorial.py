"""The pages that tell a user what to type are run as they stand."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetrap.presets import EMBEDDED, PRESETS, here

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.skipif(not here(PRESETS[EMBEDDED]), reason=f"needs the weights: finetrap models get {EMBEDDED}"),
]


def commands(block: str) -> list[tuple[str, str]]:
    """Each command of a console block, and what the page says it prints."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, said) for command, _, said in (part.partition("\n") for part in parts)]


FEWER = {"limit_train: 96": "limit_train: 16", "limit_retention: 40": "limit_retention: 10"}
"""Rows of tickets.yaml: the page's take minutes to say no more."""


@pytest.mark.parametrize("page", ["tutorial", "plugins"])
def test_every_command_of_a_page_does_what_the_page_says(page: str, tmp_path: Path) -> None:
    for name in ("tickets.csv", "tickets.yaml"):
        shutil.copy(DOCS / "tutorial" / name, tmp_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for language, title, text in BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        if language == "yaml":
            assert (tmp_path / "tickets.yaml").read_text() == text
            for ours, fewer in FEWER.items():
                assert ours in text
                text = text.replace(ours, fewer)
            (tmp_path / "tickets.yaml").write_text(text)
            continue
        if title:
            (tmp_path / title).write_text(text)
            continue
        runs = commands(text) if language == "console" else [(shlex.join([sys.executable, "-c", text]), "")]
        for command, said in runs:
            done = subprocess.run(
                shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            if said:
                assert done.stdout == said
