"""GGUF files, made in the test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, LlamaFileType
from tiny import SIZES, make_model
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, GemmaTokenizer, GPT2Tokenizer

from finetrap import gguf
from finetrap.errors import StudyError
from finetrap.gguf import dequantised, read_header, repair


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_tokenizer_pre("smollm")
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), dtype=np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_says_quantisation_size_and_tokenizer(gguf_file: Path) -> None:
    header = read_header(gguf_file)
    assert header.quantisation == "F16"
    assert header.parameters == 64 * 32 + 32
    assert header.pre_tokenizer == "smollm"
    assert header.chat


def test_a_mix_of_types_goes_by_the_name_that_the_file_gives_it(tmp_path: Path) -> None:
    path = tmp_path / "mixed.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(path).quantisation == "Q4_K_M"


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(gguf_file: Path, kept: float) -> None:
    data = gguf_file.read_bytes()
    gguf_file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(StudyError, match="truncated GGUF"):
        read_header(gguf_file)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(StudyError, match="is not a GGUF file"):
        read_header(path)


def test_a_file_that_does_not_say_its_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(StudyError, match=r"does not say its llama\.block_count"):
        read_header(path)


# --- the dequantised copy ---------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_qwen2(path: Path) -> Path:
    """A GGUF file of the tiny Qwen 2 model, its weights in float32."""
    model = make_model("qwen2")
    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<|{i}|>" for i in range(4)), "ab"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    for name, weight in model.state_dict().items():
        for theirs, named in GGUF_NAMES.items():
            name = name.replace(theirs, named)
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def qwen2_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETRAP_CACHE", str(tmp_path / "cache"))
    return write_qwen2(tmp_path / "model.gguf")


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Before a copy is whole, and once."""
    waiting = [happens]

    def repaired(*arguments: Any) -> None:
        repair(*arguments)
        if waiting:
            waiting.pop()()

    monkeypatch.setattr(gguf, "repair", repaired)


def test_of_two_studies_that_begin_at_once_the_slower_takes_the_faster_ones_copy(
    qwen2_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: dequantised(qwen2_file, "sha"))
    folder = dequantised(qwen2_file, "sha")
    assert list(folder.parent.iterdir()) == [folder]
    copy = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in make_model("qwen2").state_dict().items():
        torch.testing.assert_close(copy.state_dict()[name], weight, rtol=0, atol=0)


def test_what_is_no_copy_is_not_taken_for_one(qwen2_file: Path) -> None:
    folder = dequantised(qwen2_file, "sha")
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match="not empty"):
        dequantised(qwen2_file, "sha")
    assert list(folder.parent.iterdir()) == [folder]


# --- what Transformers' conversion of a tokenizer loses --------------------------------------------------------------


@pytest.mark.parametrize(
    ("spaces", "between"), [(1, "_b"), (2, "__ b"), (5, "_____ b"), (6, "_____ _b"), (8, "_____ ___ b")]
)
def test_gemma_takes_runs_of_spaces_from_the_left_the_longest_first(spaces: int, between: str) -> None:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    blanks = ["\u2581" * size for size in range(1, 6)]
    vocabulary = {token: i for i, token in enumerate([*specials, *blanks, "a", "b", "\u2581b"])}
    # As Transformers makes them out of a vocabulary: every way to split a token, in the tokens' order.
    merges = [(token[:i], token[i:]) for token in blanks for i in range(1, len(token))] + [("\u2581", "b")]
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges)
    repair(tokenizer, "default")
    ids = tokenizer("a" + " " * spaces + "b", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", *between.replace("_", "\u2581").split()]
    assert tokenizer.decode(ids) == "a" + " " * spaces + "b"


def test_smollm_splits_numbers_into_digits() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "12", "123"])}
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=[("1", "2"), ("12", "3")])
    assert tokenizer.tokenize("123") == ["123"]
    repair(tokenizer, "smollm")
    assert tokenizer.tokenize("123") == ["1", "2", "3"]
