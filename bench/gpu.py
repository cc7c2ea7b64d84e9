"""What a GPU does with the shapes of 135M to 1B: training against TRL, 5-shot answers against Transformers.

    python bench/gpu.py prepare FOLDER     the rows in tokens, and their tokenizer; needs a model, and no GPU
    python bench/gpu.py FOLDER             writes bench/results/gpu.json, or FILE with --out FILE

The weights are random: none of these lie at hand where there is a GPU, and time does not depend on what they say. No
answer ends before its limit then, which takes from finetrap that rows that are done leave.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES: dict[str, dict[str, Any]] = {
    "135M": {"of": "SmolLM2-135M", "kind": "Llama", "width": 576, "wide": 1536, "layers": 30, "heads": (9, 3)},
    "270M": {"of": "Gemma 3 270M", "kind": "Gemma3Text", "width": 640, "wide": 2048, "layers": 18, "heads": (4, 1)},
    "360M": {"of": "SmolLM2-360M", "kind": "Llama", "width": 960, "wide": 2560, "layers": 32, "heads": (15, 5)},
    "500M": {"of": "Qwen2.5-0.5B", "kind": "Qwen2", "width": 896, "wide": 4864, "layers": 24, "heads": (14, 2)},
    "1B": {"of": "Llama 3.2 1B", "kind": "Llama", "width": 2048, "wide": 8192, "layers": 16, "heads": (32, 8)},
}
VOCABULARY = {"135M": 49152, "270M": 262144, "360M": 49152, "500M": 151936, "1B": 128256}
PEAK = 989e12
"""Dense bfloat16 operations a second of an H100 or H200 (SXM), by NVIDIA's data sheet."""
ROWS = 1024
BATCH = 64
"""Sequences in an optimiser step, on both sides."""
NEW_TOKENS = 128
ITEMS = 1319
RUNS = 3


def prepare(folder: Path, model: str) -> None:
    """Write GSM8K's training rows and 5-shot prompts in the model's tokens, and its tokenizer."""
    from work import Job, encoder, shots, test_examples, tokenizer, training_examples

    job = Job(model, "gsm8k", ITEMS, shots=5, new_tokens=NEW_TOKENS)
    made = encoder(job)
    rows = [made.training_row(example) for example in training_examples(job._replace(items=ROWS))]
    prompts = [made.prompt(example, shots(job)).ids for example in test_examples(job)]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(model).save_pretrained(folder / "tokenizer")
    flat = {
        "ids": np.concatenate([np.array(ids, dtype=np.uint16) for ids, _ in rows]),
        "lengths": np.array([len(ids) for ids, _ in rows]),
        "prompt_lengths": np.array([prompt for _, prompt in rows]),
        "prompts": np.concatenate([np.array(ids, dtype=np.uint16) for ids in prompts]),
        "prompts_lengths": np.array([len(ids) for ids in prompts]),
    }
    np.savez_compressed(folder / "rows.npz", **flat)  # type: ignore[arg-type]


