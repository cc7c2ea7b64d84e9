"""What report.md and report.html both say about a study, beside its tables."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from finetrap.config import Study
from finetrap.records import Environment, TrainingLogEntry
from finetrap.report.table import groups
from finetrap.results import ArmResult, Recommendation, Results
from finetrap.store import Store

if TYPE_CHECKING:
    from finetrap.report.charts import Chart


@dataclass(frozen=True)
class Section:
    """A model on a task."""

    model: str
    task: str
    arms: list[ArmResult]
    recommendation: Recommendation
    logs: dict[str, list[TrainingLogEntry]]
    """Of each arm that trained, the first seed's."""
    tolerance: float
    """Loss of general tasks that is accepted, a fraction."""
    bits_tolerance: float
    """Loss on general text that is accepted, in bits per byte."""
    queries: int
    """Over which the cost of an arm counts."""

    @cached_property
    def charts(self) -> "list[Chart]":
        """Its charts, each of which is drawn once for all that shows it."""
        from finetrap.report.charts import charts_of

        return charts_of(self)


def sections(results: Results, store: Store | None = None) -> list[Section]:
    """Every model and task that has a result; without the study's folder there are no training logs."""
    planned = store.plan().planned if store else ()
    logs = {
        (p.trial.model.label, p.trial.task, p.trial.arm): store.training_log(p.trial)
        for p in reversed(planned)
        if store
    }
    # Records that were written before a setting was have its default.
    known = results.study["settings"]
    chosen = {key: value for key, value in known.items() if key in _SETTINGS} if isinstance(known, dict) else {}
    forgotten, bits, queries = (chosen.get(key, Study.model_fields[key].default) for key in _SETTINGS)
    found = []
    for model, task, arms, recommendation in groups(results):
        mine = {arm.arm: log for arm in arms if (log := logs.get((model, task, arm.arm)))}
        found.append(Section(model, task, arms, recommendation, mine, float(forgotten), float(bits), int(queries)))
    return found


_SETTINGS = ("forgetting_tolerance", "bits_per_byte_tolerance", "queries")


def settings_of(arm: ArmResult) -> str:
    """An arm's settings, and the solved examples that it was shown."""
    settings = ", ".join(f"{key}={value}" for key, value in arm.hyperparameters.items()) or "none"
    return settings + "".join(f"; shots of seed {seed}: {', '.join(ids)}" for seed, ids in arm.shots.items())


def command_of(results: Results, store: Store) -> str:
    """What repeats the study."""
    return str(results.study["command"] or f"finetrap run {store.folder.name}/study.yaml")


def finished(results: Results) -> str:
    """When, and by which protocol."""
    return f"Finished {results.study['finished']}, protocol {results.study['protocol']}."


def machine(environment: Environment) -> str:
    """The machine and the versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    return (
        f"{environment.processor}, {environment.cores} cores, {environment.memory_bytes / 2**30:.0f} GiB, "
        f"{environment.system}, {environment.device} in {environment.dtype}; finetrap {environment.finetrap}"
        f"{f' ({environment.commit})' if environment.commit else ''}, Python {environment.python}, {versions}."
    )
