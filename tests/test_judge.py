"""`finetrap judge`: files of lm-evaluation-harness against a study on the same items."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
from scipy.stats import norm, t
from support import called
from tiny import make_model, make_tokenizer

from finetrap import stats
from finetrap.config import Study
from finetrap.errors import StudyError
from finetrap.judge import judge, parse_runs
from finetrap.judgement import JudgedArm, Judgement
from finetrap.results import Results
from finetrap.store import Store
from finetrap.study import answer

pytestmark = pytest.mark.usefixtures("undrawn")

Row = dict[str, Any]


def row(doc_id: int, score: object, metric: str = "acc", **more: object) -> Row:
    """A row as the harness writes it, but for what nothing here reads."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"q{doc_id}"},
        "target": str(doc_id % 3),
        "filter": "none",
        "metrics": [metric],
        "doc_hash": f"hash{doc_id}",
        metric: score,
        **more,
    }


def written(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def column(path: Path, scores: str, metric: str = "acc", **more: object) -> Path:
    """A file of items that are right (1) or wrong (0)."""
    return written(path, (row(i, float(score), metric, **more) for i, score in enumerate(scores)))


def judged(*runs: object, **options: Any) -> Judgement:
    """The verdicts on the only task."""
    (judgement,) = judge(parse_runs([str(run) for run in runs]), **options).tasks
    return judgement


def arm(judgement: Judgement, name: str) -> JudgedArm:
    return next(arm for arm in judgement.arms if arm.arm == name)


NAME = "samples_science_2026-01-02T03-04-05.678901.jsonl"


@pytest.fixture(scope="module", params=[{}, {"constant": 0.2, "zero_shot": 0.4, "few_shot": 0.5, "lora": 0.9}])
def compared(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Results, dict[str, list[list[Row]]]]:
    """A study on multiple choice, and its rows by arm and seed as those of the harness.

    At the floor, as the random model is; and as if its answers were right as often as the parameter has it.
    """
    folder = tmp_path_factory.mktemp("study")
    study = Study(
        name="choices",
        models=str(tiny_folder),
        tasks="arc_easy",
        arms=["few_shot:shots=1", "lora:rank=2,learning_rate=0.05"],
        limit_train=16,
        limit_test=30,
        retention=[],
        seeds=2,
        dtype="float32",
    )
    results = study.run(folder)
    store = Store.existing(folder)
    if request.param:
        rng = np.random.default_rng(0)
        for planned in store.plan().planned:
            (target,) = (e for e in planned.evaluations if e.purpose == "target")
            record, items = store.evaluation(planned.trial, target), store.rows(planned.trial, target)
            assert record is not None
            right = rng.random(len(items)) < request.param[planned.trial.arm]
            as_if = [
                i.model_copy(update={"correct": bool(r), "raw": bool(r)}) for i, r in zip(items, right, strict=True)
            ]
            store.save_evaluation(planned.trial, record, as_if)
        results = answer(study, store)
        assert results.recommendations[0].method == "lora"
    runs: dict[str, list[list[Row]]] = {}
    for planned in store.plan().planned:
        (target,) = (e for e in planned.evaluations if e.purpose == "target")
        items = store.rows(planned.trial, target)
        runs.setdefault(planned.trial.arm, []).append(
            [row(i, float(item.correct), "acc_bytes", doc_hash=item.id) for i, item in enumerate(items)]
        )
    return results, runs


def test_the_numbers_are_those_of_a_study_on_the_same_items(
    compared: tuple[Results, dict[str, list[list[Row]]]], tmp_path: Path
) -> None:
    results, runs = compared
    files = [
        f"{arm}={written(tmp_path / f'{arm}{seed}' / NAME, reversed(rows))}"
        for arm, seeds in runs.items()
        for seed, rows in enumerate(seeds)
    ]
    judgement = judged(*files, baseline="zero_shot", margin=0.02)
    assert (judgement.task, judgement.metric, judgement.n_test) == ("science", "acc_bytes", 30)
    assert [arm.arm for arm in judgement.arms] == [arm.arm for arm in results.arms]
    for ours, theirs in zip(judgement.arms, results.arms, strict=True):
        assert ours.accuracy == pytest.approx(theirs.accuracy, abs=1e-12)
        assert ours.ci95 == pytest.approx(theirs.ci95, abs=1e-12)
        assert ours.vs_baseline == theirs.vs_zero_shot
    (recommendation,) = results.recommendations
    if recommendation.method == "lora":
        assert recommendation.regret_upper == pytest.approx(arm(judgement, "lora").regret_upper, abs=1e-12)
    assert all(arm.vs_zero_shot.recipe for arm in results.arms if arm.vs_zero_shot)
    assert {arm.vs_zero_shot.artifact.delta for arm in results.arms if arm.vs_zero_shot} - {0.0}


def test_two_files_get_one_verdict(tmp_path: Path) -> None:
    # 40 items: 11 that only the tuned model gets right, 1 that only the base does.
    base = column(tmp_path / "base" / NAME, "1" * 10 + "0" * 30)
    tuned = column(tmp_path / "tuned" / NAME, "0" + "1" * 9 + "1" * 11 + "0" * 19)
    judgement = judged(base, tuned)
    versus = arm(judgement, "tuned").vs_baseline
    assert versus is not None
    assert (judgement.baseline, judgement.n_test, versus.verdict) == ("base", 40, "gain")
    assert versus.artifact.delta == pytest.approx(10 / 40)
    expected = float(2 * norm.sf(10 / 12**0.5))
    assert versus.artifact.p == versus.artifact.p_adjusted == pytest.approx(expected)
    assert arm(judgement, "base").vs_baseline is None


def test_more_arms_make_a_family(tmp_path: Path) -> None:
    base = column(tmp_path / "base" / NAME, "1" * 10 + "0" * 30)
    tuned = column(tmp_path / "tuned" / NAME, "0" + "1" * 9 + "1" * 11 + "0" * 19)
    same = column(tmp_path / "same" / NAME, "1" * 10 + "0" * 30)
    (alone, among) = (arm(judged(*runs), "tuned").vs_baseline for runs in ((base, tuned), (base, tuned, same)))
    assert alone is not None
    assert among is not None
    assert among.artifact.p == alone.artifact.p
    assert among.artifact.p_adjusted == pytest.approx(2 * alone.artifact.p)
    assert among.artifact.ci95_adjusted[0] < alone.artifact.ci95_adjusted[0]


def test_files_of_one_name_are_seeds_of_an_arm(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).random((2, 60, 3)) < np.array([0.3, 0.6])[:, None, None]
    tables = dict(zip(("lora", "dora"), drawn.astype(float), strict=True))
    runs = [
        f"{name}={column(tmp_path / f'{name}{seed}' / NAME, ''.join(str(int(score)) for score in scores))}"
        for name, table in tables.items()
        for seed, scores in enumerate(table.T)
    ]
    dora = arm(judged(*runs), "dora")
    assert [Path(file).parent.name for file in dora.files] == ["dora0", "dora1", "dora2"]
    expected = stats.difference(tables["dora"], tables["lora"], stats.pool_seeds(tables.values()))
    recipe = dora.vs_baseline and dora.vs_baseline.recipe
    assert recipe
    assert (recipe.seeds, recipe.delta) == (3, pytest.approx(drawn[1].mean() - drawn[0].mean()))
    assert recipe.ci95 == pytest.approx(expected.interval(0.05))
    assert dora.vs_baseline
    assert dora.vs_baseline.verdict == "gain"
    # One seed each says nothing of the recipe.
    alone = arm(judged(runs[0], runs[3]), "dora").vs_baseline
    assert alone
    assert alone.recipe is None


def test_what_would_decide_is_said_of_a_difference_that_is_not_shown(tmp_path: Path) -> None:
    base = column(tmp_path / "base" / NAME, "1" * 40 + "0" * 60)
    close = arm(judged(base, column(tmp_path / "close" / NAME, "0" * 8 + "1" * 44 + "0" * 48)), "close")
    assert close.vs_baseline
    assert (close.vs_baseline.verdict, close.vs_baseline.artifact.delta) == ("undecided", pytest.approx(0.04))
    # (z + 0.84)^2 times the variance of a difference of one item, over the difference squared; z is t's at n - 1.
    variance = (20 + 2) / 102 - (4 / 102) ** 2
    exact = (t.isf(0.025, 99) + norm.isf(0.2)) ** 2 * variance * 100 / 102 / 0.04**2
    assert close.items_needed == pytest.approx(exact, abs=1)
    apart = arm(judged(base, column(tmp_path / "apart" / NAME, "1" * 90 + "0" * 10)), "apart")
    assert apart.items_needed is None


def test_another_baseline_turns_the_sign(tmp_path: Path) -> None:
    runs = [column(tmp_path / name / NAME, scores) for name, scores in (("a", "1" * 30), ("b", "1" * 18 + "0" * 12))]
    versus = [
        arm(judged(*runs, baseline=reference), other).vs_baseline for reference, other in (("a", "b"), ("b", "a"))
    ]
    assert [v and (v.verdict, v.artifact.delta) for v in versus] == [("harm", -0.4), ("gain", 0.4)]


def test_items_pair_by_what_they_are_and_not_by_their_number(tmp_path: Path) -> None:
    scores = "110100101001011"
    rows = [row(i, float(score)) for i, score in enumerate(scores)]
    moved = [{**one, "doc_id": (one["doc_id"] + 7) % len(rows)} for one in rows]
    versus = arm(judged(written(tmp_path / "a" / NAME, rows), written(tmp_path / "b" / NAME, moved)), "b").vs_baseline
    assert versus is not None
    # Every item has its own score again: no item is discordant.
    assert versus.artifact.p == 1
    assert versus.artifact.ci95 == pytest.approx((-0.2039, 0.2039), abs=1e-4)


def test_equal_rows_of_a_data_set_stay_items_of_their_own(tmp_path: Path) -> None:
    twice = [row(i, float(i % 2), doc_hash=f"hash{i // 2}", target="t") for i in range(20)]
    judgement = judged(written(tmp_path / "a" / NAME, twice), written(tmp_path / "b" / NAME, twice))
    assert judgement.n_test == 20


def test_files_without_hashes_pair_by_number(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row(i, 1.0).items() if k not in ("doc_hash", "metrics")} for i in range(12)]
    judgement = judged(written(tmp_path / "a" / NAME, rows), written(tmp_path / "b" / NAME, rows[::-1]))
    assert (judgement.n_test, judgement.metric) == (12, "acc")


