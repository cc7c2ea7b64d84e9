"""The peers' side: TRL with peft, lm-evaluation-harness and Transformers, set as their documentation advises."""

import io
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
from measure import Run
from work import Job, encoder, fresh, loaded, precision, shots, task_of, test_examples, tokenizer, training_examples

from finetrap.engine.train import VALIDATIONS
from finetrap.models import cast_weights
from finetrap.quiet import quiet_libraries
from finetrap.task import Example

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel
    from trl import SFTTrainer

datasets.disable_progress_bars()

RATES = {"full": 5e-5, "lora": 1e-3, "dora": 1e-3}
"""finetrap's defaults: the same work on both sides."""


def train(job: Job, *, batch: int, weights: str = "float32", attention: str = "sdpa", **settings: Any) -> Run:
    """TRL's SFTTrainer on the same rows; its own tokenisation and peft's wrapping are timed, as they are for ours."""
    model = to_train(job.model, weights, attention)
    made, examples = encoder(job), training_examples(job)
    given = datasets.Dataset.from_list(texts(job, examples))
    with tempfile.TemporaryDirectory() as folder, quiet():
        started = time.perf_counter()
        trainer = sft_trainer(model, given, folder, job, rate=RATES[job.method], batch=batch, **settings)
        trained = trainer.train()
        seconds = time.perf_counter() - started
    tokens = sum(map(len, trainer.train_dataset["input_ids"]))
    learned = sum(label != -100 for labels in trainer.train_dataset["labels"] for label in labels)
    rows = [made.training_row(example) for example in examples]
    expected = sum(len(ids) for ids, _ in rows), sum(len(ids) - prompt for ids, prompt in rows)
    # A packed row is without a loss where each of its sequences begins, and so is ours: there the prompt begins.
    if (tokens, learned) != expected:
        raise ValueError(f"TRL trains on {tokens} tokens, {learned} with a loss; finetrap on {expected}")
    return Run(seconds, tokens=tokens, loss=trained.training_loss)


def to_train(name: str, weights: str, attention: str) -> "PreTrainedModel":
    """A model read anew, the only one in memory: TRL replaces its forward."""
    model = cast_weights(fresh(name).model, getattr(torch, weights))
    model.set_attn_implementation(attention)
    return model


def texts(job: Job, examples: Sequence[Example]) -> list[dict[str, str]]:
    """Prompt and completion as text, in the form that TRL documents."""
    made = encoder(job)
    space = "" if made.chat else " "
    end = made.tokenizer.convert_ids_to_tokens(made.end_of_turn)
    return [{"prompt": made.text(example), "completion": f"{space}{example.reference}{end}"} for example in examples]


