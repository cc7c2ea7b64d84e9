"""Whole studies of a tiny random model on real data, end to end."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch
from support import called, contents, model_copy, rows_in, short_answers, study_file, trial_folder, written_at
from typer.main import get_command

import finetrap
from finetrap.cli import app
from finetrap.config import DEFAULT_ARMS, load_study
from finetrap.results import Results

pytestmark = pytest.mark.usefixtures("undrawn")

Ran = tuple[Path, Results]


@pytest.fixture(scope="module")
def wide(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for five solved word problems in bytes."""
    return model_copy(tiny_folder, tmp_path_factory.mktemp("models") / "wide", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def arc_easy(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The six default arms on ARC-Easy; every weight kept."""
    folder = tmp_path_factory.mktemp("arc_easy")
    study = load_study(study_file(folder, wide, arms=None, keep="all"))
    return folder / "out", study.run(folder / "out")


@pytest.fixture(scope="module")
def gsm8k(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The six default arms on GSM8K."""
    folder = tmp_path_factory.mktemp("gsm8k")
    study = load_study(study_file(folder, wide, arms=None, tasks=["gsm8k"], retention=["arc_easy", "wikitext2"]))
    with short_answers():
        return folder / "out", study.run(folder / "out")


@pytest.fixture(params=["arc_easy", "gsm8k"])
def ran(request: pytest.FixtureRequest) -> Ran:
    """Each of the two studies."""
    return request.getfixturevalue(request.param)


# --- all arms --------------------------------------------------------------------------------------------------------


def test_every_default_arm_has_a_result(ran: Ran) -> None:
    _, results = ran
    assert tuple(arm.arm for arm in results.arms) == DEFAULT_ARMS
    assert not results.failures
    assert {arm.n_test for arm in results.arms} == {10}


def test_every_arm_but_the_reference_stands_against_zero_shot(ran: Ran) -> None:
    _, results = ran
    compared = {arm.arm for arm in results.arms if arm.vs_zero_shot is not None}
    assert compared == {"few_shot", "full", "lora", "dora"}


def test_every_arm_that_reads_the_question_has_its_retention(ran: Ran) -> None:
    _, results = ran
    measured = {arm.arm: set(arm.retention.tasks) for arm in results.arms if arm.retention is not None}
    assert set(measured) == set(DEFAULT_ARMS) - {"constant"}
    assert len(set(map(frozenset, measured.values()))) == 1


def test_the_untouched_model_forgets_nothing(ran: Ran) -> None:
    _, results = ran
    zero_shot = next(arm for arm in results.arms if arm.arm == "zero_shot")
    assert zero_shot.retention is not None
    assert zero_shot.retention.bits_per_byte_delta == 0
    assert all(task.delta == 0 for task in zero_shot.retention.tasks.values())


def test_only_what_trains_costs_training(ran: Ran) -> None:
    _, results = ran
    trained = {arm.arm for arm in results.arms if arm.cost.trainable_params and arm.cost.train_tokens}
    assert trained == {"full", "lora", "dora"}
    assert {arm.arm for arm in results.arms if arm.cost.artifact_bytes} == trained


def test_accuracy_is_that_of_the_rows(ran: Ran) -> None:
    out, results = ran
    for arm in results.arms:
        (rows,) = (rows for key, rows in rows_in(out).items() if f"--{arm.arm}--" in key and "/target--" in key)
        assert arm.accuracy == pytest.approx(sum(row.get("correct", False) for row in rows) / 10)
        assert sum(arm.outcomes.values()) == 10


def test_results_follow_their_schema(ran: Ran) -> None:
    out, results = ran
    written = json.loads((out / "results.json").read_text())
    jsonschema.validate(written, Results.json_schema(), cls=jsonschema.Draft202012Validator)
    assert (out / "results.json").read_text() == results.to_json()


def test_results_are_derived_from_the_records_again(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = ran
    written = (out / "results.json").read_bytes()
    (out / "results.json").unlink()
    done = called(capsys, "report", out)
    assert done.code == 0
    assert (out / "results.json").read_bytes() == written
    assert "few_shot" in done.out


def test_a_second_run_does_nothing_and_answers_the_same(ran: Ran) -> None:
    out, results = ran
    before = contents(out / "trials")
    with short_answers():
        assert load_study(out.parent / "study.yaml").run(out) == results
    assert contents(out / "trials") == before


def test_shots_that_were_shown_are_in_the_record(ran: Ran) -> None:
    _, results = ran
    shots = {arm.arm: arm.shots for arm in results.arms if arm.shots}
    assert list(shots) == ["few_shot"]
    assert len(shots["few_shot"]["0"]) == 5


def test_no_training_item_is_a_test_item(ran: Ran) -> None:
    out, results = ran
    shown = {shot for arm in results.arms for shots in arm.shots.values() for shot in shots}
    tested = {row["id"] for key, rows in rows_in(out).items() if "/target--" in key for row in rows}
    assert not shown & tested


# --- the answer ------------------------------------------------------------------------------------------------------


def test_a_random_model_is_not_recommended_on_the_strength_of_noise(ran: Ran) -> None:
    _, results = ran
    (recommendation,) = results.recommend()
    assert recommendation.method in ("floor", "undecided")
    assert recommendation.next_step


def test_the_table_has_a_line_an_arm(ran: Ran) -> None:
    _, results = ran
    lines = results.table().splitlines()
    for arm in DEFAULT_ARMS:
        assert any(arm in line and "%" in line for line in lines)


def test_a_data_frame_has_a_row_an_arm(ran: Ran) -> None:
    _, results = ran
    frame = results.to_pandas()
    assert tuple(frame["arm"]) == DEFAULT_ARMS
    assert list(frame["accuracy"]) == [arm.accuracy for arm in results.arms]
    assert "cost.train_seconds" in frame.columns


def test_the_report_lies_in_the_folder(ran: Ran) -> None:
    out, results = ran
    assert results.report() == out / "report.html"
    for report in (results.report(), out / "report.md"):
        assert "few_shot" in report.read_text()


# --- artifacts -------------------------------------------------------------------------------------------------------


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(b"Question: why?")])).logits


