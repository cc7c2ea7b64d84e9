"""Llama, Qwen2, Qwen3 and Gemma 3, tied and untied, with tokenizers like theirs: studies, artifacts, special tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tiny import VARIANTS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from finetrap.config import DEFAULT_ARMS, ModelSpec, make_study
from finetrap.data import Encoder, load_test
from finetrap.engine.attention import packed_attention_on
from finetrap.engine.loss import TrainingRow
from finetrap.engine.train import train, validation_loss
from finetrap.evaluate import Asked, evaluate
from finetrap.method import Training
from finetrap.models import LoadedModel, find, load
from finetrap.records import Planned
from finetrap.results import Results
from finetrap.scoring import score_number
from finetrap.store import Store
from finetrap.task import Example, Task, get_task
from finetrap.trial import load_checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")

# --- tokenizers like the real ones, a token for each byte ------------------------------------------------------------

ALPHABET = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
SYSTEM = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
)
CHATML = (
    SYSTEM + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3 opens every answer with its thoughts, empty ones where it is not to think.
QWEN3 = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- for m in messages -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    '{{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}{%- endif -%}'
    "{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def byte_level(*specials: str, **settings: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(vocab=ALPHABET, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def llama() -> PreTrainedTokenizerFast:
    headers = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = byte_level(bos, eos, *headers, bos_token=bos, eos_token=eos, pad_token=eos)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    return tokenizer


def smollm2() -> PreTrainedTokenizerFast:
    start, end = "<|im_start|>", "<|im_end|>"
    return byte_level("<|endoftext|>", start, end, bos_token=start, eos_token=end, pad_token=end)


def qwen() -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(vocab=dict(ALPHABET), merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def gemma(*, add_eos_token: bool = False) -> GemmaTokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True, add_eos_token=add_eos_token)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return tokenizer


class Like(NamedTuple):
    """A tokenizer, and what the model's own does with special tokens."""

    kind: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    template: str
    begins: str | None
    """What stands once in front of plain text and chats."""
    first: str
    """From what the first token of a text is predicted."""
    ends: tuple[str, str]
    """What ends a turn, and a text."""


LIKE = {
    "llama": Like("llama", llama, LLAMA3, "<|begin_of_text|>", "<|begin_of_text|>", ("<|eot_id|>", "<|end_of_text|>")),
    "smollm2": Like("llama", smollm2, CHATML, None, "<|im_start|>", ("<|im_end|>", "<|im_end|>")),
    "qwen2": Like("qwen2", qwen, CHATML, None, "<|im_end|>", ("<|im_end|>", "<|im_end|>")),
    "qwen3": Like("qwen3", qwen, QWEN3, None, "<|im_end|>", ("<|im_end|>", "<|im_end|>")),
    "gemma3": Like("gemma3", gemma, GEMMA3, "<bos>", "<bos>", ("<end_of_turn>", "<eos>")),
}


SAMPLE = ("llama", "gemma3")
"""What `make test` has of them: a common one, and the one that attends in windows."""
EACH = [kind if kind in SAMPLE else pytest.param(kind, marks=pytest.mark.thorough) for kind in LIKE]