def cut(flat: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Sequences out of what was written on end."""
    return [part.tolist() for part in np.split(flat.astype(int), np.cumsum(lengths)[:-1])]


def random_model(shape: str, dtype: torch.dtype) -> Any:
    """A model of a shape with random weights, on the GPU."""
    import transformers

    from finetrap.models import cast_weights

    asked = SHAPES[shape]
    heads, key_heads = asked["heads"]
    config = getattr(transformers, f"{asked['kind']}Config")(
        hidden_size=asked["width"],
        intermediate_size=asked["wide"],
        num_hidden_layers=asked["layers"],
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=256 if shape == "270M" else asked["width"] // heads,
        vocab_size=VOCABULARY[shape],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = getattr(transformers, f"{asked['kind']}ForCausalLM")(config)
    return cast_weights(model, dtype).eval()


def operations(model: Any, rows: list[Any], *, adapter: bool) -> float:
    """Of training on the rows once: 6 a weight and token, 4 where the weight is frozen; the head where a loss is.

    Kaplan et al. 2020 (arXiv:2001.08361, section 2.1), and of attention 12 a layer, head size and pair of tokens.
    """
    config = model.config
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - head
    each = 4 if adapter else 6
    tokens = sum(len(row.ids) for row in rows)
    pairs = sum(len(row.ids) ** 2 / 2 for row in rows)
    size = config.num_attention_heads * config.head_dim
    with_loss = sum(row.completion_length for row in rows)
    return each * (body * tokens + head * with_loss) + 12 * config.num_hidden_layers * size * pairs


def timed(work: Callable[[], object]) -> float:
    """Seconds, the GPU's included."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def free() -> None:
    """Give back what the last run held."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def train_ours(shape: str, method: str, rows: list[Any]) -> tuple[float, int]:
    """Seconds of one epoch, and the peak of memory."""
    from finetrap.engine.attention import packed_attention_on
    from finetrap.engine.train import train
    from finetrap.method import build, complete_settings

    free()
    model = random_model(shape, torch.bfloat16)
    made = build(method, complete_settings(method, {"batch_size": BATCH}))
    assert made.training is not None
    assert made.prepare is not None
    training = made.training
    with packed_attention_on(model):
        made.prepare(model)
        keep = made.adapter
        seconds = timed(lambda: train(model, rows, [], training=training, seed=0, keep_float32=keep))
    return seconds, torch.cuda.max_memory_allocated()


def train_theirs(shape: str, method: str, rows: list[Any], tokenizer: Any, batch: int) -> tuple[float, int]:
    """TRL's SFTTrainer on the same rows in tokens: float32 weights under bfloat16 autocast, as it documents."""
    import tempfile

    import datasets
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    free()
    datasets.disable_progress_bars()
    model = random_model(shape, torch.float32 if method == "full" else torch.bfloat16)
    model.set_attn_implementation("sdpa")
    given = datasets.Dataset.from_list(
        [
            {"input_ids": row.ids, "completion_mask": [int(i >= row.prompt_length) for i in range(len(row.ids))]}
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=BATCH // batch,
            num_train_epochs=1,
            learning_rate=5e-5,
            bf16=True,
            gradient_checkpointing=False,
            max_length=None,
            completion_only_loss=True,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            optim="adamw_torch_fused",
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=given,
            processing_class=tokenizer,
            peft_config=None
            if method == "full"
            else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        seconds = timed(trainer.train)
    return seconds, torch.cuda.max_memory_allocated()


def answer_ours(model: Any, tokenizer: Any, prompts: list[list[int]]) -> float:
    """Seconds of all answers."""
    from finetrap.engine.generate import generate_greedy

    free()
    return timed(lambda: generate_greedy(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, stop_tokens=[]))


def answer_theirs(model: Any, prompts: list[list[int]], batch: int) -> float:
    """`generate` on left-padded batches, longest first."""
    free()
    ordered = sorted(prompts, key=len, reverse=True)
    model.generation_config.eos_token_id = None

    def work() -> None:
        for start in range(0, len(ordered), batch):
            part = ordered[start : start + batch]
            longest = len(part[0])
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in part], device="cuda")
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part], device="cuda")
            model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)

    return timed(work)


def answer_batch(model: Any, prompts: list[list[int]]) -> float:
    """`generate_batch`: Transformers' continuous batching over a paged cache."""
    from transformers import GenerationConfig

    free()
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.generation_config = config
    return timed(lambda: model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False))


class Table:
    """The rows, written as they come."""

    def __init__(self, path: Path) -> None:
        from measure import PACKAGES, machine, now

        self.path = path
        installed = {}
        for name in PACKAGES:
            with suppress(PackageNotFoundError):
                installed[name] = version(name)
        device = torch.cuda.get_device_name()
        self.file: dict[str, Any] = {
            "date": now(),
            "machine": f"{device}; {machine()}",
            "versions": installed,
            "peak_flops": PEAK,
            "measured_flops": product_rate(),
            "rows": [],
        }

    def put(self, **row: Any) -> None:
        """Write a row."""
        self.file["rows"].append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.file, indent=1) + "\n")
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "runs"}, flush=True)


