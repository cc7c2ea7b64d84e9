"""The embedded model, SmolLM2-135M-Instruct from its GGUF file: real weights, real data."""

import gzip
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from finetrap.config import ModelSpec
from finetrap.data import Encoder, load_test
from finetrap.evaluate import Asked, evaluate
from finetrap.models import LoadedModel, find, load
from finetrap.presets import EMBEDDED, PRESETS, here
from finetrap.task import get_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not here(PRESETS[EMBEDDED]), reason=f"run: finetrap models get {EMBEDDED}"),
]


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    """In float32, to be compared with Transformers exactly."""
    return load(find(ModelSpec(name=EMBEDDED)), dtype=torch.float32, device="cpu")


def _questions_and_answers(split: str) -> list[str]:
    path = files("finetrap").joinpath("datasets", "gsm8k", f"{split}.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [text for row in rows for text in (row["question"], row["answer"])]


def test_its_tokenizer_equals_the_original_on_all_of_gsm8k(smollm2: LoadedModel) -> None:
    original_file = Path(__file__).parent / "data" / "smollm2" / "tokenizer.json.gz"
    original = Tokenizer.from_str(gzip.decompress(original_file.read_bytes()).decode())
    texts = _questions_and_answers("train") + _questions_and_answers("test")
    assert len(texts) == 2 * (7473 + 1319)
    expected = [encoding.ids for encoding in original.encode_batch(texts)]
    assert smollm2.tokenizer(texts)["input_ids"] == expected


def test_its_prompt_begins_once_and_its_turn_ends_with_the_end_of_turn_token(smollm2: LoadedModel) -> None:
    task = get_task("gsm8k")
    encoder = Encoder(smollm2.tokenizer, task, chat=True)
    (example,) = load_test(task, limit=1).examples
    ids, prompt_length = encoder.training_row(example)
    start, end = smollm2.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids[0] == start
    assert ids[1] != start
    assert ids[-1] == end
    assert smollm2.tokenizer.decode(ids[prompt_length:-1]) == example.reference


def test_it_says_what_it_was_quantised_to(smollm2: LoadedModel) -> None:
    assert smollm2.record.quantisation == "Q4_1"
    assert smollm2.record.label == "smollm2-135m-instruct-q4 (from GGUF Q4_1)"
    assert smollm2.record.aligned
    assert smollm2.record.parameters == PRESETS[EMBEDDED].parameters == smollm2.model.num_parameters()


def test_it_knows_more_of_arc_easy_than_the_trivial_arm(smollm2: LoadedModel) -> None:
    task = get_task("arc_easy")
    examples = load_test(task, limit=40).examples
    asked = evaluate(smollm2, task, examples, Asked(), progress=lambda done: None)
    blind = evaluate(smollm2, task, examples, Asked(trivial=True), progress=lambda done: None)
    assert sum(bool(row.correct) for row in asked) > sum(bool(row.correct) for row in blind)