def loaded_from(folder: Path, like: Like, make: Callable, family: str) -> LoadedModel:
    """A tiny model saved with such a tokenizer, and loaded the way a study loads it."""
    tokenizer = like.tokenizer()
    tokenizer.chat_template = like.template
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    make(family, vocab_size=len(tokenizer), **ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(find(ModelSpec(name=str(folder))), dtype=torch.float32, device="cpu")


# --- studies: every family, tied and untied, all methods -------------------------------------------------------------

TRAINED = ("full", "lora", "dora")
every_trained_arm = pytest.mark.parametrize("arm", TRAINED)


class Adapted(NamedTuple):
    """A model, tied or untied, and the study that adapted it."""

    kind: str
    tied: bool
    loaded: LoadedModel
    store: Store
    results: Results

    def planned(self, arm: str) -> Planned:
        planned = self.store.plan().planned
        return next(p for p in planned if p.trial.arm == arm and p.trial.model == self.loaded.record)

    def artifact(self, arm: str) -> Path:
        folder = self.store.artifact(self.planned(arm).trial)
        assert folder is not None
        return folder

    def reloaded(self, arm: str) -> torch.nn.Module:
        """What an arm trained, read by Transformers and PEFT alone."""
        if arm == "full":
            return AutoModelForCausalLM.from_pretrained(self.artifact(arm), dtype=torch.float32).eval()
        base = AutoModelForCausalLM.from_pretrained(self.loaded.record.name, dtype=torch.float32)
        return PeftModel.from_pretrained(base, self.artifact(arm)).merge_and_unload().eval()


SAMPLED_VARIANTS = ("llama-tied", "gemma3-untied")


@pytest.fixture(
    scope="module",
    params=[v if v in SAMPLED_VARIANTS else pytest.param(v, marks=pytest.mark.thorough) for v in VARIANTS],
)
def adapted(request, tmp_path_factory, tiny_model) -> Adapted:
    """A study of each."""
    folder = tmp_path_factory.mktemp("families")
    kind, tied = VARIANTS[request.param]
    loaded = loaded_from(folder / "model", LIKE[kind], tiny_model, request.param)
    values = {
        "models": [str(folder / "model")],
        "tasks": "arc_easy",
        "arms": ["few_shot:shots=1", "full:learning_rate=1e-2", "lora:rank=2", "dora:rank=2"],
        "limit_train": 16,
        "limit_validation": 10,
        "limit_test": 10,
        "retention": [],
        "dtype": "float32",
        "device": "cpu",
        "keep": "all",
    }
    return Adapted(kind, tied, loaded, Store(folder / "out"), make_study(values).run(folder / "out"))


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def log_likelihood(model, context, completion):
    logs = logits(model, [*context, *completion]).double().log_softmax(dim=-1)[len(context) - 1 : -1]
    return float(logs[torch.arange(len(completion)), completion].sum())


def weights(model):
    return dict(model.named_parameters())


def test_every_method_has_a_result(adapted):
    assert not adapted.results.failures
    arms = [arm for arm in adapted.results.arms if arm.model == adapted.loaded.record.label]
    assert tuple(arm.arm for arm in arms) == DEFAULT_ARMS
    assert all(arm.accuracy is not None for arm in arms)


@every_trained_arm
def test_an_artifact_reloads_without_finetrap_to_what_finetrap_evaluates(adapted, arm):
    reloaded, ours = adapted.reloaded(arm), load_checkpoint(adapted.artifact(arm), adapted.loaded)
    ids = adapted.loaded.tokenizer("A sentence that is longer than the window.")["input_ids"]
    torch.testing.assert_close(logits(reloaded, ids), logits(ours, ids), rtol=0, atol=1e-5)
    assert (logits(reloaded, ids) - logits(adapted.loaded.model, ids)).abs().max() > 1e-3


@every_trained_arm
def test_the_likelihoods_in_the_record_are_those_of_the_reloaded_artifact(adapted, arm):
    planned, reloaded = adapted.planned(arm), adapted.reloaded(arm)
    target = next(evaluation for evaluation in planned.evaluations if evaluation.purpose == "target")
    rows = {row.id: row for row in adapted.store.rows(planned.trial, target)}
    encoder = Encoder(adapted.loaded.tokenizer, get_task("arc_easy"), chat=True)
    for example in load_test(get_task("arc_easy"), limit=2).examples:
        prompt = encoder.prompt(example)
        expected = [
            log_likelihood(reloaded, prompt.ids, encoder.completion(prompt, choice)) for choice in example.choices
        ]
        assert rows[example.id].loglikelihoods == pytest.approx(expected, rel=1e-5)


def test_tied_embeddings_stay_tied_and_untied_ones_untied(adapted):
    reloaded, base = adapted.reloaded("full"), adapted.loaded.model
    embeddings, head = reloaded.get_input_embeddings().weight, reloaded.lm_head.weight
    assert (embeddings is head) == torch.equal(embeddings, head) == reloaded.config.tie_word_embeddings == adapted.tied
    assert not torch.equal(embeddings, base.get_input_embeddings().weight)
    assert not torch.equal(head, base.lm_head.weight)
    with safe_open(adapted.artifact("full") / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) != adapted.tied  # noqa: SIM118
    training = adapted.store.training(adapted.planned("full").trial)
    assert (
        training.trainable_parameters == sum(p.numel() for p in base.parameters()) == adapted.loaded.record.parameters
    )


@pytest.mark.parametrize("arm", ["lora", "dora"])
def test_merging_leaves_the_embeddings_alone_and_as_tied_as_they_were(adapted, arm):
    base = adapted.loaded.model
    for model in (adapted.reloaded(arm), load_checkpoint(adapted.artifact(arm), adapted.loaded)):
        embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
        assert (embeddings is head) == adapted.tied
        assert torch.equal(embeddings, base.get_input_embeddings().weight)
        assert torch.equal(head, base.lm_head.weight)


@every_trained_arm
def test_full_training_changes_every_weight_and_an_adapter_the_projections_alone(adapted, arm):
    before = weights(adapted.loaded.model)
    changed = {name for name, value in weights(adapted.reloaded(arm)).items() if not torch.equal(value, before[name])}
    norms = {name for name in before if ".q_norm." in name or ".k_norm." in name}
    assert len(norms) == (4 if adapted.kind in ("qwen3", "gemma3") else 0)
    assert changed == (set(before) if arm == "full" else {name for name in before if name.endswith("_proj.weight")})


def test_the_artifact_of_full_training_has_the_model_s_tokenizer(adapted):
    before, after = adapted.loaded.tokenizer, AutoTokenizer.from_pretrained(adapted.artifact("full"))
    for text in ("A text.", before.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False)):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.chat_template == before.chat_template
    assert after.special_tokens_map == before.special_tokens_map