def product_rate() -> float:
    """Operations a second of a bfloat16 product of 8192 x 8192 on random data, the median of ten."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    times = [timed(lambda: a @ b) for _ in range(13)][3:]
    return float(2 * 8192**3 / statistics.median(times))


def train_row(table: Table, shape: str, method: str, rows: list[Any], tokenizer: Any) -> None:
    """Ours and TRL's at the best of its batch sizes, in alternation."""
    few = rows[: 2 * BATCH]
    train_ours(shape, method, few)
    grid = {}
    for batch in (16, 64):
        try:
            train_theirs(shape, method, few, tokenizer, batch)
            grid[batch] = train_theirs(shape, method, few, tokenizer, batch)[0]
        except torch.OutOfMemoryError:
            free()
    best = min(grid, key=lambda size: grid[size])
    pairs = [(train_ours(shape, method, rows), train_theirs(shape, method, rows, tokenizer, best)) for _ in range(RUNS)]
    tokens = sum(len(row.ids) for row in rows)
    ours, theirs = ([tokens / pair[side][0] for pair in pairs] for side in (0, 1))
    flops = operations(random_model(shape, torch.bfloat16), rows, adapter=method != "full")
    speed, peer = statistics.median(ours), statistics.median(theirs)
    table.put(
        work=f"train_{method}",
        variant=f"{shape}, {BATCH} sequences a step",
        model=SHAPES[shape]["of"],
        peer=f"TRL SFTTrainer, batch {best}",
        ours=speed,
        theirs=peer,
        unit="tokens/s",
        ratio=speed / peer,
        mfu=flops * speed / tokens / PEAK,
        memory_ours=pairs[0][0][1],
        memory_theirs=pairs[0][1][1],
        runs={"ours": ours, "theirs": theirs},
    )


def answer_row(table: Table, shape: str, tokenizer: Any, prompts: list[list[int]], peers: tuple[str, ...]) -> None:
    """GSM8K's 1319 questions with 5 shots."""
    model = random_model(shape, torch.bfloat16)
    answer_ours(model, tokenizer, prompts[:64])
    works: dict[str, Callable[[], float]] = {
        "transformers generate": lambda: answer_theirs(model, prompts, 256),
        "transformers generate_batch": lambda: answer_batch(model, prompts),
    }
    for peer in peers:
        ours = [answer_ours(model, tokenizer, prompts) for _ in range(RUNS)]
        try:
            theirs = [works[peer]()]  # once: it takes about a minute of a machine that is lent by the minute
        except Exception as error:  # a peer that does not run is a row that says so
            table.put(work="generate_5shot", variant=shape, peer=peer, failed=f"{type(error).__name__}: {error}"[:300])
            continue
        a, b = statistics.median(ours), statistics.median(theirs)
        table.put(
            work="generate_5shot",
            variant=f"{shape}, {len(prompts)} items, {NEW_TOKENS} new tokens",
            model=SHAPES[shape]["of"],
            peer=peer,
            ours=a,
            theirs=b,
            unit="s",
            ratio=b / a,
            runs={"ours": ours, "theirs": theirs},
        )


def main() -> None:
    """Measure, row by row, until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row after so long")
    asked = parser.parse_args()
    if asked.words[0] == "prepare":
        prepare(Path(asked.words[1]), asked.words[2] if len(asked.words) > 2 else "smollm2-135m-instruct-q4")
        return
    from transformers import AutoTokenizer

    from finetrap.engine.loss import TrainingRow

    folder, started = Path(asked.words[0]), time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    kept = np.load(folder / "rows.npz")
    sequences = cut(kept["ids"], kept["lengths"])
    rows = [TrainingRow(ids, int(n)) for ids, n in zip(sequences, kept["prompt_lengths"], strict=True)][:ROWS]
    prompts = cut(kept["prompts"], kept["prompts_lengths"])
    table = Table(asked.out)
    both = ("transformers generate", "transformers generate_batch")
    todo: list[Callable[[], None]] = [
        lambda: answer_row(table, "135M", tokenizer, prompts, both[:1]),
        lambda: train_row(table, "135M", "full", rows, tokenizer),
        lambda: train_row(table, "135M", "lora", rows, tokenizer),
        lambda: train_row(table, "1B", "full", rows, tokenizer),
        lambda: train_row(table, "500M", "full", rows, tokenizer),
        lambda: answer_row(table, "135M", tokenizer, prompts, both[1:]),
        lambda: train_row(table, "1B", "lora", rows, tokenizer),
        *(lambda s=s: train_row(table, s, "full", rows, tokenizer) for s in ("360M", "270M")),
        *(lambda s=s: train_row(table, s, "lora", rows, tokenizer) for s in ("500M", "360M", "270M")),
    ]
    for work in todo:
        if time.perf_counter() - started > asked.seconds:
            break
        try:
            work()
        except Exception as error:  # one row is not to cost the others on a machine that is lent by the minute
            print(f"failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            free()


if __name__ == "__main__":
    main()
