"""GGUF files, made in the test."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter, LlamaFileType

from finetrap.errors import StudyError
from finetrap.gguf import read_header


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