def test_two_heads_share_a_key(adapted):
    attention = adapted.loaded.model.model.layers[0].self_attn
    assert attention.q_proj.out_features == 2 * attention.k_proj.out_features == 2 * attention.v_proj.out_features


@pytest.mark.parametrize(
    "adapted", [pytest.param("gemma3-tied", marks=pytest.mark.thorough), "gemma3-untied"], indirect=True
)
def test_gemma_s_window_is_shorter_than_what_it_is_tested_on(adapted, tiny_model):
    base = adapted.loaded.model
    ids = adapted.loaded.tokenizer("Longer than eight tokens.")["input_ids"]
    wide = tiny_model(
        f"gemma3-{'tied' if adapted.tied else 'untied'}", vocab_size=base.config.vocab_size, sliding_window=64
    )
    wide.load_state_dict(base.state_dict())
    assert base.config.layer_types == ["sliding_attention", "full_attention"]
    torch.testing.assert_close(logits(base, ids)[:8], logits(wide, ids)[:8])
    assert not torch.allclose(logits(base, ids)[8:], logits(wide, ids)[8:], atol=1e-3)


# --- special tokens --------------------------------------------------------------------------------------------------

ASKED = Example("a", "What is 3 and 4?", "3 + 4 = 7\n#### 7", "7")
SHOT = Example("b", "And 1 and 1?", "#### 2", "2")
PICKED = Example("p", "What is wet?", "water", "1", ("fire", "water"))
SUMS = Task("sums", "", "generate", "MIT", lambda _: (ASKED,), score=score_number, max_new_tokens=40)


@pytest.fixture(scope="module", params=EACH)
def like(request) -> Like:
    return LIKE[request.param]


@pytest.fixture(scope="module")
def loaded(like, tmp_path_factory, tiny_model) -> LoadedModel:
    return loaded_from(tmp_path_factory.mktemp("like") / "model", like, tiny_model, like.kind)


def prompts(tokenizer, *, chat):
    """Every prompt that a model is given: of questions with and without shots, of choices, of choices unasked."""
    asked, picked = (Encoder(tokenizer, task, chat=chat) for task in (SUMS, get_task("arc_easy")))
    scenes = Encoder(tokenizer, get_task("hellaswag"), chat=chat)
    return {
        "question": asked.prompt(ASKED),
        "shots": asked.prompt(ASKED, [SHOT]),
        "choice": picked.prompt(PICKED),
        "choice, shots": picked.prompt(PICKED, [PICKED]),
        "choice, unasked": picked.blind_prompt(),
        "scene": scenes.prompt(PICKED),
    }


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_a_prompt_begins_once(like, loaded, chat):
    for prompt in prompts(loaded.tokenizer, chat=chat).values():
        tokens = loaded.tokenizer.convert_ids_to_tokens(prompt.ids)
        if like.begins is not None:
            assert (tokens[0], tokens.count(like.begins)) == (like.begins, 1)
        elif not prompt.text.startswith("<|im_start|>"):
            assert not set(prompt.ids) & set(loaded.tokenizer.all_special_ids)
        else:
            assert tokens.count("<|im_start|>") == prompt.text.count("<|im_start|>")
            assert "<|im_start|>" not in tokens[1:3]


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_a_training_row_begins_once_and_ends_once(like, loaded, chat):
    for task, example in ((SUMS, ASKED), (get_task("arc_easy"), PICKED)):
        encoder = Encoder(loaded.tokenizer, task, chat=chat)
        ids, prompt_length = encoder.training_row(example)
        through_template = chat and task is SUMS
        completion = loaded.tokenizer.convert_ids_to_tokens(ids[prompt_length:])
        assert ids[:prompt_length] == encoder.prompt(example).ids
        assert completion[-1] == like.ends[0 if through_template else 1]
        assert not set(completion[:-1]) & set(loaded.tokenizer.all_special_tokens)
        text = example.reference if through_template else f" {example.reference}"
        assert loaded.tokenizer.decode(ids[prompt_length:-1]) == text


