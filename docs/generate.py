"""Write what is generated: tables out of committed records, and pages and the JSON Schema out of the code.

Usage: python docs/generate.py [--check]   (--check: write nothing, exit with 1 if something is out of date)
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def wanted() -> dict[Path, str]:
    """Every file that is generated, whole or in part, with the text that it should have."""
    from generator import records, reference
    from generator.markdown import fill
    from generator.methods import method_pages
    from generator.performance import performance_blocks
    from generator.scorers import scorers_page
    from generator.statistics import statistics_blocks
    from generator.tasks import task_pages

    from finetrap.results import Results

    found = records.records()
    demo = found["demo"]
    files = {
        ROOT / "README.md": fill(
            (ROOT / "README.md").read_text(), "demo", records.record_block(demo, "docs/results/demo")
        ),
        ROOT / "src" / "finetrap" / "results.schema.json": json.dumps(Results.json_schema(), indent=1) + "\n",
        DOCS / "reference" / "cli.md": reference.command_line_page(),
        DOCS / "reference" / "results.md": reference.results_page((DOCS / "results/demo/results.json").read_text()),
        DOCS / "reference" / "study.md": reference.study_page(),
        DOCS / "reference" / "python.md": reference.python_page(),
        DOCS / "results" / "index.md": records.results_page(found),
        DOCS / "scorers.md": scorers_page(),
    }
    files |= {DOCS / "methods" / name: text for name, text in method_pages().items()}
    files |= {DOCS / "tasks" / name: text for name, text in task_pages().items()}

    index = fill((DOCS / "index.md").read_text(), "demo", records.record_block(demo, "results/demo"))
    files[DOCS / "index.md"] = fill(index, "report", records.demo_picture())
    files[DOCS / "tutorial.md"] = fill(
        (DOCS / "tutorial.md").read_text(), "tickets", records.record_block(found["tickets"], "results/tickets")
    )
    verdicts = (DOCS / "verdicts.md").read_text()
    for name, block in records.verdict_blocks(found).items():
        verdicts = fill(verdicts, name, block)
    files[DOCS / "verdicts.md"] = verdicts
    performance = (DOCS / "performance.md").read_text()
    for name, block in performance_blocks().items():
        performance = fill(performance, name, block)
    files[DOCS / "performance.md"] = performance
    statistics = (DOCS / "statistics.md").read_text()
    for name, block in statistics_blocks().items():
        statistics = fill(statistics, name, block)
    files[DOCS / "statistics.md"] = statistics

    navigation = (ROOT / "mkdocs.yml").read_text()
    for folder in ("methods", "tasks", "results", "decisions"):
        navigation = fill(navigation, folder, _navigation(folder, files), kind=".yml")
    files[ROOT / "mkdocs.yml"] = fill(navigation, "reports", records.left_out(found), kind=".yml")
    return files


def _navigation(folder: str, files: dict[Path, str]) -> str:
    """A section of mkdocs.yml with every page of a folder, the index first."""
    pages = {path for path in files if path.is_relative_to(DOCS / folder)}
    if folder == "decisions":
        pages |= set((DOCS / folder).glob("*.md"))
    if folder == "results":
        pages |= {path for path in (DOCS / folder).glob("*/report.md") if not path.with_suffix(".html").is_file()}
    ordered = sorted(pages, key=lambda path: (path.name != "index.md", str(path)))
    section = {folder.title(): [_entry(folder, path) for path in ordered]}
    lines = yaml.safe_dump([section], sort_keys=False, width=200).splitlines()
    return "\n".join(f"  {line}" for line in lines)


def _entry(folder: str, path: Path) -> str | dict[str, str]:
    """A page in the navigation; a record's report goes by its folder's name."""
    relative = path.relative_to(DOCS).as_posix()
    return {path.parent.name: relative} if folder == "results" and path.name != "index.md" else relative


def left_over(files: dict[Path, str]) -> list[Path]:
    """Pages of methods and tasks that are no more."""
    return [path for folder in ("methods", "tasks") for path in (DOCS / folder).glob("*.md") if path not in files]


def main() -> int:
    """Write, or check, all that is generated."""
    with tempfile.TemporaryDirectory() as empty:
        # What a machine has cached or can reach must not change a page: only the package's own data is shown.
        for variable in ("HF_HOME", "XDG_CACHE_HOME", "FINETRAP_CACHE"):
            os.environ[variable] = empty
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        files = wanted()
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    if "--check" not in sys.argv:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
        for path in left_over(files):
            path.unlink()
        return 0
    for path in stale + left_over(files):
        print(f"{path.relative_to(ROOT)} is out of date; run: make generate")
    return 1 if stale or left_over(files) else 0


if __name__ == "__main__":
    sys.exit(main())
