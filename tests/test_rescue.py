"""Between two models, general text in training, and arms that are tried again because they do harm."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from statsmodels.stats.multitest import multipletests
from support import called, contents, rows_in, trial_folder, written_at
from tiny import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from finetrap.config import Study
from finetrap.errors import StudyError
from finetrap.listing import where_to_find
from finetrap.method import build, complete_settings
from finetrap.plan import load_tasks
from finetrap.records import ModelRecord, Trial
from finetrap.replay import general_texts, mixed_in, untested
from finetrap.rescue import conclusions, rescue_arms, rescues_of
from finetrap.results import ArmResult, Results, Verdict
from finetrap.rows.duplicates import normalise, sample
from finetrap.store import Store
from finetrap.task import Example, Split, Task, get_task, task
from finetrap.trial import interpolate

pytestmark = pytest.mark.usefixtures("undrawn")

WORDS = ("red", "green", "blue", "grey", "pink", "black", "white", "brown")


def _colours(split: Split) -> tuple[Example, ...]:
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]
    chosen = pairs[:36] if split == "train" else pairs[36:]
    return tuple(Example(f"{split}-{a}-{b}", f"Not {a} but {b}:", "", "0", (b, a)) for a, b in chosen)


@pytest.fixture(autouse=True, scope="module")
def colours() -> Iterator[None]:
    """A task of 36 train and 20 test rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            task._entries,
            "colours",
            lambda: Task(name="colours", summary="", kind="choice", license="", load=_colours),
        )
        yield


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny model that has read some text, so that there is something to forget."""
    folder = tmp_path_factory.mktemp("models") / "reader"
    model = make_model(initializer_range=0.05).train()
    text = torch.tensor(tiny_tokenizer(" ".join(general_texts()[-100:]))["input_ids"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        starts = torch.randint(len(text) - 64, (16,), generator=generator).tolist()
        ids = torch.stack([text[start : start + 64] for start in starts])
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def study(model: Path, *, arms: list[str], **settings: Any) -> Study:
    values = {
        "models": str(model),
        "tasks": "colours",
        "arms": arms,
        "retention": ["wikitext2"],
        "limit_retention": 12,
        "dtype": "float32",
        "device": "cpu",
    }
    return Study.model_validate({**values, **settings})


# --- between the untouched model and an arm --------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_interpolation_is_the_weighted_average_of_each_weight(weight: float) -> None:
    base, tuned = make_model(), make_model(initializer_range=0.3)
    by_hand = {k: (1 - weight) * base.state_dict()[k] + weight * v.clone() for k, v in tuned.state_dict().items()}
    between = interpolate(base, tuned, weight).state_dict()
    for name, value in by_hand.items():
        torch.testing.assert_close(between[name], value, rtol=0, atol=1e-7 if 0 < weight < 1 else 0)


def test_a_head_that_is_tied_in_one_model_alone_begins_at_the_embedding() -> None:
    base, tuned = make_model("llama-tied"), make_model("llama-tied")
    tuned.lm_head.weight = torch.nn.Parameter(tuned.lm_head.weight.detach() + 1)
    tuned.config.tie_word_embeddings = False
    between = interpolate(base, tuned, 0.25)
    torch.testing.assert_close(between.lm_head.weight, base.lm_head.weight + 0.25)
    assert torch.equal(between.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_nothing_lies_between_models_of_different_shapes() -> None:
    with pytest.raises(StudyError, match="differ in name or shape"):
        interpolate(make_model(), make_model(intermediate_size=48), 0.5)


@pytest.fixture(scope="module")
def between(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full and a LoRA arm, and what lies between each and the untouched model, named before it."""
    out = tmp_path_factory.mktemp("between") / "out"
    parts = [f"{of}{i}=interpolated:of={of},weight={w}" for of in ("full", "lora") for i, w in enumerate((0, 0.5, 1))]
    results = study(
        reader, arms=[*parts, "full:learning_rate=1e-2", "lora:learning_rate=1e-1"], keep="all", retention=[]
    ).run(out)
    assert not results.failures
    return out


