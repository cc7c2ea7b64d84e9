"""What a GPU changes: nothing but the speed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model
from transformers import PreTrainedTokenizerBase

from finetrap import Study
from finetrap.engine import captured as captured_module
from finetrap.engine.attention import PackedRow, packed_attention_on
from finetrap.engine.decoding import Rows, decoding_attention_on
from finetrap.engine.generate import Sampling, generate_greedy, generate_samples
from finetrap.engine.loss import CompletionLoss, TrainingRow

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
def test_kernels_train_as_blocks_do(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Those for varying lengths, windows and grouped heads included.
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
    in_float32 = _gradient(exact, rows)
    with monkeypatch.context() as blocks:
        blocks.setattr(PackedRow, "is_plain", False)
        wanted = _gradient(exact, rows)
        half = exact.bfloat16()
        in_half_by_blocks = _gradient(half, rows)
    in_half = _gradient(half, rows)
    assert (in_float32 - wanted).norm() / wanted.norm() < 1e-5
    rounding = (in_half_by_blocks - wanted).norm() / wanted.norm()
    assert (in_half - wanted).norm() / wanted.norm() < 1.5 * rounding < 0.1


@pytest.mark.parametrize("rows", [3, None])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
def test_answers_on_a_gpu_are_those_of_generate(
    family: str, tiny_tokenizer: PreTrainedTokenizerBase, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several graphs: answers outgrow the keys of one, and rows end and begin.
    monkeypatch.setattr(captured_module, "KEYS_AT_A_TIME", 8)
    torch.manual_seed(0)
    model = make_model(family).cuda()
    generator = torch.Generator().manual_seed(2)
    prompts = [[7, 8, 9, *torch.randint(10, 90, (n,), generator=generator).tolist()] for n in (3, 9, 5, 12)]
    settings: dict[str, Any] = {"max_new_tokens": 8, "stop_tokens": [], "rows_at_a_time": rows}
    found = generate_greedy(model, tiny_tokenizer, prompts, **settings)
    cold = Sampling(samples=3, temperature=1e-4)
    drawn = generate_samples(model, tiny_tokenizer, prompts, cold, **settings)
    for prompt, answer, samples in zip(prompts, found, drawn, strict=True):
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
        assert all(sample.ids == answer.ids for sample in samples)


def test_half_precision_reads_prompts_as_float32_does(tiny_model) -> None:  # type: ignore[no-untyped-def]
    exact = tiny_model().cuda()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16())
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(10, 90, (n,), generator=generator).tolist() for n in (3, 40, 17)]
    found = []
    for model in (exact, exact.bfloat16()):
        rows = Rows(model, rows=3, capacity=64)
        with torch.no_grad(), decoding_attention_on(model):
            rows.read_prefix([7, 8, 9] * 10)
            rows.read(prompts)
            found.append(rows.step([[11], [12], [13]]).float())
    assert (found[0] - found[1]).norm() / found[0].norm() < 5e-2
