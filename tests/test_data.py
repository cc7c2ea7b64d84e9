"""Rows reach the right split, and the model sees exactly the prompt that a task states."""

import copy
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from finetrap.data import (
    Encoder,
    Splits,
    draw_shots,
    load_splits,
    load_test,
    sealed,
)
from finetrap.errors import StudyError
from finetrap.rows.duplicates import NEAR_DUPLICATE, carve, clusters, normalise, sample
from finetrap.scoring import number_of
from finetrap.task import Example, Task, get_task


@pytest.fixture(scope="module")
def arc_easy():
    return load_splits(get_task("arc_easy"))


@pytest.fixture(scope="module")
def gsm8k():
    return load_splits(get_task("gsm8k"))


@pytest.fixture(params=["arc_easy", "gsm8k"])
def splits(request):
    return request.getfixturevalue(request.param)


def questions(*texts):
    return [Example(f"q{index}", text) for index, text in enumerate(texts)]


def small_task(train, test=()):
    return Task("small", "a few rows", "generate", "MIT", lambda split: tuple(train if split == "train" else test))


def similar_pairs(left, right):
    """Pairs of questions whose word trigrams, numbers masked, are near-duplicates by Jaccard; by plain counting."""

    def trigrams(example):
        words = ["".join("0" if c.isdigit() else c for c in word) for word in normalise(example.question).split()]
        return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    sets, holders = [trigrams(example) for example in right], defaultdict(list)
    for index, shingles in enumerate(sets):
        for shingle in shingles:
            holders[shingle].append(index)
    pairs = []
    for example in left:
        own = trigrams(example)
        shared = Counter(index for shingle in own for index in holders[shingle])
        pairs += [
            (example.id, right[index].id)
            for index, count in shared.items()
            if count >= NEAR_DUPLICATE * (len(own) + len(sets[index]) - count)
        ]
    return pairs


# --- splits ----------------------------------------------------------------------------------------------------------


def test_train_and_validation_share_no_row(splits):
    ids = [example.id for example in (*splits.train, *splits.validation)]
    assert len(set(ids)) == len(ids)


def test_no_two_near_duplicates_stand_on_both_sides(splits):
    assert similar_pairs(splits.validation, splits.train) == []


def test_validation_is_about_a_tenth_of_train(splits):
    assert 0.08 < len(splits.validation) / len(splits.train + splits.validation) < 0.12


def test_every_row_is_in_a_split_or_dropped(gsm8k):
    assert len(gsm8k.train) + len(gsm8k.validation) + len(gsm8k.dropped) == 7473


def test_eight_train_rows_of_arc_easy_are_dropped_since_they_stand_in_test(arc_easy):
    kept = {example.id for example in (*arc_easy.train, *arc_easy.validation)}
    assert len(arc_easy.dropped) == 8
    assert kept.isdisjoint(arc_easy.dropped)


def test_no_question_of_test_is_left_in_train_or_validation(splits):
    task = get_task("arc_easy" if splits.train[0].choices else "gsm8k")
    test = {normalise(example.question) for example in task.load("test")}
    assert test.isdisjoint(normalise(example.question) for example in (*splits.train, *splits.validation))


def test_a_train_row_that_differs_from_a_test_row_only_in_case_and_punctuation_is_dropped():
    rows = questions("How many are  left?", "Who came first?")
    splits = load_splits(small_task(rows, [Example("t", "how many are left")]))
    assert splits.dropped == ("q0",)


@pytest.mark.parametrize("limit", [1, 50, 199])
def test_a_larger_limit_extends_the_sample(limit):
    task = get_task("arc_easy")
    fewer = load_splits(task, limit_train=limit, limit_validation=limit)
    more = load_splits(task, limit_train=limit + 1, limit_validation=limit + 1)
    assert more.train[:limit] == fewer.train
    assert more.validation[:limit] == fewer.validation
    assert len(more.train) == limit + 1


def test_a_limit_on_train_does_not_move_validation():
    task = get_task("arc_easy")
    assert load_splits(task, limit_train=10).validation == load_splits(task).validation


