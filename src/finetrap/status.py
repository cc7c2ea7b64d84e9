"""How far a study is."""

from typing import Literal

from filelock import FileLock, Timeout

from finetrap.plan import missing
from finetrap.records import Record
from finetrap.store import Store

State = Literal["done", "failed", "running", "left"]


class TrialStatus(Record):
    """One trial."""

    trial: str
    arm: str
    seed: int
    task: str
    state: State
    evaluations_done: int
    evaluations: int
    trained: bool
    tuning: bool = False
    """Whether it is a tuning candidate, scored on validation."""
    error: str | None = None


class Status(Record):
    """All trials of a study."""

    folder: str
    running: bool
    trials: tuple[TrialStatus, ...]

    def text(self) -> str:
        """For a terminal."""
        lines = []
        for trial in self.trials:
            error = f"  {trial.error}" if trial.error else ""
            what = "tuning" if trial.tuning else f"seed {trial.seed}"
            lines.append(
                f"{trial.state:<8} {trial.arm:<16} {what:<8} {trial.task:<12} "
                f"{trial.evaluations_done}/{trial.evaluations} evaluations{error}"
            )
        counts = {state: sum(t.state == state for t in self.trials) for state in ("done", "running", "failed", "left")}
        lines.append(", ".join(f"{count} {state}" for state, count in counts.items()) + f" in {self.folder}")
        return "\n".join(lines)


def status_of(store: Store) -> Status:
    """The state of every trial that is planned; the first unfinished one is running if a process holds the folder."""
    running = _is_held(store)
    trials: list[TrialStatus] = []
    unclaimed = running
    plan = store.plan()
    for planned in (*plan.candidates, *plan.planned):
        left, failure = missing(planned, store), store.failure(planned.trial)
        state: State = "done" if not left else "failed" if failure else "left"
        if state == "left" and unclaimed:
            state, unclaimed = "running", False
        trials.append(
            TrialStatus(
                trial=store.trial_folder(planned.trial).name,
                arm=planned.trial.arm,
                seed=planned.trial.seed,
                task=planned.trial.task,
                state=state,
                evaluations_done=len(planned.evaluations) - len(left),
                evaluations=len(planned.evaluations),
                trained=store.training(planned.trial) is not None,
                tuning=planned.rung is not None,
                error=failure.error if failure and left else None,
            )
        )
    return Status(folder=str(store.folder), running=running, trials=tuple(trials))


def _is_held(store: Store) -> bool:
    lock = FileLock(store.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False  # where no lock can be taken, nothing is written either
    lock.release()
    return False
