"""Several answers drawn of each test item: what is asked, written and said of them."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import norm, t
from support import called, page_of, rows_in, trial_folder

from finetrap import stats
from finetrap.config import ModelSpec, Study
from finetrap.data import Encoder, load_test
from finetrap.engine.generate import Sampling, generate_samples
from finetrap.errors import StudyError
from finetrap.models import LoadedModel, find
from finetrap.plan import load_tasks, plan
from finetrap.records import Evaluation, ItemRow, Sampled
from finetrap.results import Results
from finetrap.retention import scores_of
from finetrap.versus import Scored, artifact_of, versus_zero_shot

pytestmark = pytest.mark.usefixtures("undrawn")

N, SAMPLES = 12, 3
TASK = {
    "score": "regex:([ae])",
    "prompt_template": "{prompt}",
    "max_new_tokens": 30,
    "name": "letters",
}


@pytest.fixture(scope="module")
def study(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that drew three answers of each item; a random model is right by chance."""
    folder = tmp_path_factory.mktemp("samples")
    for name, count in (("train", 40), ("test", N)):
        rows = [{"prompt": f"{name} {i * i}?", "answer": "ae"[i % 2]} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Study(
        models=str(tiny_folder),
        tasks={"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"), **TASK},
        arms=["few_shot:shots=1"],
        seeds=[5],
        samples=SAMPLES,
        temperature=0.5,
        retention=[],
        dtype="float32",
        device="cpu",
    ).run(folder / "out", progress=False)
    return folder / "out"


def rows_of(study: Path, arm: str) -> list[dict[str, Any]]:
    name = trial_folder(study, arm).name
    (rows,) = (rows for key, rows in rows_in(study).items() if key.startswith(f"trials/{name}/target--"))
    return [{"output": "", "output_tokens": 0, **row} for row in rows]  # a row leaves out what is empty


def results_of(study: Path) -> Results:
    return Results.model_validate_json((study / "results.json").read_text())


# --- what is asked and written ---------------------------------------------------------------------------------------


def test_each_item_has_a_row_for_each_of_its_answers(study: Path) -> None:
    rows = rows_of(study, "few_shot")
    assert [row["sample"] for row in rows] == list(range(SAMPLES)) * N
    assert [len({row["prompt"] for row in drawn}) for _, drawn in groupby(rows, lambda row: row["id"])] == [1] * N
    assert len({row["output"] for row in rows}) > N
    # The trivial answer is not drawn.
    assert [row.get("sample") for row in rows_of(study, "constant")] == [None] * N


def test_targets_are_drawn_and_what_is_forgotten_is_not(study: Path, tiny_folder: Path) -> None:
    asked = Study(
        models=str(tiny_folder),
        tasks={"train": str(study.parent / "train.jsonl"), "test": str(study.parent / "test.jsonl"), **TASK},
        arms=["few_shot:shots=1"],
        samples=2,
        retention=["ifeval", "hellaswag"],
        out_of_distribution=["svamp"],
    )
    planned = plan(asked, [find(ModelSpec(name=str(tiny_folder)))], load_tasks(asked), dtype="float32")
    drawn = {(p.trial.arm, e.task): e.sampled is not None for p in planned for e in p.evaluations}
    retention = {("zero_shot", "ifeval"): False, ("zero_shot", "hellaswag"): False}
    by_arm = {"constant": False, "zero_shot": True, "few_shot": True}
    assert drawn == {**{(arm, t): yes for arm, yes in by_arm.items() for t in ("letters", "svamp")}, **retention}