def test_test_items_are_a_sample_that_a_larger_limit_extends():
    task = get_task("gsm8k")
    assert load_test(task, limit=200).examples[:50] == load_test(task, limit=50).examples


def test_a_sample_does_not_depend_on_the_order_of_the_rows():
    rows = questions(*(f"question {i}" for i in range(50)))
    assert sample(rows, 10) == sample(rows[::-1], 10)


def test_a_task_without_a_train_split_cannot_be_split():
    with pytest.raises(StudyError, match="'svamp' has no train split"):
        load_splits(get_task("svamp"))


# --- clusters --------------------------------------------------------------------------------------------------------

LONG = "A farmer has 12 cows and 7 goats in the barn. How many animals are in the barn?"


def ids_of(groups):
    return [[example.id for example in group] for group in groups]


def test_questions_that_differ_in_numbers_only_share_a_cluster():
    other = LONG.replace("12", "350").replace("7", "1")
    assert ids_of(clusters(questions(LONG, "Who came first?", other))) == [["q0", "q2"], ["q1"]]


def test_similarity_reaches_through_a_question_in_between():
    words = [f"w{'abcdefghijklmnopqrstuvwxyz'[i]}" for i in range(26)]
    first, middle, last = " ".join(words[:20]), " ".join(words[3:23]), " ".join(words[6:26])
    assert similar_pairs(questions(first), questions(last)) == []
    assert ids_of(clusters(questions(first, last, middle))) == [["q0", "q1", "q2"]]


@given(st.lists(st.text("ab ", max_size=14), max_size=12))
def test_exactly_the_near_duplicates_and_what_they_reach_share_a_cluster(texts):
    examples = questions(*texts)
    groups = [set(group) for group in ids_of(clusters(examples))]
    reached = {example.id: {example.id} for example in examples}
    for a, b in similar_pairs(examples, examples):
        joined = reached[a] | reached[b]
        reached.update(dict.fromkeys(joined, joined))
    assert sorted(map(sorted, groups)) == sorted(map(sorted, {frozenset(group) for group in reached.values()}))


@given(st.integers(2, 12), st.floats(0, 1), st.text(max_size=3))
def test_neither_side_of_a_cut_is_empty(count, share, salt):
    kept, cut = carve(questions(*(f"{word} {word} {word}" for word in "abcdefghijkl"[:count])), share, salt)
    assert kept
    assert cut
    assert len(kept) + len(cut) == count


def test_what_most_questions_share_does_not_make_them_alike():
    texts = [
        f"Below is an instruction that describes a task, answer it: {word * 5}" for word in "abcdefghijklmnopqrstuvwxyz"
    ]
    assert len(clusters(questions(*texts))) == 26
    assert len(clusters(questions(*texts, *texts))) == 26


# --- shots -----------------------------------------------------------------------------------------------------------


def test_shots_are_decided_by_the_seed(arc_easy):
    assert draw_shots(arc_easy, 5, seed=1) == draw_shots(arc_easy, 5, seed=1)
    assert draw_shots(arc_easy, 5, seed=1) != draw_shots(arc_easy, 5, seed=2)


def test_shots_are_different_rows_of_train(arc_easy):
    shots = draw_shots(arc_easy, 8, seed=0)
    assert len(set(shots)) == 8
    assert set(shots) <= set(arc_easy.train)


def test_more_shots_than_train_has_are_refused():
    with pytest.raises(StudyError, match="3 shots asked for, but train has 2"):
        draw_shots(Splits(train=tuple(questions("a", "b")), validation=(), carved=(), dropped=()), 3, seed=0)


# --- packaged tasks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("gsm8k", "train", 7473),
        ("gsm8k", "test", 1319),
        ("svamp", "test", 1000),
        ("arc_easy", "train", 2251),
        ("arc_easy", "test", 2376),
        ("hellaswag", "test", 1000),
    ],
)
def test_a_packaged_task_has_all_its_rows_under_ids_of_their_own(name, split, count):
    rows = get_task(name).load(split)
    assert len(rows) == len({example.id for example in rows}) == count