def loglikelihoods(out: Path, arm: str) -> list[object]:
    """Of each choice of each item, as the arm's evaluation kept them."""
    (rows,) = (rows for key, rows in rows_in(out).items() if f"--{arm}--" in key)
    return [row["loglikelihoods"] for row in rows]


@pytest.mark.parametrize("of", ["full", "lora"])
def test_the_ends_are_the_untouched_model_and_the_arm_itself(between: Path, of: str) -> None:
    assert loglikelihoods(between, f"{of}0") == loglikelihoods(between, "zero_shot")
    assert loglikelihoods(between, f"{of}2") == loglikelihoods(between, of)
    assert loglikelihoods(between, f"{of}1") not in (loglikelihoods(between, of), loglikelihoods(between, "zero_shot"))


@pytest.mark.parametrize("of", ["full", "lora"])
def test_half_way_answers_as_the_average_of_the_two_models_files(
    between: Path, reader: Path, tiny_tokenizer: PreTrainedTokenizerFast, of: str
) -> None:
    artifact = trial_folder(between, of) / "artifact"
    base = AutoModelForCausalLM.from_pretrained(reader)
    if of == "lora":
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(reader), artifact).merge_and_unload()
    else:
        tuned = AutoModelForCausalLM.from_pretrained(artifact)
    tuned.load_state_dict({k: (v + tuned.state_dict()[k]) / 2 for k, v in base.state_dict().items()})
    (example, *_) = sample(_colours("test"), None)
    prompt = tiny_tokenizer(example.question)["input_ids"]
    for choice, value in zip(example.choices, loglikelihoods(between, f"{of}1")[0], strict=True):
        ids = tiny_tokenizer(f"{example.question} {choice}")["input_ids"]
        with torch.no_grad():
            logs = tuned(input_ids=torch.tensor([ids])).logits.log_softmax(dim=-1)[0]
        by_hand = sum(float(logs[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
        assert value == pytest.approx(by_hand, abs=1e-4)


def test_what_goes_on_from_an_arm_comes_after_it_and_holds_its_training_key(between: Path) -> None:
    plan = Store(between).plan()
    by_arm = {p.trial.arm: p.trial for p in plan.planned}
    names = list(by_arm)
    for of in ("full", "lora"):
        for i in range(3):
            assert by_arm[f"{of}{i}"].parent == by_arm[of].training_key
            assert names.index(f"{of}{i}") > names.index(of)
    assert len({trial.training_key for trial in by_arm.values()}) == len(by_arm)


def test_another_parent_is_another_trial() -> None:
    half = Trial(**TRIAL, method="interpolated", settings={"of": "full", "weight": 0.5}, parent="a")
    other = half.model_copy(update={"settings": {"of": "renamed", "weight": 0.5}})
    assert half.training_key == other.training_key
    assert half.model_copy(update={"parent": "b"}).training_key != half.training_key


def test_what_lies_between_can_be_shipped(between: Path, reader: Path) -> None:
    """Its weights are a model's folder of its own, and the command says where and how to load them."""
    results = Results.model_validate_json((between / "results.json").read_bytes())
    (undecided,) = results.recommendations
    chosen = results.model_copy(update={"recommendations": (undecided.model_copy(update={"method": "full1"}),)})
    artifact = trial_folder(between, "full1") / "artifact"
    assert f"The weights of 'full1' are in {artifact}" in where_to_find(chosen, between)
    base, tuned, half = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (reader, trial_folder(between, "full") / "artifact", artifact)
    )
    for name, value in half.items():
        torch.testing.assert_close(value, (base[name] + tuned[name]) / 2)
    assert AutoTokenizer.from_pretrained(artifact)("red")["input_ids"]


def test_what_costs_is_what_the_parent_cost(between: Path) -> None:
    results = Results.model_validate_json((between / "results.json").read_bytes())
    cost = {arm.arm: arm.cost.train_tokens for arm in results.arms}
    assert cost["full1"] == cost["full"] > 0
    assert cost["zero_shot"] == 0


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (["half=interpolated:of=full"], "of=full is no arm of the study that trains"),
        (["lora", "half=interpolated:of=zero_shot"], "there is: lora"),
        (["full", "a=interpolated:of=full", "b=interpolated:of=a"], "of=a is no arm"),
        (["full", "half=interpolated:of=full,weight=1.5"], "expected a number from 0 to 1"),
        (["half=interpolated"], "needs of"),
        (["full:replay=1"], "from 0 to below 1"),
    ],
)
def test_an_arm_that_cannot_be_says_why(arms: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=says):
        study(tmp_path, arms=arms)


