"""Verdicts on runs of lm-evaluation-harness: its files are the arms, the statistics are a study's."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetrap import stats
from finetrap.errors import StudyError, unknown
from finetrap.judgement import Judged, JudgedArm, Judgement
from finetrap.lm_eval_samples import Samples, find, paired, read
from finetrap.recommend import CONFIDENCE
from finetrap.versus import TRIVIAL, Scored, pool_of, versus_zero_shot


class Run(NamedTuple):
    """What one argument names: an arm, or a seed of one."""

    arm: str
    path: Path


def parse_runs(arguments: Sequence[str]) -> list[Run]:
    """PATH or NAME=PATH each; a name that comes again is another seed of its arm.

    What has no name is called by its folder, or by its file where the folders are the same.

    Raises:
        StudyError: a path is given twice.
    """
    # A folder that the harness made may itself have an = in its name.
    split = [("", text) if Path(text).exists() or "=" not in text else text.split("=", 1) for text in arguments]
    named = [(name, Path(path)) for name, path in split]
    seen = set()
    for _, path in named:
        if path.resolve() in seen:
            raise StudyError(f"{path} is given twice; a run does not compare with itself.")
        seen.add(path.resolve())
    given = {name for name, _ in named if name}
    bare = [path for name, path in named if not name]
    for way in (_folder_name, lambda path: path.stem, str):
        names = [way(path) for path in bare]
        if len({*given, *names}) == len(given) + len(bare):
            break
    unnamed = iter(names)
    return [Run(name or next(unnamed), path) for name, path in named]


def _folder_name(path: Path) -> str:
    return (path if path.is_dir() else path.parent).resolve().name


def judge(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    margin: float = 0.02,
    metric: str | None = None,
    filter_name: str | None = None,
    tasks: Sequence[str] = (),
) -> Judged:
    """Verdicts on every task that all runs have, or on those `tasks`, each against the baseline: the first run's arm.

    `metric` and `filter_name` decide what is right; by default the first of `lm_eval_samples.METRICS` that is there,
    and its `FILTER`.

    Raises:
        StudyError: there are not two arms, or their files do not pair; the message says which, where and why.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    if baseline is not None and baseline not in arms:
        raise unknown("arm", baseline, arms)
    reference = baseline or arms[0]
    if reference == TRIVIAL:
        raise StudyError(f"the baseline is '{TRIVIAL}', the trivial arm; name another with --baseline.")
    if not set(arms) - {reference, TRIVIAL}:
        raise StudyError(f"there is nothing to compare '{reference}' with; give the run of another arm.")
    files, warnings = _by_task(runs, tasks)
    return Judged(
        tasks=tuple(
            _judge_task(task, runs, [read(path) for path in paths], reference, margin, metric, filter_name)
            for task, paths in files.items()
        ),
        warnings=tuple(warnings),
    )


def _by_task(runs: Sequence[Run], wanted: Sequence[str]) -> tuple[dict[str | None, list[Path]], list[str]]:
    """By task the file of each run, and what has to be said of tasks that some run has not."""
    found = [find(run.path) for run in runs]
    names = list(dict.fromkeys(task for paths in found for task in paths if task is not None))
    for task in wanted:
        if task not in names:
            raise unknown("task", task, names)
    if len(names) > 1 and (nameless := [run.path for run, paths in zip(runs, found, strict=True) if None in paths]):
        raise StudyError(
            f"{nameless[0]}: of which task is it, {' or '.join(names)}? Keep the name samples_TASK_DATE.jsonl."
        )
    # A file that was renamed is of the one task that there is.
    only = names[0] if names else None
    files = [{only if task is None else task: path for task, path in paths.items()} for paths in found]
    left = {task: run.path for task in names for run, paths in zip(runs, files, strict=True) if task not in paths}
    every: list[str | None] = [*names] or [None]
    common = [task for task in every if task not in left and (not wanted or task in wanted)]
    if not common or (set(wanted) - set(common)):
        has = "; ".join(f"{run.path}: {', '.join(map(str, paths))}" for run, paths in zip(runs, files, strict=True))
        raise StudyError(f"the runs are of different tasks. {has}.")
    warnings = [f"{task} is not judged: {path} has it not." for task, path in left.items() if not wanted]
    return {task: [paths[task] for paths in files] for task in common}, warnings


def _judge_task(
    task: str | None,
    runs: Sequence[Run],
    files: Sequence[Samples],
    baseline: str,
    margin: float,
    metric: str | None,
    filter_name: str | None,
) -> Judgement:
    decides = files[0].chosen_filter(filter_name)
    measured = files[0].chosen_metric(metric, decides)
    arms = _scored(runs, files, measured, decides)
    pool = pool_of(arms)
    candidates = {arm: scored.first if pool is None else scored.table for arm, scored in arms.items() if arm != TRIVIAL}
    bounds = stats.regret_bounds(candidates, pool, alpha=1 - CONFIDENCE)
    versus = versus_zero_shot(arms, margin=margin, reference=baseline)
    return Judgement(
        task=task,
        metric=measured,
        filter=decides,
        n_test=len(arms[baseline].table),
        baseline=baseline,
        margin=margin,
        arms=tuple(
            JudgedArm(
                arm=arm,
                files=tuple(str(file.path) for run, file in zip(runs, files, strict=True) if run.arm == arm),
                accuracy=float(scored.table.mean()),
                ci95=stats.accuracy_interval(scored.table, pool),
                vs_baseline=versus.get(arm),
                items_needed=versus[arm].decisive.items_needed if arm in versus else None,
                regret_upper=bounds.get(arm),
            )
            for arm, scored in arms.items()
        ),
    )


def _scored(runs: Sequence[Run], files: Sequence[Samples], metric: str, decides: str) -> dict[str, Scored]:
    """By arm its scores, by the filter that decides and by every other one that all files have."""
    others = [name for name in files[0].filters if name != decides and all(file.has(metric, name) for file in files)]
    tables = {}
    for name in (decides, *others):
        columns = paired(files, metric, name)
        tables[name] = {
            arm: np.stack([c for run, c in zip(runs, columns, strict=True) if run.arm == arm], axis=1)
            for arm in dict.fromkeys(run.arm for run in runs)
        }
    return {arm: Scored(table, {name: tables[name][arm] for name in others}) for arm, table in tables[decides].items()}