@pytest.mark.parametrize(("name", "split"), [("gsm8k", "train"), ("gsm8k", "test"), ("svamp", "test")])
def test_every_gold_answer_of_an_arithmetic_task_is_a_number(name, split):
    assert all(number_of(example.gold) is not None for example in get_task(name).load(split))


@pytest.mark.parametrize(("name", "split"), [("gsm8k", "train"), ("gsm8k", "test"), ("svamp", "test")])
def test_every_reference_scores_as_correct_and_in_the_stated_format(name, split):
    task = get_task(name)
    verdicts = [task.score(example.reference, example.gold) for example in task.load(split)]
    assert all(verdict.correct and verdict.strict for verdict in verdicts)


def test_no_calculator_annotation_is_left_in_gsm8k():
    assert not any("<<" in example.reference for example in get_task("gsm8k").load("train"))


@pytest.mark.parametrize(
    ("name", "split"), [("arc_easy", "train"), ("arc_easy", "test"), ("arc_challenge", "test"), ("hellaswag", "test")]
)
def test_the_reference_of_a_choice_task_is_its_right_choice(name, split):
    assert all(example.choices[int(example.gold)] == example.reference for example in get_task(name).load(split))


# --- prompts ---------------------------------------------------------------------------------------------------------

ASKED = Example("a", "How many are 3 and 4?", "3 + 4 = 7\n#### 7", "7")
SHOTS = (Example("b", "And 1 and 1?", "1 + 1 = 2\n#### 2", "2"), Example("c", "2 and 2?", "It is 4.\n#### 4", "4"))
PICKED = Example("p", "What is wet?", "water", "1", ("fire", "water", "a stone"))


def test_a_chat_prompt_is_what_the_chat_template_gives(tiny_tokenizer):
    task = get_task("gsm8k")
    turns = [{"role": "user", "content": task.prompt(ASKED.question)}]
    expected = tiny_tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert Encoder(tiny_tokenizer, task, chat=True).prompt(ASKED).ids == expected


def test_shots_of_a_chat_are_turns(tiny_tokenizer):
    task = get_task("gsm8k")
    turns = []
    for shot in SHOTS:
        turns.append({"role": "user", "content": task.prompt(shot.question)})
        turns.append({"role": "assistant", "content": shot.reference})
    turns.append({"role": "user", "content": task.prompt(ASKED.question)})
    expected = tiny_tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert Encoder(tiny_tokenizer, task, chat=True).prompt(ASKED, SHOTS).ids == expected


def test_without_chat_a_question_is_followed_by_answer(tiny_tokenizer):
    task = get_task("gsm8k")
    text = Encoder(tiny_tokenizer, task, chat=False).prompt(ASKED, SHOTS[:1]).text
    assert text == f"{task.prompt('And 1 and 1?')}\nAnswer: 1 + 1 = 2\n#### 2\n\n{task.prompt(ASKED.question)}\nAnswer:"


@pytest.mark.parametrize("chat", [True, False])
def test_multiple_choice_is_prompted_plainly_even_with_a_chat_template(tiny_tokenizer, chat):
    shot = Example("s", "What is hot?", "fire", "0", ("fire", "ice"))
    text = Encoder(tiny_tokenizer, get_task("arc_easy"), chat=chat).prompt(PICKED, [shot]).text
    assert text == "Question: What is hot?\nAnswer: fire\n\nQuestion: What is wet?\nAnswer:"


def test_the_model_is_shown_the_stated_answer_format(tiny_tokenizer):
    assert '"#### "' in Encoder(tiny_tokenizer, get_task("gsm8k"), chat=True).prompt(ASKED).text


def test_a_chat_ends_with_the_end_of_turn_token_and_plain_text_with_end_of_sequence(tiny_tokenizer):
    task = get_task("gsm8k")
    ends = [Encoder(tiny_tokenizer, task, chat=chat).end_of_turn for chat in (True, False)]
    assert tiny_tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|eos|>"]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("text", ["3 + 4 = 7\n#### 7", "caf\u00e9 \U0001f9ca", "  two spaces", "ends with a line\n"])