def sft_trainer(
    model: "PreTrainedModel",
    rows: datasets.Dataset,
    folder: str,
    job: Job,
    *,
    rate: float,
    batch: int,
    layout: str = "padded",
    order: str = "group_by_length",
    validation: datasets.Dataset | None = None,
) -> "SFTTrainer":
    """A trainer with finetrap's schedule, clipping and effective batch.

    `layout` is `padded`, `padding_free` or `packed-LENGTH`. Gradient checkpointing is off, since it is slower.
    """
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    reader = tokenizer(job.model)
    packed = int(layout.partition("-")[2]) if layout.startswith("packed") else None
    accumulate = max(1, job.batch // batch)
    if packed is not None:
        lengths = [len(ids) for ids in reader([row["prompt"] + row["completion"] for row in rows])["input_ids"]]
        accumulate = max(1, round(sum(lengths) / packed / math.ceil(len(rows) / job.batch)))
    config = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=1,
        learning_rate=rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=precision() == torch.bfloat16,
        gradient_checkpointing=False,
        packing=packed is not None,
        padding_free=layout == "padding_free",
        max_length=packed,
        train_sampling_strategy=order,
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=model.device.type != "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        eos_token=reader.convert_ids_to_tokens(encoder(job).end_of_turn),
        eval_strategy="no" if validation is None else "steps",
        # As often as finetrap does.
        eval_steps=max(1, math.ceil(len(rows) / job.batch) // VALIDATIONS),
        per_device_eval_batch_size=8,
        eval_packing=False,
    )
    adapter = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", use_dora=job.method == "dora", task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=reader,
        peft_config=None if job.method == "full" else adapter,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def lm_eval_generate(job: Job, *, batch: int) -> Run:
    """lm-evaluation-harness's `hf` model on finetrap's prompts, as a task of its own."""
    made, examples, task = encoder(job), test_examples(job), task_of(job)
    docs = [{"prompt": made.text(example, shots(job)), "gold": example.gold} for example in examples]
    until = [made.tokenizer.convert_ids_to_tokens(made.end_of_turn)] if made.chat else list(task.stops)
    until_length = {"until": until, "max_gen_toks": job.new_tokens, "do_sample": False}
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    seconds, samples = lm_eval_samples(
        job,
        docs,
        batch,
        output_type="generate_until",
        doc_to_target="gold",
        generation_kwargs=until_length,
        metric_list=[metric],
    )
    return Run(seconds, answers=tuple(sample["resps"][0][0] for sample in samples))


def lm_eval_choose(job: Job, *, batch: int) -> Run:
    """lm-evaluation-harness's `hf` model on the same questions and choices."""
    made, examples = encoder(job), test_examples(job)
    docs = [
        {"prompt": made.text(example, shots(job)), "choices": list(example.choices), "gold": int(example.gold)}
        for example in examples
    ]
    seconds, samples = lm_eval_samples(
        job,
        docs,
        batch,
        output_type="multiple_choice",
        doc_to_target="gold",
        doc_to_choice="choices",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    return Run(seconds, answers=tuple(tuple(value for value, _ in sample["filtered_resps"]) for sample in samples))


def lm_eval_samples(
    job: Job, docs: list[dict[str, Any]], batch: int, **settings: Any
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of an evaluation, and what lm-evaluation-harness notes of each item."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    base = loaded(job.model)
    with quiet():
        started = time.perf_counter()
        task = harness_task("bench", docs, **settings)
        model = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=batch)
        found = evaluate(model, {"bench": task}, bootstrap_iters=0)
        seconds = time.perf_counter() - started
    assert found is not None
    return seconds, sorted(found["samples"]["bench"], key=lambda sample: sample["doc_id"])


def harness_task(name: str, docs: list[dict[str, Any]], **settings: Any) -> "ConfigurableTask":
    """A task of lm-evaluation-harness out of rows, without a Hub."""
    from lm_eval.api.task import ConfigurableTask

    rows = datasets.DatasetDict(test=datasets.Dataset.from_list(docs))
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: rows,
            "test_split": "test",
            "doc_to_text": "prompt",
            **settings,
        }
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, neither progress bars nor advice; what goes wrong is an exception."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with quiet_libraries(), redirect_stderr(io.StringIO()):
        yield


@torch.no_grad()
def transformers_generate(job: Job, *, batch: int, cache: str = "dynamic", lookup: int = 0) -> Run:
    """`generate` in batches of rows of like length, the longest first, padded on the left.

    `lookup`: tokens of its drafts by prompt lookup, which it has for one row at a time.
    """
    base, made, examples = loaded(job.model), encoder(job), test_examples(job)
    model, reader = base.model, base.tokenizer
    reader.pad_token = reader.pad_token or reader.eos_token
    started = time.perf_counter()
    prompts = [made.text(example, shots(job)) for example in examples]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    stops = {} if made.chat else {"stop_strings": list(task_of(job).stops), "tokenizer": reader}
    drafts = {"prompt_lookup_num_tokens": lookup} if lookup else {}
    answers: dict[int, str] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        rows = reader(
            [prompts[i] for i in chosen],
            add_special_tokens=not made.chat,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        ids = model.generate(**rows, **_greedy(job), **stops, **drafts, cache_implementation=cache)
        texts = reader.batch_decode(ids[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.update(zip(chosen, texts, strict=True))
    return Run(time.perf_counter() - started, answers=tuple(_cut(job, answers[i]) for i in range(len(prompts))))


@torch.no_grad()
def transformers_generate_batch(job: Job, *, batch: int) -> Run:
    """`generate_batch`, Transformers' continuous batching; it decides on its batches by itself."""
    base, made, examples = loaded(job.model), encoder(job), test_examples(job)
    started = time.perf_counter()
    prompts = [made.prompt(example, shots(job)).ids for example in examples]
    config = transformers.GenerationConfig(**_greedy(job), eos_token_id=base.model.generation_config.eos_token_id)
    with quiet():
        found = base.model.generate_batch(inputs=prompts, generation_config=config)
    texts = {
        tuple(one.prompt_ids): base.tokenizer.decode(one.generated_tokens, skip_special_tokens=True)
        for one in found.values()
    }
    seconds = time.perf_counter() - started
    return Run(seconds, answers=tuple(_cut(job, texts[tuple(prompt)]) for prompt in prompts))


def _greedy(job: Job) -> dict[str, Any]:
    base = loaded(job.model)
    return {
        "max_new_tokens": job.new_tokens,
        "do_sample": False,
        "pad_token_id": base.tokenizer.pad_token_id or base.tokenizer.eos_token_id,
    }


def _cut(job: Job, text: str) -> str:
    """An answer before the task's first stop text, where it is prompted plainly."""
    stops = () if encoder(job).chat else task_of(job).stops
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
