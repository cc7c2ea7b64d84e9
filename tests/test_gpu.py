"""What a GPU changes: nothing but the speed."""

from pathlib import Path

import pytest
import torch
from tiny import make_model

from finetrap import Study
from finetrap.attention import packed_attention_on
from finetrap.generate import generate_greedy
from finetrap.loss import CompletionLoss, TrainingRow

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


def _gradient(model: torch.nn.Module, rows: list[TrainingRow]) -> torch.Tensor:
    model.zero_grad()
    with packed_attention_on(model):  # type: ignore[arg-type]
        CompletionLoss(model).backward(rows, forget=model.zero_grad)
    parts = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts).cpu()


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
def test_half_precision_trains_as_float32_does(family: str) -> None:
    # Through the kernel for varying lengths, windows and grouped heads included, against blocks in float32.
    torch.manual_seed(0)
    exact = make_model(family).cuda()
    with torch.no_grad():
        for parameter in exact.parameters():  # bfloat16's own rounding of the weights is not what is tested
            parameter.copy_(parameter.bfloat16())
    generator = torch.Generator().manual_seed(1)
    rows = [
        TrainingRow(torch.randint(10, 90, (length,), generator=generator).tolist(), length // 2)
        for length in (5, 60, 33, 17)
    ]
    wanted = _gradient(exact, rows)
    found = _gradient(exact.bfloat16(), rows)
    assert (found - wanted).norm() / wanted.norm() < 2e-2


def test_answers_on_a_gpu_are_those_of_generate(tiny_model, tiny_tokenizer) -> None:  # type: ignore[no-untyped-def]
    model = tiny_model().cuda()
    generator = torch.Generator().manual_seed(2)
    prompts = [[7, 8, 9, *torch.randint(10, 90, (n,), generator=generator).tolist()] for n in (3, 9, 5, 12)]
    found = generate_greedy(model, tiny_tokenizer, prompts, max_new_tokens=8, stop_tokens=[])
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt], device="cuda")
        alone = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
        )
        assert answer.ids == alone[0, len(prompt) :].tolist()
