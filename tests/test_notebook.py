"""A study in a notebook: what its cells show, and that it goes on after an interrupt. In a real kernel."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import finetrap

ARMS = ("constant", "zero_shot", "lora", "long")
CELLS = {
    "by_name": "from finetrap import Study\n"
    "study = Study(models='tiny', tasks='arc_easy', arms='zero_shot', limit_train=16, limit_test=10, retention=())\n"
    "study.run('first');",
    "imports": "import os, random\nimport pandas\nfrom transformers import AutoModelForCausalLM\n"
    "from finetrap import OwnData",
    "data": "draw = random.Random(0)\n"
    "texts = [''.join(draw.choices('abcdefghij klmnop', k=40)) for _ in range(60)]\n"
    "frame = pandas.DataFrame({'text': texts, 'queue': ['post', 'phone'] * 30})\nframe.head(2)",
    "study": "model = AutoModelForCausalLM.from_pretrained('tiny')\n"
    "data = OwnData(train=frame, prompt_field='text', answer_field='queue', score='label', name='tickets')\n"
    "study = Study(models=model, tasks=data, arms=['lora:rank=2', 'long=full:epochs=25'], limit_test=10,\n"
    "              retention=(), dtype='float32', device='cpu')\n"
    "open('pid', 'w').write(str(os.getpid()))",
    "interrupted": "study.run('out')",
    "again": "results = study.run('out')",
    "shown": "results",
    "quiet": "study.run('out', progress=False).to_pandas()[['arm', 'accuracy']]",
    "wrong": "Study(models=model, tasks=data, arm='lora')",
}
RAISES = ("interrupted", "wrong")


pytestmark = pytest.mark.thorough


class Ran(NamedTuple):
    """A notebook that was run: its cells by name, and what was done when it was interrupted."""

    cells: dict[str, NotebookNode]
    done: set[str]

    def texts(self, cell: str, stream: str) -> str:
        outputs = self.cells[cell].outputs
        return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == stream)

    def shown(self, cell: str) -> list[NotebookNode]:
        return [o.data for o in self.cells[cell].outputs if o.output_type in ("display_data", "execute_result")]


def _interrupt(folder: Path, done: set[str]) -> None:
    """Press the kernel's button once the long arm trains."""
    for _ in range(2400):
        if list(folder.glob("out/trials/*--long--*/spec.json")):
            time.sleep(0.3)
            done |= {path.parts[-3].split("--")[2] for path in folder.glob("out/trials/*/*/result.json")}
            os.kill(int((folder / "pid").read_text()), signal.SIGINT)
            return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def ran(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "tiny").symlink_to(tiny_folder)
    cells = [
        nbformat.v4.new_code_cell(source, metadata={"tags": ["raises-exception"] if name in RAISES else []})
        for name, source in CELLS.items()
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    done: set[str] = set()
    button = threading.Thread(target=_interrupt, args=(folder, done), daemon=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(finetrap.__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "FINETRAP_CACHE": str(folder / "cache"),
    }
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    button.start()
    client.execute(env=environment)
    button.join()
    return Ran(dict(zip(CELLS, notebook.cells, strict=True)), done)


def test_an_interrupt_stops_the_cell_and_keeps_what_is_finished(ran: Ran) -> None:
    assert ran.cells["interrupted"].outputs[-1].ename == "KeyboardInterrupt"
    assert "interrupted. What is finished is kept in out; the same call goes on from there." in ran.texts(
        "interrupted", "stdout"
    )
    assert ran.done == {"constant", "zero_shot", "lora"}


def test_the_next_run_does_the_rest(ran: Ran) -> None:
    said = ran.texts("again", "stdout").splitlines()
    assert "1 of 4 trials to run in out" in said
    assert said[-1] == "done    long (seed 0) on tickets"


def test_progress_is_in_one_place_and_ends_as_it_stood(ran: Ran) -> None:
    for cell, trials in (("interrupted", "3/4 trials"), ("again", "1/1 trials")):
        (shown,) = ran.shown(cell)
        assert shown["text/plain"].startswith(trials)
        assert shown["text/html"].startswith(f'<div><progress value="{trials[0]}" max="{trials[2]}"></progress>')


def test_results_are_shown_with_the_answer_and_every_arm(ran: Ran) -> None:
    (shown,) = ran.shown("shown")
    html = shown["text/html"]
    assert html.startswith("<div><p><b>")
    assert html.index("<b>") < html.index("<table>")
    assert [arm for arm in ARMS if f">{arm}</td>" not in html] == []
    assert "out/report.html" in html
    assert shown["text/plain"].startswith("<Results of study: tickets with tiny-")


def test_without_progress_only_the_value_is_shown(ran: Ran) -> None:
    (output,) = ran.cells["quiet"].outputs
    assert [arm for arm in ARMS if arm not in output.data["text/plain"]] == []


def test_a_wrong_argument_is_a_line(ran: Ran) -> None:
    (output,) = ran.cells["wrong"].outputs
    assert (output.ename, output.evalue) == ("StudyError", "unknown setting 'arm'; did you mean 'arms'?")


def test_nothing_is_said_on_stderr(ran: Ran) -> None:
    # Of finetrap's: Transformers shows a bar when the user loads the model.
    assert {cell: said for cell in CELLS if cell != "study" and (said := ran.texts(cell, "stderr"))} == {}