@pytest.mark.parametrize(("arm", "seed"), [("zero_shot", 0), ("few_shot", 5)])
def test_the_seed_of_a_trial_decides_what_is_drawn(study: Path, tiny_loaded: LoadedModel, arm: str, seed: int) -> None:
    asked = Study.model_validate(yaml.safe_load((study / "study.yaml").read_text()))
    task = asked.task("letters")
    shots = results_of(study).arms[-1].shots.get(str(seed), ())
    solved = {example.id: example for example in task.load("train")}
    encoder = Encoder(tiny_loaded.tokenizer, task, chat=True)
    prompts = [encoder.prompt(e, tuple(solved[id] for id in shots)) for e in load_test(task).examples]
    drawn = generate_samples(
        tiny_loaded.model,
        tiny_loaded.tokenizer,
        [prompt.ids for prompt in prompts],
        Sampling(SAMPLES, 0.5, seed),
        max_new_tokens=30,
        stop_tokens={encoder.end_of_turn, tiny_loaded.tokenizer.eos_token_id},
    )
    assert [row["output"] for row in rows_of(study, arm)] == [answer.text for answers in drawn for answer in answers]


def test_accuracy_is_the_mean_of_the_items_shares(study: Path) -> None:
    results = results_of(study)
    constant, zero_shot, few_shot = results.arms
    assert (constant.sampled, zero_shot.sampled) == (None, Sampled(samples=SAMPLES, temperature=0.5))
    for arm in (zero_shot, few_shot):
        rows = rows_of(study, arm.arm)
        shares = [np.mean([row["correct"] for row in drawn]) for _, drawn in groupby(rows, lambda row: row["id"])]
        assert {0, 1} != set(shares)
        assert arm.accuracy == pytest.approx(np.mean(shares))
        assert (arm.n_test, sum(arm.outcomes.values())) == (N, N * SAMPLES)
        # A query is one answer, and its prompt was read once for three of them.
        assert arm.cost.output_tokens_per_query == pytest.approx(np.mean([row["output_tokens"] for row in rows]))
        assert arm.cost.prompt_tokens_per_query == pytest.approx(np.mean([row["prompt_tokens"] for row in rows]))
    assert few_shot.vs_zero_shot is not None
    assert few_shot.vs_zero_shot.artifact.delta == pytest.approx(few_shot.accuracy - zero_shot.accuracy)


def test_reports_say_that_answers_were_drawn_and_show_each(study: Path) -> None:
    said = "mean of 3 sampled answers an item, temperature 0.5"
    assert said in (study / "report.md").read_text()
    page = page_of(study)
    assert any(said in words for words in page.words)
    (name,) = (attributes["data-items"] for _, attributes in page.tags if "data-items" in attributes)
    items = page.items(name.removeprefix("items-"))["items"]
    zero_shot = [row["output"] for row in rows_of(study, "zero_shot")]
    assert [item["answers"][1][2] for item in items] == zero_shot
    assert items[1]["id"].endswith(", answer 2 of 3")
    trivial = [row["output"] for row in rows_of(study, "constant") for _ in range(SAMPLES)]
    assert [item["answers"][0][2] for item in items] == trivial
    assert page.values("data-unit") == ["answers"]


def test_the_command_line_asks_for_samples(
    study: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Study] = []
    monkeypatch.setattr("finetrap.cli.compare.run_or_plan", lambda study, *_, **__: asked.append(study))
    done = called(capsys, "compare", "--model", tiny_folder, "--task", "gsm8k", "--samples", 4)
    assert (done.code, [made.sampled for made in asked]) == (0, [Sampled(samples=4, temperature=1.0)])


# --- what names it ---------------------------------------------------------------------------------------------------


def evaluation(sampled: Sampled | None = None) -> Evaluation:
    return Evaluation(
        purpose="target",
        task="gsm8k",
        task_version=1,
        kind="generate",
        items="i",
        n=10,
        chat=True,
        shots=("a",),
        max_new_tokens=7,
        sampled=sampled,
    )