def test_the_flexible_answer_decides_and_the_strict_one_has_to_agree(tmp_path: Path) -> None:
    def both(name: str, flexible: str, strict: str) -> Path:
        rows = [
            row(i, float(score), "exact_match", filter=label)
            for label, scores in (("strict-match", strict), ("flexible-extract", flexible))
            for i, score in enumerate(scores)
        ]
        return written(tmp_path / name / NAME, rows)

    base = both("base", "1" * 10 + "0" * 30, "1" * 5 + "0" * 35)
    learned = both("learned", "1" * 25 + "0" * 15, "1" * 25 + "0" * 15)
    sloppy = both("sloppy", "1" * 25 + "0" * 15, "1" * 4 + "0" * 36)
    judgement = judged(base, learned, sloppy)
    assert judgement.filter == "flexible-extract"
    verdicts = [v and v.verdict for v in (arm.vs_baseline for arm in judgement.arms)]
    assert verdicts == [None, "gain", "format_only"]
    assert arm(judged(base, sloppy, filter_name="strict-match"), "sloppy").accuracy == pytest.approx(0.1)


def test_nothing_above_the_trivial_answer_is_a_finding(tmp_path: Path) -> None:
    trivial = column(tmp_path / "trivial" / NAME, "0" * 20 + "1" * 20)
    base = column(tmp_path / "base" / NAME, "1" * 8 + "0" * 32)
    tuned = column(tmp_path / "tuned" / NAME, "1" * 20 + "0" * 20)
    versus = arm(judged(base, tuned, f"constant={trivial}"), "tuned").vs_baseline
    assert versus is not None
    assert (versus.verdict, versus.artifact.p_adjusted < 0.05) == ("floor", True)


