"""Decoding gives the tokens that Transformers' own `generate` gives, or draws them as the model says, and stops."""

import gc
import weakref
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from finetrap.engine import captured as captured_module
from finetrap.engine import decoding as decoding_module
from finetrap.engine import generate as generate_module
from finetrap.engine.attention import LONG_PREFIX
from finetrap.engine.generate import Sampling, common_prefix, generate_greedy, generate_samples, stop_tokens
from finetrap.engine.head import likeliest

PAD = 258
NEW = 12
LETTERS_PROMPT = list(range(30))
TIE = 1e-4
"""Two best logits as close as that may swap by rounding."""


def make_prompts(count=64):
    """Ragged: from 1 token to 33, several of each length, in no order."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 34, (count,), generator=generator).tolist()
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def reference(model, prompts, *, max_new_tokens=NEW, stop_tokens=(PAD,)):
    """By `model.generate`: the new tokens of each prompt, and how far apart the two best logits were at each."""
    length = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_tokens),
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(output.logits, dim=1).topk(2).values
    return output.sequences[:, length:].tolist(), (best[..., 0] - best[..., 1]).tolist()


def assert_same_tokens(results, expected, margins, stop_tokens=(PAD,), max_new_tokens=NEW):
    for result, tokens, margin in zip(results, expected, margins, strict=True):
        stop = next((i for i, token in enumerate(tokens) if token in stop_tokens), max_new_tokens)
        differing = next((i for i in range(stop) if result.ids[i : i + 1] != tokens[i : i + 1]), None)
        if differing is not None:
            assert margin[differing] < TIE, f"{result.ids} instead of {tokens}"
        else:
            assert (len(result.ids), result.truncated) == (stop, stop == max_new_tokens)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_tokens_equal_those_of_transformers(tiny_model, tiny_tokenizer, family, rows):
    model, prompts = tiny_model(family), make_prompts()
    if rows == 1:
        prompts = prompts[:8]
    results = generate_greedy(
        model, tiny_tokenizer, prompts, max_new_tokens=NEW, stop_tokens=[PAD], rows_at_a_time=rows
    )
    assert_same_tokens(results, *reference(model, prompts))


def test_tokens_stay_equal_when_rows_finish_at_different_times(tiny_model, tiny_tokenizer, family):
    model, prompts = tiny_model(family), make_prompts()
    stops = range(0, 256, 8)
    expected = reference(model, prompts, stop_tokens=stops)
    results = generate_greedy(model, tiny_tokenizer, prompts, max_new_tokens=NEW, stop_tokens=stops, rows_at_a_time=64)
    assert len({len(result.ids) for result in results}) > 5
    assert_same_tokens(results, *expected, stop_tokens=stops)


def test_results_are_in_the_order_of_the_prompts(tiny_model, tiny_tokenizer):
    model, prompts = tiny_model(), make_prompts(16)
    settings = {"max_new_tokens": 4, "stop_tokens": [PAD]}
    together = generate_greedy(model, tiny_tokenizer, prompts, rows_at_a_time=5, **settings)
    alone = [generate_greedy(model, tiny_tokenizer, [prompt], **settings)[0] for prompt in prompts]
    assert together == alone


def test_a_stop_token_ends_an_answer_and_is_no_part_of_it(tiny_model, tiny_tokenizer):
    model, prompt = tiny_model(), [65, 66, 67]
    (free,) = generate_greedy(model, tiny_tokenizer, [prompt], max_new_tokens=NEW, stop_tokens=[])
    stop = free.ids[5]
    (stopped,) = generate_greedy(model, tiny_tokenizer, [prompt], max_new_tokens=NEW, stop_tokens=[stop])
    assert stopped.ids == free.ids[: free.ids.index(stop)]
    assert not stopped.truncated


def test_an_answer_that_stops_at_once_is_empty(tiny_model, tiny_tokenizer):
    (result,) = generate_greedy(tiny_model(), tiny_tokenizer, [[65]], max_new_tokens=NEW, stop_tokens=range(300))
    assert result == ([], "", False)


def test_the_limit_of_new_tokens_truncates(tiny_model, tiny_tokenizer):
    (result,) = generate_greedy(tiny_model(), tiny_tokenizer, [[65]], max_new_tokens=5, stop_tokens=[])
    assert (len(result.ids), result.truncated) == (5, True)


def one_hot(logits, token):
    """Logits of which one token has all."""
    return torch.zeros_like(logits).index_fill_(-1, torch.tensor(token), 1.0)


def writes_letters(model):
    """The model, made to write nothing but small letters."""
    letters = torch.zeros(model.config.vocab_size, 1)
    letters[64:90] = 1  # the byte tokenizer's ids of a to z; `free` checks what is written
    with torch.no_grad():
        model.lm_head.weight.mul_(letters)
    return model


@pytest.fixture
def free(tiny_model, tiny_tokenizer):
    """A model that writes letters, and what it writes when nothing stops it."""
    model = writes_letters(tiny_model("qwen2"))
    (result,) = generate_greedy(model, tiny_tokenizer, [LETTERS_PROMPT], max_new_tokens=40, stop_tokens=[])
    assert result.text.isalpha()
    assert len(result.text) == 40
    return model, result


@pytest.mark.parametrize("size", [1, 3, 6])
def test_a_stop_text_cuts_the_answer_before_it(tiny_tokenizer, free, size):
    model, whole = free
    stop = whole.text[20 : 20 + size]
    (result,) = generate_greedy(
        model, tiny_tokenizer, [LETTERS_PROMPT], max_new_tokens=40, stop_tokens=[], stop_texts=["\n", stop]
    )
    assert result.text == whole.text[: whole.text.index(stop)]
    assert not result.truncated


def test_of_two_stop_texts_that_end_together_the_longer_cuts(tiny_tokenizer, free):
    model, whole = free
    longer, shorter = whole.text[20:26], whole.text[23:26]
    (result,) = generate_greedy(
        model, tiny_tokenizer, [LETTERS_PROMPT], max_new_tokens=40, stop_tokens=[], stop_texts=[shorter, longer]
    )
    assert result.text == whole.text[: whole.text.index(longer)]


def test_a_stop_text_ends_the_work_as_soon_as_it_is_there(tiny_tokenizer, free):
    model, whole = free
    stop = whole.text[20:26]
    (result,) = generate_greedy(
        model, tiny_tokenizer, [LETTERS_PROMPT], max_new_tokens=40, stop_tokens=[], stop_texts=[stop]
    )
    assert len(result.ids) == whole.text.index(stop) + len(stop)


def test_a_stop_text_that_never_comes_changes_nothing(tiny_tokenizer, free):
    model, whole = free
    (result,) = generate_greedy(
        model, tiny_tokenizer, [LETTERS_PROMPT], max_new_tokens=40, stop_tokens=[], stop_texts=["\nQuestion:"]
    )
    assert result == whole


def test_a_stop_text_of_the_prompt_does_not_stop(tiny_tokenizer, free):
    model, whole = free
    stop = tiny_tokenizer.decode(LETTERS_PROMPT)
    assert stop not in whole.text
    (result,) = generate_greedy(
        model, tiny_tokenizer, [LETTERS_PROMPT], max_new_tokens=40, stop_tokens=[], stop_texts=[stop]
    )
    assert result == whole


def test_a_stop_text_may_be_long(tiny_tokenizer, free):
    model, whole = free
    stop = whole.text[2:36]
    (result,) = generate_greedy(
        model, tiny_tokenizer, [LETTERS_PROMPT], max_new_tokens=40, stop_tokens=[], stop_texts=[stop]
    )
    assert (result.text, len(result.ids), result.truncated) == (whole.text[:2], 36, False)


def test_a_stop_text_may_hold_special_tokens(tiny_model, tiny_tokenizer):
    ids = [70, 71, 72, PAD, 73, 74, PAD, 75, 76]
    stop = tiny_tokenizer.decode(ids[3:7])
    model = tiny_model()
    left = iter(ids)
    model.lm_head.register_forward_hook(lambda module, given, logits: one_hot(logits, next(left)))
    (result,) = generate_greedy(model, tiny_tokenizer, [[65]], max_new_tokens=9, stop_tokens=[], stop_texts=[stop])
    assert (result.ids, result.truncated) == (ids[:7], False)
    assert result.text == tiny_tokenizer.decode([70, 71, 72, 73, 74])


def test_a_stop_that_is_a_token_ends_an_answer(tiny_model, tiny_tokenizer):
    model = tiny_model()
    model.generation_config.eos_token_id = [3, 4]
    named = tiny_tokenizer.decode([PAD])
    assert stop_tokens(model, tiny_tokenizer) == {3, 4, tiny_tokenizer.eos_token_id}
    assert stop_tokens(model, tiny_tokenizer, ["a", named]) == {3, 4, tiny_tokenizer.eos_token_id, PAD}


def test_a_prompt_without_a_token_is_an_error(tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="a prompt without a token"):
        generate_greedy(tiny_model(), tiny_tokenizer, [[65], []], max_new_tokens=5, stop_tokens=[])


def test_special_tokens_are_left_out_of_the_text(tiny_model, tiny_tokenizer):
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.lm_head.weight[:256] = 0
    (result,) = generate_greedy(model, tiny_tokenizer, [[65]], max_new_tokens=5, stop_tokens=[])
    assert len(result.ids) == 5
    assert result.text == ""


def test_no_prompts_give_no_answers(tiny_model, tiny_tokenizer):
    assert generate_greedy(tiny_model(), tiny_tokenizer, [], max_new_tokens=5, stop_tokens=[]) == []


def assert_answers_after_a_prefix(model, tokenizer, shared, rows):
    """Those of Transformers, to prompts that share so many tokens; answers end at different times."""
    prompts = [[*(50 + i % 190 for i in range(shared)), *prompt] for prompt in make_prompts(16)]
    stops = range(0, 256, 8)
    results = generate_greedy(model, tokenizer, prompts, max_new_tokens=NEW, stop_tokens=stops, rows_at_a_time=rows)
    assert_same_tokens(results, *reference(model, prompts, stop_tokens=stops), stop_tokens=stops)


@pytest.mark.parametrize(("shared", "rows"), [*product((1, 5, 40), (1, 5, 64)), (LONG_PREFIX + 3, 5)])
def test_tokens_stay_equal_with_a_prefix_that_all_prompts_share(tiny_model, tiny_tokenizer, family, shared, rows):
    # 40 tokens are more than Gemma's window of 8 here: most of the prefix is out of sight.
    assert_answers_after_a_prefix(tiny_model(family), tiny_tokenizer, shared, rows)


class StepsAsAGraphComputesThem:
    """Without a GPU: rows and keys rounded up, the places that no answer is in filled with what was there last."""

    def __init__(self, device, *, rows):
        self.tokens = torch.zeros(rows, dtype=torch.long)

    def __call__(self, step, tokens, extent):
        self.tokens[: len(tokens)] = tokens
        return step(self.tokens[: extent.rows], extent)


@pytest.mark.parametrize("shared", [0, 5, 40])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_steps_of_a_fixed_extent_give_the_same_tokens(tiny_model, tiny_tokenizer, family, shared, rows, monkeypatch):
    monkeypatch.setattr(decoding_module, "can_capture", lambda device: True)
    monkeypatch.setattr(decoding_module, "CapturedSteps", StepsAsAGraphComputesThem)
    monkeypatch.setattr(captured_module, "KEYS_AT_A_TIME", 8)
    assert_answers_after_a_prefix(tiny_model(family), tiny_tokenizer, shared, rows)


def test_rows_go_with_their_last_use(tiny_model, tiny_tokenizer, monkeypatch):
    # Their keys and values are most of the memory; the next training needs it.
    monkeypatch.setattr(decoding_module, "can_capture", lambda device: True)
    monkeypatch.setattr(decoding_module, "CapturedSteps", StepsAsAGraphComputesThem)
    made = []

    class Watched(decoding_module.Rows):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(generate_module, "Rows", Watched)
    gc.disable()
    try:
        generate_greedy(tiny_model(), tiny_tokenizer, make_prompts(4), max_new_tokens=3, stop_tokens=[PAD])
        assert [rows() for rows in made] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("limits", [{"tokens": 20}, {"cache_bytes": 1}, {"cache_bytes": 60_000}])
def test_little_memory_changes_no_answer(tiny_model, tiny_tokenizer, monkeypatch, limits):
    model, prompts = tiny_model(), make_prompts(16)
    free = generate_greedy(model, tiny_tokenizer, prompts, max_new_tokens=NEW, stop_tokens=[PAD])
    little = generate_module.LIMITS["cpu"]._replace(**limits)
    monkeypatch.setitem(generate_module.LIMITS, "cpu", little)
    assert generate_greedy(model, tiny_tokenizer, prompts, max_new_tokens=NEW, stop_tokens=[PAD]) == free


def test_the_prefix_that_prompts_share_leaves_each_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 1
    assert common_prefix([[1, 2]]) == 1
    assert common_prefix([[1], [2]]) == 0


def test_progress_tells_of_every_prompt(tiny_model, tiny_tokenizer):
    done = []
    generate_greedy(
        tiny_model(),
        tiny_tokenizer,
        make_prompts(9),
        max_new_tokens=2,
        stop_tokens=[],
        rows_at_a_time=4,
        progress=done.append,
    )
    assert done == [4, 4, 1]


def test_a_family_that_names_no_key_heads_is_decoded_too(tiny_tokenizer):
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=261,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        attn_implementation="sdpa",
    )
    model = GPTNeoXForCausalLM(config).eval()
    prompts = [[7, 8, 9, 40, 41], [7, 8, 9, 50], [7, 8, 9, 60, 61, 62]]
    answers = generate_greedy(model, tiny_tokenizer, prompts, max_new_tokens=6, stop_tokens={260})
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=260)
        assert answer.ids == [token for token in expected[0, len(prompt) :].tolist() if token != 260]


class CountingTokens:
    """How many tokens a model has computed, by its embedding."""

    def __init__(self, model):
        self.tokens = 0
        self._hook = model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, module, inputs, output):
        self.tokens += inputs[0].numel()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_drawn_answers_do_not_depend_on_what_stands_beside_them(tiny_model, tiny_tokenizer, family, rows):
    model, prompts = tiny_model(family), make_prompts(9)
    stops = range(0, 256, 8)
    settings = {"max_new_tokens": NEW, "stop_tokens": stops}
    answers = generate_samples(model, tiny_tokenizer, prompts, Sampling(5, seed=3), rows_at_a_time=rows, **settings)
    together = generate_samples(model, tiny_tokenizer, prompts, Sampling(5, seed=3), rows_at_a_time=45, **settings)
    assert answers == together
    assert len({tuple(answer.ids) for answer in answers[0]}) > 1
    assert len({len(answer.ids) for of_prompt in answers for answer in of_prompt}) > 2


def test_near_temperature_zero_the_drawn_answer_is_the_greedy_one(tiny_model, tiny_tokenizer, family):
    model, prompts = tiny_model(family), make_prompts(9)
    settings = {"max_new_tokens": NEW, "stop_tokens": [PAD]}
    greedy = generate_greedy(model, tiny_tokenizer, prompts, **settings)
    drawn = generate_samples(model, tiny_tokenizer, prompts, Sampling(3, temperature=1e-6), **settings)
    assert drawn == [[answer] * 3 for answer in greedy]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_are_drawn_as_the_model_says(tiny_model, tiny_tokenizer, temperature):
    model, samples = tiny_model(), 4000
    (answers,) = generate_samples(
        model, tiny_tokenizer, [[65, 66, 67]], Sampling(samples, temperature), max_new_tokens=1, stop_tokens=[]
    )
    drawn = np.bincount([answer.ids[0] for answer in answers], minlength=261)
    with torch.no_grad():
        logits = model(torch.tensor([[65, 66, 67]])).logits[0, -1].double()
    expected = samples * (logits / temperature).softmax(dim=0).numpy()
    often = expected >= 5
    pooled = [np.append(counts[often], counts[~often].sum()) for counts in (drawn, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-4


def test_a_prompt_is_read_once_for_all_of_its_samples(tiny_model, tiny_tokenizer):
    model, prompts = tiny_model(), make_prompts(4)
    with CountingTokens(model) as counted:
        generate_samples(
            model, tiny_tokenizer, prompts, Sampling(6), max_new_tokens=3, stop_tokens=[], rows_at_a_time=6
        )
    # The last token of an answer is not read again.
    assert counted.tokens == sum(map(len, prompts)) + 4 * 6 * 2


@given(
    arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.sampled_from([-np.inf, 0, 1, 2.5])
    )
)
def test_the_likeliest_token_is_the_first_of_the_greatest(logits):
    greatest, first = likeliest(torch.from_numpy(logits))
    assert first.tolist() == logits.argmax(axis=1).tolist()
    assert greatest.tolist() == logits.max(axis=1).tolist()