def test_a_likeliest_answer_is_recorded_as_before_there_were_others() -> None:
    # By the code of the version before.
    assert evaluation().key("t") == "4ddff9ae69ca397e6c4b45d58f806d92025218d4fbaedb128c28bd2cb6c20d7e"
    assert "sampled" not in json.loads(evaluation().model_dump_json())
    row = ItemRow(id="1", prompt="p", correct=True)
    assert json.loads(row.model_dump_json(exclude_defaults=True)) == {"id": "1", "prompt": "p", "correct": True}
    assert Evaluation.model_validate_json(evaluation().model_dump_json()) == evaluation()


def test_how_answers_are_drawn_is_in_the_key() -> None:
    every = [None, *(Sampled(samples=k, temperature=t) for k in (1, 2) for t in (0.5, 1.0))]
    assert len({evaluation(sampled).key("t") for sampled in every}) == len(every)
    read = Evaluation.model_validate_json(evaluation(every[-1]).model_dump_json())
    assert read.sampled == every[-1]


def test_one_answer_and_several_are_said_in_words() -> None:
    assert str(Sampled(samples=1, temperature=0.7)) == "one sampled answer an item, temperature 0.7"
    assert str(Sampled(samples=8, temperature=1.0)) == "mean of 8 sampled answers an item, temperature 1"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": "arc_easy", "samples": 4}, "nothing is drawn of arc_easy"),
        ({"tasks": "gsm8k", "temperature": 0.7}, "say how many with samples"),
        ({"tasks": "gsm8k", "samples": 0}, "'samples': input should be greater than or equal to 1, got 0"),
        ({"tasks": "gsm8k", "samples": 2, "temperature": 0}, "'temperature': input should be greater than 0, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(StudyError, match=says):
        Study.model_validate({"models": "m", **settings})


# --- what is concluded -----------------------------------------------------------------------------------------------


def test_an_items_score_is_the_share_of_its_answers() -> None:
    right = [(True, False, True), (False, False, False), (True, True, True)]
    rows = [
        ItemRow(id=str(i), sample=j, prompt="p", correct=r, strict=not r)
        for i, of_item in enumerate(right)
        for j, r in enumerate(of_item)
    ]
    assert scores_of(rows).tolist() == pytest.approx([2 / 3, 0, 1])
    assert scores_of(rows, "strict").tolist() == pytest.approx([1 / 3, 1, 0])


def shares(accuracy: float, *, n: int = 400, samples: int = 4, seed: int = 0) -> stats.Scores:
    """Shares of right answers to items of differing difficulty."""
    generator = np.random.default_rng(seed)
    chance = generator.beta(2 * accuracy, 2 * (1 - accuracy), n)
    drawn: stats.Scores = generator.binomial(samples, chance) / samples
    return drawn


def test_shares_are_compared_by_the_interval_with_two_pseudo_items() -> None:
    a, b = shares(0.5), shares(0.4, seed=1)
    added = np.concatenate([a - b, [1.0, -1.0]])  # Bonett and Price (2012)
    half = t.isf(0.025, len(a) - 1) * added.std() / np.sqrt(len(added))
    found = artifact_of(a, b)
    assert found.ci95 == pytest.approx((added.mean() - half, added.mean() + half))
    assert found.delta == pytest.approx((a - b).mean())
    assert found.p == pytest.approx(2 * t.sf(abs(added.mean()) * np.sqrt(len(added)) / added.std(), len(a) - 1))


def test_zeros_and_ones_are_compared_by_mcnemar_and_tango() -> None:
    a, b = (np.arange(50) < 12).astype(float), np.isin(np.arange(50), (48, 49)).astype(float)
    found = artifact_of(a, b)
    assert found.p == pytest.approx(2 * norm.sf(10 / np.sqrt(14)))  # 12 items against 2
    assert found.ci95 == stats.tango(12, 2, 50)
    with pytest.raises(ValueError, match="fractions of items cannot be counted"):
        stats.discordant(a, b / 2)


def test_shares_above_the_trivial_answer_beat_it_one_sided() -> None:
    trivial = np.zeros(100)
    one_sided = [
        stats.difference(np.full(100, value), trivial).centre - norm.isf(0.05) * 0.02 > 0 for value in (0.0, 0.25)
    ]
    assert [stats.beats(np.full(100, value), trivial) for value in (0.0, 0.25)] == one_sided == [False, True]
    assert not stats.beats(trivial, np.full(100, 0.25))


def test_the_interval_of_an_accuracy_knows_what_shares_vary_by() -> None:
    scores = shares(0.5, samples=16)
    low, high = stats.accuracy_interval(scores[:, None], None)
    accuracy, n = scores.mean(), len(scores)
    added = np.concatenate([scores, [1.0, 0.0]])
    c = t.isf(0.025, n - 1) ** 2 * added.var() / (n + 2) / (added.mean() * (1 - added.mean()))
    # The ends are where (x - accuracy)^2 = c x (1 - x).
    assert [low, high] == pytest.approx(sorted(np.roots([1 + c, -2 * accuracy - c, accuracy**2]).real))
    assert high - low < np.diff(stats.wilson(accuracy, n))


def scored(table: stats.Scores, **by_rule: stats.Scores) -> Scored:
    return Scored(table[:, None], {rule: other[:, None] for rule, other in by_rule.items()})


def same(table: stats.Scores) -> Scored:
    return scored(table, strict=table, anywhere=table)


def test_a_gain_of_shares_is_one_only_where_every_rule_shows_it() -> None:
    zero, better = shares(0.3), shares(0.5, seed=1)
    arms = {
        "constant": same(np.zeros(400)),
        "zero_shot": same(zero),
        "solver": same(better),
        "formatter": scored(better, strict=better, anywhere=zero),
    }
    found = versus_zero_shot(arms, margin=0.02)
    assert {name: versus.verdict for name, versus in found.items()} == {"solver": "gain", "formatter": "format_only"}
    assert found["solver"].artifact.ci95_adjusted[0] > 0


def test_rounding_of_thirds_is_no_difference_by_a_rule() -> None:
    # The same sum in another order, which floating point tells apart.
    thirds = np.random.default_rng(0).integers(0, 4, 400) / 3
    mixed = np.random.default_rng(1).permutation(thirds)
    one, other = sorted((thirds, mixed), key=np.sum)
    assert one.sum() < other.sum()
    arms = {
        "constant": same(np.zeros(400)),
        "zero_shot": scored(shares(0.3), strict=one, anywhere=one),
        "formatter": scored(shares(0.5, seed=1), strict=other, anywhere=other),
    }
    assert versus_zero_shot(arms, margin=0.02)["formatter"].verdict == "format_only"


def test_equal_shares_are_no_difference_and_none_left_is_the_ceiling() -> None:
    equal = {"constant": same(np.zeros(4000)), "zero_shot": same(shares(0.5, n=4000, samples=64))}
    equal["arm"] = equal["zero_shot"]
    assert versus_zero_shot(equal, margin=0.02)["arm"].verdict == "no_difference"
    full = np.where(np.arange(400) < 4, 0.75, 1.0)
    above = {"constant": same(np.zeros(400)), "zero_shot": same(full), "arm": same(np.ones(400))}
    assert versus_zero_shot(above, margin=0.001)["arm"].verdict == "ceiling"


def test_shares_with_seeds_are_recipes() -> None:
    seeds = np.stack([shares(0.5, seed=1)] * 5, axis=1)
    seeds[:20] = np.random.default_rng(0).integers(0, 5, (20, 5)) / 4
    arms = {"constant": same(np.zeros(400)), "zero_shot": same(shares(0.3)), "arm": Scored(seeds)}
    found = versus_zero_shot(arms, margin=0.02)["arm"]
    assert found.recipe is not None
    assert found.verdict == "gain"
    pool = stats.pool_seeds([seeds])
    assert found.recipe.ci95 == stats.difference(seeds, shares(0.3), pool).interval()