def test_folders_are_judged_task_by_task(tmp_path: Path) -> None:
    for name, scores in (("base", "1100"), ("tuned", "1010")):
        column(tmp_path / name / "model" / NAME, scores)
        column(tmp_path / name / "model" / NAME.replace("science", "sums"), scores + "11")
        # An older run of a task: the newest is judged.
        column(tmp_path / name / "model" / NAME.replace("2026", "2025"), "0000000")
    column(tmp_path / "tuned" / "model" / NAME.replace("science", "extra"), "11")
    runs = parse_runs([str(tmp_path / "base"), str(tmp_path / "tuned")])
    done = judge(runs)
    assert {judgement.task: judgement.n_test for judgement in done.tasks} == {"science": 4, "sums": 6}
    assert done.warnings == (f"extra is not judged: {tmp_path / 'base'} has it not.",)
    assert [judgement.task for judgement in judge(runs, tasks=["sums"]).tasks] == ["sums"]


@pytest.mark.parametrize(
    ("paths", "arms"),
    [
        (["one/a.jsonl", "two/a.jsonl"], ["one", "two"]),
        (["one/a.jsonl", "one/b.jsonl"], ["a", "b"]),
        (["x=one/a.jsonl", "two/a.jsonl", "x=one/b.jsonl"], ["x", "two", "x"]),
        (["one", "lr=1/a.jsonl"], ["one", "lr=1"]),
    ],
)
def test_an_arm_is_called_as_it_is_told_apart(
    paths: list[str], arms: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("one/a.jsonl", "one/b.jsonl", "two/a.jsonl", "lr=1/a.jsonl"):
        written(tmp_path / path, [])
    assert [run.arm for run in parse_runs(paths)] == arms


# --- the harness itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """What the harness wrote of two models on questions of both kinds, and its own results."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("logged")
    tasks = [str(harness.science(folder, test=16)), str(harness.sums(folder, test=4))]
    runs = {}
    for name, family in (("base", "llama"), ("tuned", "qwen3")):
        make_model(family).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
        tracker = EvaluationTracker(output_path=str(folder / f"out-{name}"))
        done = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder / name), "dtype": "float32"},
            tasks=tasks,
            device="cpu",
            evaluation_tracker=tracker,
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
        samples = done.pop("samples")
        tracker.save_results_aggregated(results=done, samples=samples)
        for task, rows in samples.items():
            tracker.save_results_samples(task_name=task, samples=rows)
        runs[name] = (folder / f"out-{name}", done["results"])
    return runs