def test_weights_that_are_gone_are_trained_again_and_a_checkpoint_is_a_parent_too(
    between: Path, reader: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    study(reader, arms=["full"], keep="none", retention=[]).run(out)
    parent = trial_folder(out, "full")
    assert not (parent / "artifact").exists()
    before, trained = loglikelihoods(out, "full"), written_at(out, "training.json")
    mine = trial_folder(between, "lora") / "artifact"
    arms = ["full", "half=interpolated:of=full", f"mine={mine}", "mine_half=interpolated:of=mine"]
    results = study(reader, arms=arms, keep="none", retention=[]).run(out)
    assert not results.failures
    assert written_at(out, "training.json") != trained
    assert loglikelihoods(out, "full") == before
    assert loglikelihoods(out, "half") != before
    assert not list(out.glob("trials/*/artifact"))
    assert loglikelihoods(out, "mine_half") == loglikelihoods(between, "lora1")


# --- keys ------------------------------------------------------------------------------------------------------------

TRIAL: dict[str, Any] = {
    "model": ModelRecord(name="tiny", fingerprint="f" * 64, quantisation=None, parameters=10, aligned=True, chat=True),
    "task": "arc_easy",
    "task_version": 1,
    "arm": "full",
    "seed": 0,
    "dtype": "float32",
    "train_items": "a",
    "validation_items": "b",
}


def test_trials_from_before_replay_keep_their_keys() -> None:
    settings = {
        "learning_rate": 5e-5,
        "epochs": 1,
        "batch_size": 16,
        "warmup": 0.1,
        "weight_decay": 0.0,
        "clip": 1.0,
        "replay": 0.0,
    }
    trial = Trial(**TRIAL, method="full", settings=settings, protocol=2)
    # Computed by commit c76fd2b, which knew neither `replay` nor `parent`.
    assert trial.training_key == "2d939dd0b40a5d3628dabd8d2b8defab2924ce9e0d8da3ebcd97916aacb03fcf"
    assert trial.model_copy(update={"replayed": "c"}).training_key != trial.training_key


# --- general text in training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "share", "texts"), [(90, 0.1, 10), (34, 0.5, 34), (9, 0.0, 0), (3000, 0.5, 3000)])
def test_general_text_is_its_share_of_all_rows(rows: int, share: float, texts: int) -> None:
    mixed = mixed_in(general_texts(), rows, share, seed=0)
    assert len(mixed) == texts
    counts = Counter(mixed)
    assert not counts or max(counts.values()) - min(counts.values()) <= (0 if texts % 1000 == 0 else 1)


def test_a_seed_draws_the_same_texts_again_and_another_one_others() -> None:
    assert mixed_in(general_texts(), 90, 0.1, seed=1) == mixed_in(general_texts(), 90, 0.1, seed=1)
    assert set(mixed_in(general_texts(), 90, 0.1, seed=1)) != set(mixed_in(general_texts(), 90, 0.1, seed=2))


def test_a_text_that_is_tested_is_never_trained_on() -> None:
    tested = [
        Example(str(i), f"Passage: {text.upper()}\nQuestion?", "") for i, text in enumerate(general_texts()[:900])
    ]
    assert untested(tested) == general_texts()[900:]


def test_no_text_shares_eight_words_with_what_the_package_tests_on() -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = normalise(text).split()
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    texts = set().union(*map(runs, general_texts()))
    for name in ("wikitext2", "hellaswag", "arc_easy", "gsm8k", "svamp"):
        for example in get_task(name).load("test"):
            assert not texts & runs(" ".join([example.question, *example.choices])), example.id


# --- rescue ----------------------------------------------------------------------------------------------------------


class Rescued(NamedTuple):
    """A study of an arm that forgets, before its rescue and after."""

    study: Study
    folder: Path
    before: Results
    after: Results

    def arm(self, name: str) -> ArmResult:
        return next(arm for arm in self.after.arms if arm.arm == name)


@pytest.fixture(scope="module")
def rescued(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Rescued:
    folder = tmp_path_factory.mktemp("rescued") / "out"
    arms = ["careless=full:learning_rate=3e-2"]
    before = study(reader, arms=arms, keep="all").run(folder)
    rescuing = study(reader, arms=arms, keep="all", rescue=True)
    return Rescued(rescuing, folder, before, rescuing.run(folder))


def test_an_arm_that_forgets_gets_its_rescue_arms(rescued: Rescued) -> None:
    assert not rescued.before.recommendations[0].rescues
    assert {arm.arm: arm.rescue_of for arm in rescued.after.arms if arm.rescue_of} == {
        "careless+half": "careless",
        "careless+lower": "careless",
        "careless+replay": "careless",
    }
    assert rescued.arm("careless+lower").hyperparameters["learning_rate"] == pytest.approx(3e-3)
    assert rescued.arm("careless+replay").hyperparameters["replay"] == 0.1
    assert not rescued.after.failures


def test_the_first_verdicts_stay_as_they_were(rescued: Rescued) -> None:
    assert [arm for arm in rescued.after.arms if arm.rescue_of is None] == list(rescued.before.arms)


def test_rescue_arms_are_a_family_of_their_own(rescued: Rescued) -> None:
    rescues = [arm.vs_zero_shot.artifact for arm in rescued.after.arms if arm.rescue_of and arm.vs_zero_shot]
    _, adjusted, _, _ = multipletests([a.p for a in rescues], method="holm")
    assert len(rescues) == 3
    assert [a.p_adjusted for a in rescues] == pytest.approx(list(adjusted))


def test_the_recommendation_says_that_the_rate_did_the_harm(rescued: Rescued) -> None:
    (recommendation,) = rescued.after.recommendations
    assert {rescue.arm: rescue.removes for rescue in recommendation.rescues} == {
        "careless+half": False,
        "careless+lower": True,
        "careless+replay": False,
    }
    assert any(line.startswith("'careless+lower' removes the harm of 'careless'") for line in recommendation.why)
    assert "careless+lower" not in recommendation.dropped
    assert set(recommendation.dropped) == {"careless", "careless+half", "careless+replay"}


def test_general_text_is_read_in_training(rescued: Rescued, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    items = load_tasks(rescued.study)["colours"]
    texts = items.replayed(build("full", complete_settings("full", {"replay": 0.1})), 0)
    assert len(texts) == round(len(items.splits.train) / 9)
    more = rescued.arm("careless+replay").cost.train_tokens - rescued.arm("careless").cost.train_tokens
    # Each after the token that begins a text.
    assert more == sum(1 + len(tiny_tokenizer(text)["input_ids"]) for text in texts)


def test_a_second_run_does_nothing_and_answers_the_same(rescued: Rescued) -> None:
    before = contents(rescued.folder / "trials")
    assert rescued.study.run(rescued.folder) == rescued.after
    assert contents(rescued.folder / "trials") == before


def verdict(arm: ArmResult, *, task: Verdict, low: float, retention: Verdict) -> ArmResult:
    """The arm, had the study found this of it."""
    assert arm.vs_zero_shot is not None
    assert arm.retention is not None
    artifact = arm.vs_zero_shot.artifact.model_copy(update={"ci95_adjusted": (low, 0.3)})
    versus = arm.vs_zero_shot.model_copy(update={"verdict": task, "artifact": artifact})
    kept = arm.retention.model_copy(update={"verdict": retention})
    return arm.model_copy(update={"vs_zero_shot": versus, "retention": kept})


@pytest.mark.parametrize(
    ("harm", "now", "removes"),
    [
        (("harm", "undecided"), ("gain", 0.01, "undecided"), True),
        (("harm", "undecided"), ("undecided", -0.01, "undecided"), True),
        (("harm", "undecided"), ("undecided", -0.03, "no_difference"), None),
        (("harm", "undecided"), ("gain", 0.01, "harm"), False),
        (("harm", "harm"), ("gain", 0.01, "undecided"), None),
        (("harm", "harm"), ("gain", 0.01, "no_difference"), True),
        (("undecided", "harm"), ("undecided", -0.3, "no_difference"), True),
        (("undecided", "harm"), ("undecided", -0.01, "harm"), False),
        (("undecided", "harm"), ("harm", -0.3, "no_difference"), False),
    ],
)
def test_harm_is_removed_where_it_is_ruled_out(
    rescued: Rescued, harm: tuple[Verdict, Verdict], now: tuple[Verdict, float, Verdict], removes: bool | None
) -> None:
    parent = verdict(rescued.arm("careless"), task=harm[0], low=-0.5, retention=harm[1])
    arm = verdict(rescued.arm("careless+lower"), task=now[0], low=now[1], retention=now[2])
    (found,) = rescues_of([parent, arm], rescued.study)
    assert found.removes is removes
    (line,) = conclusions([found], [parent, arm])
    assert ("the learning rate did the harm" in line) == (removes is True)
    assert ("a lower learning rate does harm too" in line) == (removes is False)


@pytest.mark.parametrize(
    ("lost", "now", "removes"),
    [
        (-0.4, (-0.3, 0.1), None),  # a loss in chat is not ruled out
        (-0.4, (-0.01, 0.1), True),
        (-0.01, (-0.3, 0.1), True),  # there was none beyond the tolerance
        (-0.4, None, None),
        (None, (-0.3, 0.1), True),
    ],
)
def test_a_loss_in_chat_is_removed_where_it_is_ruled_out(
    rescued: Rescued, lost: float | None, now: tuple[float, float] | None, removes: bool | None
) -> None:
    def in_chat(arm: ArmResult, field: str, value: object) -> ArmResult:
        assert arm.retention is not None
        return arm.model_copy(update={"retention": arm.retention.model_copy(update={field: value})})

    parent = verdict(rescued.arm("careless"), task="gain", low=0.1, retention="harm")
    arm = verdict(rescued.arm("careless+lower"), task="gain", low=0.1, retention="no_difference")
    (found,) = rescues_of(
        [in_chat(parent, "chat_format_delta", lost), in_chat(arm, "chat_format_ci95", now)], rescued.study
    )
    assert found.removes is removes


def test_what_does_no_harm_is_not_rescued(rescued: Rescued) -> None:
    planned = [p for p in Store(rescued.folder).plan().planned if p.rescue_of is None]
    harmless = verdict(rescued.arm("careless"), task="gain", low=0.1, retention="undecided")
    assert rescue_arms([harmless], planned) == {}
    assert set(rescue_arms([rescued.arm("careless")], planned)) == {"careless"}


def test_the_rescues_of_a_tuned_arm_take_their_best_checkpoint_as_it_does(rescued: Rescued) -> None:
    planned = [p for p in Store(rescued.folder).plan().planned if p.rescue_of is None]
    tuned = [p.model_copy(update={"trial": p.trial.model_copy(update={"best_checkpoint": True})}) for p in planned]
    for trials, best in ((planned, False), (tuned, True)):
        half, lower, replay = rescue_arms([rescued.arm("careless")], trials)["careless"]
        assert (half.tunes, lower.tunes is not None, replay.tunes is not None) == (None, best, best)


def test_the_command_line_has_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    done = called(capsys, "compare", "--help")
    assert "--rescue" in done.out
