"""The study folder, which is the database. Nothing else writes records.

    study.yaml  plan.json  looks.jsonl  answers.jsonl  results.json  report.html  report.md  charts/
    items/TASK--DIGEST12.jsonl.gz      what was asked: the examples of a test set
    trials/NAME--KEY/  spec.json  train_log.jsonl  training.json  artifact/  failure.json
                       PURPOSE--TASK--KEY/  rows.jsonl.gz  result.json

What is complete is told by the file that appears last and atomically: `training.json` of an artifact,
`result.json` of an evaluation. Deleting a trial's folder runs it again, and nothing else.
"""

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from finetrap.config import Study, load_study
from finetrap.errors import StudyError
from finetrap.files import disk_errors, new_folder, read_lines, read_record, write_file
from finetrap.records import (
    Answered,
    Evaluation,
    EvaluationRecord,
    FailureRecord,
    ItemRow,
    Look,
    Plan,
    TrainingLogEntry,
    TrainingRecord,
    Trial,
    items_digest,
    slug,
)
from finetrap.task import Example

_EXAMPLE = TypeAdapter(Example)


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Store:
    """A study's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def existing(cls, folder: Path) -> "Store":
        """The store of a folder that a study wrote.

        Raises:
            StudyError: it is none.
        """
        if not folder.is_dir():
            raise StudyError(f"there is no folder {folder}.")
        if not (folder / "study.yaml").is_file():
            raise StudyError(f"{folder} is not a study's folder (it has no study.yaml).")
        return cls(folder)

    # The study

    @property
    def begun(self) -> bool:
        """Whether a study was written here."""
        return (self.folder / "study.yaml").is_file()

    @property
    def planned(self) -> bool:
        """Whether what the study needs was written here."""
        return (self.folder / "plan.json").is_file()

    def check(self, study: Study) -> None:
        """Check that `study` may write here, without writing.

        Raises:
            StudyError: the folder belongs to another study or to something else, or is not writable.
        """
        try:
            self.folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise StudyError(
                f"{self.folder} cannot be written to ({error.strerror}); name another folder with --out."
            ) from None
        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"{self.folder} is a file; name a folder with --out.")
        if (self.folder / "study.yaml").is_file():
            other = self.study()
            if _identity(other) != _identity(study):
                raise StudyError(
                    f"{self.folder} belongs to another study ('{other.name}': {_identity(other)}); "
                    f"name another folder with --out."
                )
        elif self.folder.is_dir() and any(not _is_ours(path) for path in self.folder.iterdir()):
            raise StudyError(f"{self.folder} is not empty and no study's folder; name another with --out.")
        nearest = next(path for path in self._upwards() if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise StudyError(f"{self.folder} cannot be written to; name another folder with --out.")

    def check_space(self, needed: int, *, keeps: bool) -> None:
        """Check that the disk holds `needed` bytes more; `keeps` says whether some of them are kept by choice.

        Raises:
            StudyError: it does not.
        """
        nearest = next(path for path in self._upwards() if path.exists())
        free = shutil.disk_usage(nearest).free
        if needed > free:
            keep = ", or --keep none" if keeps else ""
            raise StudyError(
                f"the study needs about {needed / 2**20:,.0f} MiB in {self.folder}, and {free / 2**20:,.0f} MiB are "
                f"free there; name a folder on another disk with --out{keep}."
            )

    @contextmanager
    def open(self, study: Study) -> Iterator[None]:
        """Hold the folder for one process, and write the study into it; a study that could not begin is taken back.

        Raises:
            StudyError: as `check`; another process holds it; the disk is full.
        """
        self.check(study)
        new = not (self.folder / "study.yaml").is_file()
        made = [path for path in self._upwards() if not path.exists()]
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise StudyError(
                    f"another finetrap is writing to {self.folder}; wait for it, or name another."
                ) from None
            try:
                for part in (self.folder / "trials").glob("*/.part-*"):
                    # Left by a process that was killed while it wrote, or deleted, weights.
                    shutil.rmtree(part) if part.is_dir() else part.unlink()
                self.write("study.yaml", yaml.safe_dump(study.stated(), sort_keys=False, allow_unicode=True))
                yield
            except (StudyError, OSError):
                if new and not (self.folder / "trials").exists():
                    _take_back(self.folder, made)
                raise
            finally:
                lock.release()

    def _upwards(self) -> list[Path]:
        """The folder and all above it."""
        return [self.folder.absolute(), *self.folder.absolute().parents]

    def study(self) -> Study:
        """The study that wrote the folder."""
        return load_study(self.folder / "study.yaml")

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder atomically."""
        return write_file(self.folder / name, text)

    def save_plan(self, plan: Plan) -> None:
        """Write what the study needs, and the environment that runs it."""
        self.write("plan.json", plan.model_dump_json(indent=1))
        write_file(self._environment_path(plan.environment.key), plan.environment.model_dump_json(indent=1))

    def plan(self) -> Plan:
        """What the study needs.

        Raises:
            StudyError: it was never planned.
        """
        if not self.planned:
            raise StudyError(f"the study in {self.folder} has not started; run it.")
        return read_record(Plan, self.folder / "plan.json")

    def estimated_seconds(self) -> float | None:
        """What the study was estimated to take when it was first run; None where no plan that can be read has it."""
        try:
            return self.plan().estimated_seconds
        except StudyError:
            return None

    def _environment_path(self, key: str) -> Path:
        return self.folder / "environments" / f"{key[:12]}.json"

    def log_look(self, trial: Trial, evaluation: Evaluation) -> None:
        """Note that a test set is being read."""
        look = Look(
            time=now(),
            trial=trial.folder,
            task=evaluation.task,
            n=evaluation.n,
            evaluation=evaluation.key(trial.training_key),
        )
        with (self.folder / "looks.jsonl").open("a", encoding="utf-8") as file:
            file.write(look.model_dump_json() + "\n")

    def answers(self) -> list[Answered]:
        """The answers that the study gave, in order.

        Raises:
            StudyError: the file is damaged.
        """
        path = self.folder / "answers.jsonl"
        return read_lines(path, Answered.model_validate_json) if path.is_file() else []

    def log_answer(self, answered: Answered) -> None:
        """Note that an answer is being given."""
        with (self.folder / "answers.jsonl").open("a", encoding="utf-8") as file:
            file.write(answered.model_dump_json() + "\n")

    # Trials

    def trial_folder(self, trial: Trial) -> Path:
        """Where a trial lies, found by its training key whatever its arm was called."""
        trials = self.folder / "trials"
        same = sorted(trials.glob(f"*--{trial.training_key[:12]}"))
        return same[0] if same else trials / trial.folder

    def parent(self, trial: Trial) -> Trial | None:
        """The trial whose weights `trial` goes on from, if it was begun here."""
        key = (trial.parent or "")[:12]
        specs = sorted((self.folder / "trials").glob(f"*--{key}/spec.json")) if key else []
        return read_record(Trial, specs[0]) if specs else None

    def artifact(self, trial: Trial) -> Path | None:
        """The trained weights, or those between them and the untouched ones, if they are there whole."""
        folder = self.trial_folder(trial) / "artifact"
        return folder if folder.is_dir() and (trial.parent or self.training(trial)) else None

    def training(self, trial: Trial) -> TrainingRecord | None:
        """What training came to, if it is done."""
        path = self.trial_folder(trial) / "training.json"
        return read_record(TrainingRecord, path) if path.is_file() else None

    def training_log(self, trial: Trial) -> list[TrainingLogEntry]:
        """The steps of training."""
        path = self.trial_folder(trial) / "train_log.jsonl"
        return read_lines(path, TrainingLogEntry.model_validate_json) if path.is_file() else []

    def begin(self, trial: Trial) -> Path:
        """Make a trial's folder, with its spec; what failed before is forgotten."""
        folder = self.trial_folder(trial)
        (folder / "failure.json").unlink(missing_ok=True)
        write_file(folder / "spec.json", trial.model_dump_json(indent=1))
        return folder

    def save_artifact(self, trial: Trial, save: Callable[[Path], object]) -> Path:
        """Keep trained weights: `save` writes them into the folder it is given."""
        target = self.trial_folder(trial) / "artifact"
        with new_folder(target) as part:
            save(part)
        return target

    def save_training(self, trial: Trial, record: TrainingRecord, log: Sequence[TrainingLogEntry]) -> None:
        """Say that training is done; comes after `save_artifact`."""
        folder = self.trial_folder(trial)
        write_file(folder / "train_log.jsonl", "".join(entry.model_dump_json() + "\n" for entry in log))
        write_file(folder / "training.json", record.model_dump_json(indent=1))

    def drop_weights(self, trial: Trial) -> None:
        """Delete an artifact; its records stay."""
        artifact = self.trial_folder(trial) / "artifact"
        if artifact.is_dir():
            # Moved away first: an artifact is there whole or not at all.
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=artifact.parent))
            artifact.replace(part / "artifact")
            shutil.rmtree(part)

    def forget_evaluations(self, trial: Trial) -> None:
        """Delete the evaluations of an artifact that is trained again: all of them are to be of the same weights."""
        for result in self.trial_folder(trial).glob("*/result.json"):
            shutil.rmtree(result.parent)

    def save_failure(self, trial: Trial, failure: FailureRecord) -> None:
        """Say that a trial failed."""
        write_file(self.trial_folder(trial) / "failure.json", failure.model_dump_json(indent=1))

    def failure(self, trial: Trial) -> FailureRecord | None:
        """Why a trial failed, if it did."""
        path = self.trial_folder(trial) / "failure.json"
        return read_record(FailureRecord, path) if path.is_file() else None

    def forget_failure(self, trial: Trial) -> None:
        """Take back that a trial failed: it is to be tried again."""
        (self.trial_folder(trial) / "failure.json").unlink(missing_ok=True)

    # Evaluations

    def _evaluation_folder(self, trial: Trial, evaluation: Evaluation) -> Path:
        return self.trial_folder(trial) / evaluation.folder(trial.training_key)

    def evaluation(self, trial: Trial, evaluation: Evaluation) -> EvaluationRecord | None:
        """What an evaluation cost, if it is done."""
        path = self._evaluation_folder(trial, evaluation) / "result.json"
        return read_record(EvaluationRecord, path) if path.is_file() else None

    def rows(self, trial: Trial, evaluation: Evaluation) -> list[ItemRow]:
        """The items of an evaluation that is done, in order."""
        return read_lines(self._evaluation_folder(trial, evaluation) / "rows.jsonl.gz", ItemRow.model_validate_json)

    def save_evaluation(self, trial: Trial, record: EvaluationRecord, rows: Sequence[ItemRow]) -> None:
        """Keep an evaluation: the rows, then the record that says it is done."""
        folder = self._evaluation_folder(trial, record.evaluation)
        text = "".join(row.model_dump_json(exclude_defaults=True) + "\n" for row in rows)
        write_file(folder / "rows.jsonl.gz", gzip.compress(text.encode(), mtime=0))
        write_file(folder / "result.json", record.model_dump_json(indent=1))

    def save_items(self, evaluation: Evaluation, examples: Sequence[Example]) -> None:
        """Keep what an evaluation asks, so that its answers can be read when the data has gone."""
        path = self._items_path(evaluation)
        if not path.is_file():
            text = b"".join(_EXAMPLE.dump_json(example) + b"\n" for example in examples)
            write_file(path, gzip.compress(text, mtime=0))

    def items(self, evaluation: Evaluation) -> dict[str, Example]:
        """What an evaluation asked, by id; empty where it was not kept.

        Raises:
            StudyError: what was kept is damaged, or is not what the evaluation asked.
        """
        path = self._items_path(evaluation)
        if not path.is_file():
            return {}
        examples = read_lines(path, _EXAMPLE.validate_json)
        if items_digest(examples) != evaluation.items:
            raise StudyError(f"{path} does not hold what was asked; delete it and run again.")
        return {example.id: example for example in examples}

    def _items_path(self, evaluation: Evaluation) -> Path:
        return self.folder / "items" / f"{slug(evaluation.task)}--{evaluation.items[:12]}.jsonl.gz"


def _identity(study: Study) -> str:
    return f"{', '.join(model.name for model in study.models)} on {', '.join(study.task_names)}"


def _is_ours(path: Path) -> bool:
    """Whether a file is what a process leaves that was killed before it could write study.yaml."""
    return path.name == ".lock" or path.name.startswith(".part-")


def _take_back(folder: Path, made: Sequence[Path]) -> None:
    """Delete what a study writes before its first trial, and the folder and its parents if they were made for it."""
    for path in folder.iterdir():
        if _is_ours(path) or path.name in ("study.yaml", "plan.json", "environments", "looks.jsonl", "items"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in made:
        path.rmdir()
