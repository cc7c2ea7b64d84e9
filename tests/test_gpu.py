"""What a GPU changes: nothing but the speed."""

from pathlib import Path

import pytest
import torch

from finetrap import Study

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]


def test_a_study_gives_the_same_answers_on_a_gpu(tiny_folder: Path, tmp_path: Path) -> None:
    rows = {}
    for device in ("cpu", "cuda"):
        study = Study(
            models=str(tiny_folder),
            tasks="arc_easy",
            arms=["lora:rank=2", "full"],
            limit_train=16,
            limit_test=20,
            retention=[],
            device=device,
            dtype="float32",
        )
        rows[device] = {arm.arm: arm.accuracy for arm in study.run(tmp_path / device).arms}
    assert rows["cuda"] == pytest.approx(rows["cpu"], abs=0.051)