def test_what_the_harness_wrote_is_read(logged: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    (base, _), (tuned, _) = logged.values()
    judgements = judge(parse_runs([f"base={base}", f"tuned={tuned}"])).tasks
    said = {
        "science": ("acc_bytes", "none", 16),
        "sums": ("exact_match", "flexible-extract", 4),
    }
    assert {j.task: (j.metric, j.filter, j.n_test) for j in judgements} == said
    for judgement in judgements:
        for name, (_, results) in logged.items():
            expected = results[judgement.task][f"{judgement.metric},{judgement.filter}"]
            assert arm(judgement, name).accuracy == pytest.approx(expected)
    (science,) = (j for j in judgements if j.task == "science")
    assert arm(science, "base").accuracy != arm(science, "tuned").accuracy


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = column(tmp_path / "base" / NAME, "1" * 10 + "0" * 30)
    tuned = column(tmp_path / "tuned" / NAME, "1" * 25 + "0" * 15)
    shown = called(capsys, "judge", base, f"mine={tuned}")
    assert shown.code == 0, shown
    (line,) = (line for line in shown.out.splitlines() if "mine" in line)
    assert "62.5%" in line
    assert "+37.5" in line
    assert "gain" in line
    printed = json.loads(called(capsys, "judge", base, f"mine={tuned}", "--json", "--margin", "0.05").out)
    assert printed["schema"] == "finetrap/judge/1"
    assert printed["tasks"][0] == judged(base, f"mine={tuned}", margin=0.05).model_dump(mode="json")


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    base, tuned = (column(tmp_path / name / NAME, "1100") for name in ("base", "tuned"))
    asks = (
        "import sys; from finetrap.cli import app, call; "
        f"code = call(app, ['judge', {str(base)!r}, {str(tuned)!r}]); "
        "print(code, {'torch', 'transformers', 'datasets', 'lm_eval'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"


ONE = [row(i, 1.0) for i in range(4)]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ([], "is empty"),
        ([*ONE, ONE[2]], ":5: item 2 stands in line 3 already"),
        (ONE[:3], "of the 3 items of .* and 4 of .*, 1 stand in one file only"),
        ([{**one, "doc_hash": f"other{one['doc_id']}"} for one in ONE], "different tasks or splits"),
        ([{**one, "target": "9"} for one in ONE], "4 items of .* have another target .* '9' for '0'"),
        ([row(i, 1.0, "bleu") for i in range(4)], ":1: 'acc' is null"),
        ([row(i, 17.5) for i in range(4)], ":1: 'acc' is 17.5, and a verdict takes 0 or 1"),
        ([{"text": "no row of the harness"}], ":1: no row of"),
        ([{"doc_id": 1, "doc": {}, "target": "1"}], ":1: the row has no metric"),
        (["a text"], ":1: no row of"),
    ],
)
def test_a_file_that_does_not_pair_is_an_error(second: list[Any], says: str, tmp_path: Path) -> None:
    files = written(tmp_path / "a" / NAME, ONE), written(tmp_path / "b" / NAME, second)
    with pytest.raises(StudyError, match=says):
        judged(*files)


