"""What is generated is fresh, the committed records are what the schema says, the site builds and stands alone."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from support import short_answers

from finetrap.config import DEFAULT_ARMS, ModelSpec, Study
from finetrap.errors import StudyError
from finetrap.method import method
from finetrap.results import Verdict
from finetrap.scoring import scorer
from finetrap.task import Example, Split, Task, get_task, task

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = sorted((DOCS / "results").glob("*/results.json"))
HAND_WRITTEN = sorted(path for path in DOCS.glob("*.md") if path.name != "LOG.md")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, "--site-dir", str(folder)], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    # Strict: a link or an anchor that leads nowhere, or a page that the navigation leaves out, is an error.
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Loaded(HTMLParser):
    """Addresses that a browser fetches by itself, and those of nothing else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            linked = name in ("href", "xlink:href") and tag not in ("a", "base")
            if value and (linked or name in ("src", "srcset", "data", "poster", "background")):
                self.found.append(value)
            # What makes the theme's own script fetch something: a diagram, a repository's stars.
            if (name, value) in (("class", "mermaid"), ("data-md-component", "source")):
                self.found.append(f"https: for {value}")


def _external(text: str) -> list[str]:
    found = _Loaded(text).found + re.findall(r"url\(\s*[\"']?([^)\"']+)", text)
    found += re.findall(r"@import\s+[\"']([^\"']+)", text)
    return [address for address in found if re.match(r"\s*(https?:|//)", address)]


def test_what_is_generated_is_what_the_generator_writes() -> None:
    done = subprocess.run([sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_results_follow_the_schema(path: Path) -> None:
    schema = json.loads((ROOT / "src" / "finetrap" / "results.schema.json").read_text())
    jsonschema.validate(json.loads(path.read_text()), schema)


def test_every_record_is_listed_and_those_that_pages_speak_of_are_there() -> None:
    # A study that is still running has records and no results.
    begun = [path for path in (DOCS / "results").iterdir() if path.is_dir()]
    assert all((path / "plan.json").is_file() for path in begun)
    folders = {path.parent.name for path in RESULTS}
    assert {"demo", "tickets", "smollm2_gsm8k_quick", "gemma_gsm8k_quick"} <= folders
    listed = (DOCS / "results" / "index.md").read_text()
    headings = re.findall(r"^## (.+)$", listed, re.MULTILINE)
    assert sorted(heading.replace("\\", "") for heading in headings) == sorted(folders)
    assert {name for name in folders if f"]({name}/results.json)" not in listed} == set()


@pytest.mark.parametrize("path", [path for path in RESULTS if "gsm8k" in path.parent.name], ids=lambda p: p.parent.name)
def test_a_record_of_gsm8k_has_the_six_arms(path: Path) -> None:
    results = json.loads(path.read_text())
    assert [arm["arm"] for arm in results["arms"]] == list(DEFAULT_ARMS)
    assert results["failures"] == []


def test_every_method_and_task_has_a_page(site: Path) -> None:
    wanted = {f"methods/{name}.html" for name in method.names()} | {f"tasks/{name}.html" for name in task.names()}
    assert {name for name in wanted if not (site / name).is_file()} == set()


def test_every_scorer_has_its_rule_and_an_example_on_the_page_of_scorers() -> None:
    _, *sections = re.split(r"^## ", (DOCS / "scorers.md").read_text(), flags=re.MULTILINE)
    by_name = {section.partition("\n")[0]: section for section in sections}
    assert set(scorer.names()) <= by_name.keys()
    for name in scorer.names():
        assert (scorer[name].__doc__ or "").partition("\n")[0] in by_name[name].replace("\\", "")
        assert "| **all of them** |" in by_name[name]


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    read = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    external = {str(path.relative_to(site)): found for path in read if (found := _external(path.read_text()))}
    assert external == {}
    assert len(read) > 20


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img srcset="https://example/x.png 2x">',
        "<style>@import 'https://example/x.css';</style>",
        "a { background: url(http://example/x.png) }",
        '<pre class="mermaid">a</pre>',
    ],
)
def test_what_is_loaded_from_elsewhere_is_seen(text: str) -> None:
    assert _external(text)


def test_a_link_for_the_reader_is_not_loaded() -> None:
    assert _external('<a href="https://arxiv.org/abs/2106.09685">x</a><img src="x.svg">') == []


def test_search_works_on_pages_opened_from_a_folder(site: Path) -> None:
    assert (site / "search" / "search_index.js").read_text().startswith("var __index = {")
    assert 'src="assets/iframe-worker.js"' in (site / "index.html").read_text()


def test_every_verdict_is_explained() -> None:
    headings = re.findall(r"^### (\w+)", (DOCS / "verdicts.md").read_text(), re.MULTILINE)
    assert set(get_args(Verdict)) <= set(headings)


@pytest.mark.parametrize("path", HAND_WRITTEN, ids=lambda path: path.name)
def test_code_that_a_page_names_exists(path: Path) -> None:
    named = re.findall(r"`(finetrap(?:\.\w+)+)`", path.read_text())
    assert [name for name in named if not _defined(name)] == []


def _defined(dotted: str) -> bool:
    """Whether this is a module of the package, or what a module, or one of a package of them, defines."""
    path = ROOT / "src" / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    home = path.parent.with_suffix(".py")
    sources = [home] if home.is_file() else sorted(path.parent.glob("*.py"))
    text = "\n".join(source.read_text() for source in sources)
    return bool(re.search(rf"^(def|class) {path.name}\b|^{path.name}\b.*=", text, re.MULTILINE))


@pytest.mark.thorough
def test_the_code_of_the_page_on_python_runs(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my-model").symlink_to(tiny_folder)
    (tmp_path / "tickets.csv").symlink_to(DOCS / "tutorial" / "tickets.csv")
    said: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.+?)^```", (DOCS / "notebook.md").read_text(), re.MULTILINE | re.DOTALL):
        with short_answers():
            exec(code, said)
    assert [arm.arm for arm in said["results"].arms] == ["constant", "zero_shot", "lora", "full"]
    assert len(said["frame"]) == 4
    assert sorted(path.name for path in tmp_path.glob("finetrap-*")) == ["finetrap-study", "finetrap-tickets"]
    shown = capsys.readouterr()
    assert "tickets with my-model-" in shown.out
    assert "0 of 4 trials to run in finetrap-tickets" in shown.err


def test_every_key_of_a_study_and_every_setting_of_a_method_has_help() -> None:
    fields = {**Study.model_fields, **ModelSpec.model_fields}
    assert [name for name, field in fields.items() if not field.description] == []
    pages = {name: (DOCS / "methods" / f"{name}.md").read_text() for name in method.names()}
    assert [name for name, text in pages.items() if re.search(r"\|\s*\|$", text, re.MULTILINE)] == []


def test_a_task_whose_data_cannot_be_had_has_a_page_without_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(split: Split) -> tuple[Example, ...]:
        raise StudyError("no network")

    def elsewhere() -> Task:
        """From elsewhere (arXiv:2402.14830)."""
        return Task("elsewhere", "x", "generate", "MIT", load, score=get_task("gsm8k").score)

    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.setitem(task._entries, "elsewhere", elsewhere)
    from generator.tasks import task_pages

    page = task_pages()["elsewhere.md"]
    assert "From elsewhere ([arXiv:2402.14830](https://arxiv.org/abs/2402.14830))." in page
    assert "The data does not come with finetrap" in page
    assert "score_number" in page