@pytest.mark.parametrize("arm", ["lora", "dora"])
def test_an_adapter_loads_in_plain_peft_and_answers_as_its_arm(arc_easy: Ran, wide: Path, arm: str) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    artifact = trial_folder(arc_easy[0], arm) / "artifact"
    by_itself = AutoPeftModelForCausalLM.from_pretrained(str(artifact)).eval()
    base = AutoModelForCausalLM.from_pretrained(str(wide)).eval()
    before = logits(base)
    onto_base = PeftModel.from_pretrained(base, str(artifact)).eval()
    torch.testing.assert_close(logits(by_itself), logits(onto_base))
    assert not torch.allclose(logits(onto_base), before, atol=1e-4)


def test_a_whole_model_loads_in_plain_transformers_with_its_tokenizer(arc_easy: Ran) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    artifact = trial_folder(arc_easy[0], "full") / "artifact"
    tokenizer = AutoTokenizer.from_pretrained(str(artifact))
    assert tokenizer.decode(tokenizer("Hi")["input_ids"]) == "Hi"
    assert logits(AutoModelForCausalLM.from_pretrained(str(artifact)).eval()).isfinite().all()


@pytest.fixture(scope="module")
def checkpoints(arc_easy: Ran, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What that study trained, as checkpoints of the user's own."""
    folder = tmp_path_factory.mktemp("checkpoints")
    arms = [f"my_{arm}={trial_folder(arc_easy[0], arm) / 'artifact'}" for arm in ("full", "lora", "dora")]
    return folder / "out", load_study(study_file(folder, wide, arms=arms)).run(folder / "out")


@pytest.mark.parametrize("arm", ["full", "lora", "dora"])
def test_a_checkpoint_of_the_user_s_scores_as_the_arm_that_made_it(arc_easy: Ran, checkpoints: Ran, arm: str) -> None:
    trained, mine = (
        {key.split("/")[2].rpartition("--")[0]: rows for key, rows in rows_in(out).items() if f"{name}--" in key}
        for out, name in ((arc_easy[0], f"--{arm}"), (checkpoints[0], f"--my_{arm}"))
    )
    assert len(mine) == 3
    assert mine == trained


def test_a_checkpoint_of_the_user_s_costs_no_training(checkpoints: Ran) -> None:
    mine = [arm for arm in checkpoints[1].arms if arm.method == "checkpoint"]
    assert len(mine) == 3
    assert not any(arm.cost.train_tokens for arm in mine)


def test_a_report_needs_neither_the_checkpoints_nor_the_place_where_the_study_ran(
    arc_easy: Ran,
    wide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(trial_folder(arc_easy[0], "lora") / "artifact", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    path = study_file(tmp_path, wide, arms=["mine=mine"], retention=[])
    assert called(capsys, "run", path, "--out", "out").code == 0
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = called(capsys, "report", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert "mine" in done.out


def test_a_checkpoint_of_another_model_fails_its_arm_and_says_so(
    arc_easy: Ran, wide: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = tmp_path / "other"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(other)
    results = load_study(study_file(tmp_path, wide, arms=[f"mine={other}"], retention=[])).run(tmp_path / "out")
    assert "it is of another model" in results.failures[0].error


# --- the same study, asked for in other ways -------------------------------------------------------------------------


@pytest.mark.thorough
def test_what_compare_did_is_done_for_a_study_file_with_the_same_study(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--arm", "few_shot:shots=1", "--arm", "lora:rank=2", "--limit-train", 16, "--limit-test", 10]
    options += ["--dtype", "float32", "--device", "cpu", "--out", out]
    with short_answers():
        assert called(capsys, "compare", "--model", tiny_folder, "--task", "arc_easy", *options).code == 0
        before = contents(out / "trials")
        path = study_file(tmp_path, tiny_folder, arms=["few_shot:shots=1", "lora:rank=2"], limit_retention=None)
        assert called(capsys, "run", path, "--out", out).code == 0
    assert contents(out / "trials") == before
    assert len(rows_in(out)) == 12


def test_python_and_the_command_line_give_the_same_records(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, tiny_folder, retention=[])
    assert called(capsys, "run", path, "--out", tmp_path / "run").code == 0
    study = finetrap.Study(
        models=str(tiny_folder),
        tasks="arc_easy",
        arms="lora:rank=2",
        limit_train=16,
        limit_test=10,
        retention=(),
        dtype="float32",
        device="cpu",
    )
    results = study.run(tmp_path / "python")
    assert isinstance(results, finetrap.Results)
    assert rows_in(tmp_path / "python") == rows_in(tmp_path / "run")


def test_options_stand_in_for_what_the_file_says(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, tiny_folder, retention=[], arms=["lora"])
    options = ["--arm", "few_shot:shots=2", "--limit-test", 12, "--seeds", 2]
    done = called(capsys, "run", path, "--out", tmp_path / "out", "--json", *options)
    shown = {arm["arm"]: (arm["n_test"], arm["seeds"]) for arm in json.loads(done.out)["arms"]}
    assert shown == {"constant": (12, [0]), "zero_shot": (12, [0]), "few_shot": (12, [0, 1, 2, 3, 4])}


def test_the_default_folder_is_named_by_the_study(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = study_file(tmp_path, tiny_folder, retention=[], arms=["constant"], name="one/../two")
    assert called(capsys, "run", path).code == 0
    assert sorted(found.name for found in tmp_path.iterdir()) == ["finetrap-one-..-two", "study.yaml"]


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeded(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Two seeds of an arm that trains and of one that draws shots."""
    folder = tmp_path_factory.mktemp("seeded")
    arms = ["few_shot:shots=1", "lora:rank=2"]
    study = load_study(study_file(folder, tiny_folder, retention=[], arms=arms, seeds=2))
    return folder / "out", study.run(folder / "out")


def test_every_seed_is_a_trial_of_its_own(seeded: Ran) -> None:
    out, results = seeded
    assert {arm.arm: arm.seeds for arm in results.arms} == {
        "constant": (0,),
        "zero_shot": (0,),
        "few_shot": (0, 1, 2, 3, 4),
        "lora": (0, 1),
    }
    assert len(rows_in(out)) == 9


def test_accuracy_is_the_mean_over_seeds_and_items_are_counted_once(seeded: Ran) -> None:
    out, results = seeded
    lora = next(arm for arm in results.arms if arm.arm == "lora")
    rows = [row for key, found in rows_in(out).items() if "--lora--" in key for row in found]
    assert len(rows) == sum(lora.outcomes.values()) == 20
    assert lora.accuracy == pytest.approx(sum(bool(row.get("correct")) for row in rows) / 20)
    assert lora.n_test == 10


def test_another_seed_gives_another_model_and_the_same_seed_the_same(
    seeded: Ran, tiny_folder: Path, tmp_path: Path
) -> None:
    path = study_file(tmp_path, tiny_folder, retention=[], seeds=[1])
    load_study(path).run(tmp_path / "out")
    (again,) = (rows for key, rows in rows_in(tmp_path / "out").items() if "--lora--" in key)
    first, second = (rows for key, rows in rows_in(seeded[0]).items() if "--lora--" in key)
    assert again == second != first


# --- how far it is ---------------------------------------------------------------------------------------------------


def test_status_counts_what_is_done_and_left(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, tiny_folder, retention=["wikitext2"])
    out = tmp_path / "out"
    called(capsys, "run", path, "--out", out)
    assert called(capsys, "status", out).out.endswith(f"3 done, 0 running, 0 failed, 0 left in {out}\n")
    (trial_folder(out, "lora") / "training.json").unlink()
    next(trial_folder(out, "lora").glob("retention*/result.json")).unlink()
    done = called(capsys, "status", out)
    assert done.code == 0
    assert done.out.endswith(f"2 done, 0 running, 0 failed, 1 left in {out}\n")
    assert "left     lora             seed 0   arc_easy     1/2 evaluations" in done.out


def test_status_as_json_is_json(arc_easy: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    state = json.loads(called(capsys, "status", arc_easy[0], "--json").out)
    assert [trial["arm"] for trial in state["trials"]] == list(DEFAULT_ARMS)
    assert {trial["state"] for trial in state["trials"]} == {"done"}
    assert [trial["arm"] for trial in state["trials"] if trial["trained"]] == ["full", "lora", "dora"]


# --- what is printed -------------------------------------------------------------------------------------------------


def test_a_dry_run_names_every_trial_and_writes_nothing(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path, tiny_folder, arms=None)
    before = contents(tmp_path)
    done = called(capsys, "run", path, "--out", tmp_path / "out", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert contents(tmp_path) == before
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(DEFAULT_ARMS)
    assert lines[-1].startswith("6 trials, roughly ")
    assert lines[-1].endswith(f"in {tmp_path / 'out'}; nothing was run.")


def test_a_dry_run_of_what_is_done_says_so(arc_easy: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = arc_easy
    before = written_at(out)
    done = called(capsys, "run", out.parent / "study.yaml", "--out", out, "--dry-run")
    assert all("done" in line for line in done.out.splitlines()[:-1])
    assert "roughly 0 s and 0 MiB" in done.out
    assert written_at(out) == before


def test_results_as_json_are_what_the_file_holds(arc_easy: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = arc_easy
    done = called(capsys, "run", out.parent / "study.yaml", "--out", out, "--json")
    assert json.loads(done.out) == json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("command", ["methods", "tasks", "models"])
def test_a_list_as_json_is_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(called(capsys, command, "--json").out)
    plain = called(capsys, command).out
    for row in rows:
        assert next(iter(row.values())) in plain


def test_the_end_says_where_the_weights_lie_and_how_they_are_loaded(
    arc_easy: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetrap.listing import where_to_find

    out, results = arc_easy
    for arm, loads in (("lora", "AutoPeftModelForCausalLM"), ("full", "AutoModelForCausalLM")):
        taken = results.recommendations[0].model_copy(update={"method": arm})
        text = where_to_find(results.model_copy(update={"recommendations": (taken,)}), out)
        artifact = (trial_folder(out, arm) / "artifact").resolve()
        assert f"model = {loads}.from_pretrained('{artifact}')" in text


def commands() -> dict[str, str]:
    """Every command's words, and its help."""
    found = {}

    def walk(words: str, command: object) -> None:
        for name, below in getattr(command, "commands", {}).items():
            found[f"{words}{name}"] = below.help
            walk(f"{words}{name} ", below)

    walk("", get_command(app))
    return found


@pytest.mark.parametrize("command", commands())
def test_the_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = called(capsys, *command.split(), "--help")
    assert done.code == 0
    assert f"Example: finetrap {command}" in " ".join(done.out.split())


def test_the_examples_in_the_help_are_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for text in commands().values():
        example = text.partition("Example: finetrap ")[2].splitlines()[0]
        assert called(capsys, *example.split(), "--help").code == 0, example