def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut = (written(tmp_path / name / NAME, ONE) for name in ("a", "b"))
    cut.write_text(cut.read_text()[:-20])
    done = called(capsys, "judge", whole, cut)
    assert (done.code, done.out) == (2, "")
    assert f"{cut}:4: not JSON" in done.err


@pytest.mark.parametrize(
    ("runs", "options", "says"),
    [
        (["a"], {}, "nothing to compare 'a' with"),
        (["a", "a"], {}, "given twice"),
        (["a", "nowhere"], {}, "no file or folder nowhere"),
        (["a", "."], {}, "several models"),
        (["a", "bare"], {}, "no samples_TASK_DATE.jsonl"),
        (["a", "other"], {}, "different tasks. a: science; other: sums"),
        (["a", "b"], {"baseline": "c"}, "unknown arm 'c'"),
        (["a", "constant=b"], {"baseline": "constant"}, "the trivial arm"),
        (["a", "b"], {"metric": "exact_match"}, "unknown metric 'exact_match'"),
        (["a", "b"], {"filter_name": "strict-match"}, "unknown filter 'strict-match'"),
        (["a", "b"], {"tasks": ["sums"]}, "unknown task 'sums'"),
        (["a", "other", "renamed.jsonl"], {}, "of which task is it, science or sums"),
    ],
)
def test_runs_that_cannot_be_judged_are_an_error(
    runs: list[str], options: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        written(tmp_path / name / NAME, ONE)
    written(tmp_path / "other" / NAME.replace("science", "sums"), ONE)
    written(tmp_path / "renamed.jsonl", ONE)
    (tmp_path / "bare").mkdir()
    with pytest.raises(StudyError, match=says):
        judged(*runs, **options)
