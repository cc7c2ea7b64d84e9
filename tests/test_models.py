"""Finding models and loading them: by folder, GGUF file and name."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

from finetrap.config import ModelSpec
from finetrap.errors import StudyError
from finetrap.models import Source, choose_device, choose_dtype, find, load


def _find(path: Path, **settings: object) -> Source:
    return find(ModelSpec.model_validate({"name": str(path), **settings}))


def test_a_folder_is_found_with_its_size_and_chat_template(tiny_folder: Path) -> None:
    record = _find(tiny_folder).record
    loaded = load(_find(tiny_folder), dtype=torch.float32, device="cpu")
    assert record.parameters == loaded.model.num_parameters()
    assert record.quantisation is None
    assert record.chat
    assert record.label == str(tiny_folder)


def test_the_fingerprint_follows_the_content_and_not_the_place(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    assert _find(copy).record.fingerprint == _find(tiny_folder).record.fingerprint
    config = json.loads((copy / "config.json").read_text())
    config["rms_norm_eps"] = 0.1
    (copy / "config.json").write_text(json.dumps(config))
    assert _find(copy).record.fingerprint != _find(tiny_folder).record.fingerprint


def test_the_chat_template_can_be_left_out(tiny_folder: Path) -> None:
    assert not _find(tiny_folder, chat=False).record.chat


def test_a_copy_to_train_leaves_the_base_as_it_was(tiny_folder: Path) -> None:
    loaded = load(_find(tiny_folder), dtype=torch.float32, device="cpu")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    copy = loaded.copy()
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())


def test_weights_longer_than_the_file_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    weights = next(broken.glob("*.safetensors"))
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    for kept in (4, 8 + length // 2, 8 + length, len(data) - 1):
        weights.write_bytes(data[:kept])
        with pytest.raises(StudyError, match="damaged or truncated"):
            _find(broken)


def test_the_processor_is_always_there_and_float32_can_be_asked_for() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_dtype("float32", "cpu") == torch.float32
    assert choose_dtype("bfloat16", "cpu") == torch.bfloat16
    assert choose_dtype("auto", "cpu") in (torch.float32, torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(StudyError, match="'cuda' is not on this machine"):
        choose_device("cuda")


def test_settings_of_generation_are_part_of_the_fingerprint(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    (copy / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert _find(copy).record.fingerprint != _find(tiny_folder).record.fingerprint


def test_a_revision_of_what_is_on_this_machine_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(StudyError, match="--revision names a commit of a Hub repository"):
        _find(tiny_folder, revision="main")