def test_a_chat_s_training_row_is_what_the_template_gives_for_the_solved_example(loaded):
    turns = [{"role": "user", "content": ASKED.question}, {"role": "assistant", "content": ASKED.reference}]
    ids, _ = Encoder(loaded.tokenizer, SUMS, chat=True).training_row(ASKED)
    whole = loaded.tokenizer.apply_chat_template(turns, date_string="26 Jul 2024")["input_ids"]
    assert ids == whole[: len(ids)]
    assert loaded.tokenizer.decode(whole[len(ids) :]).strip() == ""


def test_choices_hold_no_special_tokens(loaded):
    for name in ("arc_easy", "hellaswag"):
        encoder = Encoder(loaded.tokenizer, get_task(name), chat=True)
        for prompt in (encoder.prompt(PICKED), encoder.blind_prompt()):
            ids = encoder.completion(prompt, "water")
            assert not set(ids) & set(loaded.tokenizer.all_special_ids)
            assert loaded.tokenizer.decode(ids) == " water"


def test_bits_of_a_text_follow_one_beginning(like, loaded):
    text = "A text about nothing."
    (row,) = evaluate(loaded, get_task("wikitext2"), [Example("t", text)], Asked(), progress=lambda done: None)
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    first = loaded.tokenizer.convert_tokens_to_ids(like.first)
    assert first not in ids
    bits = -log_likelihood(loaded.model, [first], ids) / torch.log(torch.tensor(2.0)).item()
    assert row.bits == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_an_end_that_the_tokenizer_adds_is_in_no_prompt(chat):
    tokenizer, plain = gemma(add_eos_token=True), gemma()
    tokenizer.chat_template = plain.chat_template = GEMMA3
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    assert prompts(tokenizer, chat=chat) == prompts(plain, chat=chat)
    for task, example in ((SUMS, ASKED), (get_task("arc_easy"), PICKED)):
        rows = [Encoder(t, task, chat=chat).training_row(example) for t in (tokenizer, plain)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_the_end_of_turn_carries_loss(loaded, chat):
    ids, prompt_length = Encoder(loaded.tokenizer, SUMS, chat=chat).training_row(ASKED)
    row, other = (TrainingRow([*ids[:-1], end], prompt_length) for end in (ids[-1], 70))
    with torch.no_grad(), packed_attention_on(loaded.model):
        whole, whole_changed = (validation_loss(loaded.model, [r]) for r in (row, other))
    with torch.no_grad():
        logs = loaded.model(torch.tensor([row.ids])).logits[0, -2].log_softmax(dim=-1)
    assert abs(whole - whole_changed) > 1e-4
    last = float(logs[70] - logs[row.ids[-1]])
    assert whole - whole_changed == pytest.approx(last / row.completion_length, rel=1e-3)


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_a_model_that_learned_an_example_answers_it_and_stops(loaded, chat):
    record = loaded.record.model_copy(update={"chat": chat})
    learned = replace(loaded, model=loaded.copy(), record=record)
    row = TrainingRow(*Encoder(learned.tokenizer, SUMS, chat=chat).training_row(ASKED))
    learned.model.requires_grad_(True)
    with packed_attention_on(learned.model):
        training = Training(learning_rate=1e-2, epochs=60, batch_size=1)
        train(learned.model, [row], [], training=training, seed=0, keep_float32=True)
    (answer,) = evaluate(learned, SUMS, [ASKED], Asked(), progress=lambda done: None)
    assert (answer.output.strip(), answer.truncated, answer.correct) == (ASKED.reference, False, True)
    assert answer.output_tokens == len(row.ids) - row.prompt_length - 1