def test_prompt_and_completion_join_to_the_whole_text(tiny_tokenizer, chat, text):
    encoder = Encoder(tiny_tokenizer, get_task("gsm8k"), chat=chat)
    prompt = encoder.prompt(ASKED, SHOTS)
    whole = tiny_tokenizer.decode([*prompt.ids, *encoder.completion(prompt, text)], clean_up_tokenization_spaces=False)
    assert whole == prompt.text + ("" if chat else " ") + text


def test_a_training_row_is_prompt_reference_and_end_of_turn(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, get_task("gsm8k"), chat=True)
    ids, prompt_length = encoder.training_row(ASKED)
    assert ids[:prompt_length] == encoder.prompt(ASKED).ids
    assert tiny_tokenizer.decode(ids[prompt_length:]) == f"{ASKED.reference}<|im_end|>"


def test_a_training_row_is_what_the_chat_template_gives_for_a_solved_example(tiny_tokenizer):
    task = get_task("gsm8k")
    turns = [
        {"role": "user", "content": task.prompt(ASKED.question)},
        {"role": "assistant", "content": ASKED.reference},
    ]
    ids, _ = Encoder(tiny_tokenizer, task, chat=True).training_row(ASKED)
    assert f"{tiny_tokenizer.decode(ids)}\n" == tiny_tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.fixture
def framing_tokenizer(tiny_tokenizer):
    """The tokenizer, made to frame plain text with bos and eos."""
    copied = copy.deepcopy(tiny_tokenizer)
    copied.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 256), ("<|eos|>", 257)]
    )
    return copied


def test_a_plain_prompt_gets_the_beginning_that_the_tokenizer_puts_and_no_end(framing_tokenizer):
    ids = Encoder(framing_tokenizer, get_task("arc_easy"), chat=False).prompt(PICKED).ids
    assert framing_tokenizer.decode(ids) == "<|bos|>Question: What is wet?\nAnswer:"


def test_a_chat_prompt_gets_no_special_tokens_but_its_template_s(framing_tokenizer):
    prompt = Encoder(framing_tokenizer, get_task("gsm8k"), chat=True).prompt(ASKED)
    assert framing_tokenizer.decode(prompt.ids) == prompt.text


def test_a_completion_is_the_same_where_the_tokenizer_frames_its_text(tiny_tokenizer, framing_tokenizer):
    completions = []
    for tokenizer in (tiny_tokenizer, framing_tokenizer):
        encoder = Encoder(tokenizer, get_task("arc_easy"), chat=False)
        completions.append(encoder.completion(encoder.prompt(PICKED), "water"))
    assert completions[0] == completions[1] == tiny_tokenizer.encode(" water")


def test_the_blind_prompt_of_a_choice_task_leaves_its_question_out(tiny_tokenizer):
    assert Encoder(tiny_tokenizer, get_task("arc_easy"), chat=False).blind_prompt().text == "Answer:"


def test_a_blind_prompt_that_would_be_empty_is_the_end_of_sequence_token(tiny_tokenizer):
    blind = Encoder(tiny_tokenizer, get_task("hellaswag"), chat=False).blind_prompt()
    assert tiny_tokenizer.convert_ids_to_tokens(blind.ids) == ["<|eos|>"]


def test_the_end_of_turn_is_a_special_token_even_behind_a_line_break(tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n<|im_end|>{% endfor %}"
    encoder = Encoder(tokenizer, get_task("gsm8k"), chat=True)
    assert encoder.end_of_turn == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_end_of_turn_may_have_the_id_0():
    end, *rest = ["<|end|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([end, *rest])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([end, rest[0]])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=rest[0])
    wrapped.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    assert Encoder(wrapped, get_task("gsm8k"), chat=True).end_of_turn == wrapped.convert_tokens_to_ids(end) == 0


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    prompt = Encoder(tokenizer, get_task("gsm8k"), chat=True).prompt(get_task("gsm8k").load("train")[0])
    assert prompt.text.startswith("26 Jul 2024")


def test_what_trains_gets_a_task_without_its_data():
    with pytest.raises(RuntimeError, match="reads no data by itself"):
        sealed(get_task("gsm8k")).load("test")
