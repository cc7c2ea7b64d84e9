"""One trial: the one place where data, model, method, training and evaluation meet."""

import math
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

import torch

from finetrap.config import Study
from finetrap.cost import folder_bytes, measure
from finetrap.data import Encoder, Splits, draw_shots
from finetrap.engine.attention import packed_attention_on
from finetrap.engine.generate import Sampling
from finetrap.engine.loss import TrainingRow
from finetrap.engine.train import train, validation_loss
from finetrap.errors import StudyError
from finetrap.evaluate import Asked, evaluate, most_common_answer, reference_loss
from finetrap.method import Method, build
from finetrap.models import LoadedModel, cast_weights, load_weights
from finetrap.plan import TaskItems, examples_of, missing
from finetrap.progress import Reporter
from finetrap.records import (
    Environment,
    Evaluation,
    EvaluationRecord,
    Planned,
    TrainingLogEntry,
    TrainingRecord,
    Trial,
    items_digest,
)
from finetrap.store import Store, now
from finetrap.task import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

M = TypeVar("M", bound=torch.nn.Module)


def run_trial(
    planned: Planned,
    study: Study,
    *,
    loaded: LoadedModel,
    items: TaskItems,
    store: Store,
    environment: Environment,
    reporter: Reporter,
) -> None:
    """Train what is to be trained, evaluate what is not evaluated, and keep the records."""
    todo = missing(planned, store)
    if not todo:
        return
    trial = planned.trial
    store.begin(trial)
    method = build(trial.method, trial.settings)
    items = items.first(planned.train_rows)
    if method.training is not None and store.artifact(trial) is None:
        store.forget_evaluations(trial)
        todo = list(planned.evaluations)
    model = _adapted(planned, method, loaded, items, store, reporter)
    if method.of is not None and study.keep != "none":
        store.save_artifact(trial, partial(_save, model, loaded.tokenizer))
    adapted = replace(loaded, model=model, untouched=loaded.model)
    for evaluation in todo:
        task, examples = study.task(evaluation.task), examples_of(study, items, evaluation)
        asked = _asked(method, evaluation, items.splits, trial.seed)
        _evaluate(trial, evaluation, _instructed(task, method), examples, asked, adapted, store, environment, reporter)


def _instructed(task: Task, method: Method) -> Task:
    """The task as a method puts it, which leaves what is asked of others as it is."""
    if not method.instruction:
        return task
    return replace(task, prompt=lambda question: f"{method.instruction}{task.prompt(question)}")


def _asked(method: Method, evaluation: Evaluation, splits: Splits, seed: int) -> Asked:
    if evaluation.purpose == "retention":
        return Asked()
    answer = most_common_answer(splits.carved) if method.trivial else None
    drawn = evaluation.sampled
    return Asked(
        draw_shots(splits, method.shots, seed),
        trivial=method.trivial,
        constant_answer=answer,
        sampling=None if drawn is None else Sampling(drawn.samples, drawn.temperature, seed),
    )


def _evaluate(
    trial: Trial,
    evaluation: Evaluation,
    task: Task,
    examples: tuple[Example, ...],
    asked: Asked,
    adapted: LoadedModel,
    store: Store,
    environment: Environment,
    reporter: Reporter,
) -> None:
    if (task.version, items_digest(examples)) != (evaluation.task_version, evaluation.items):
        raise StudyError(f"the data of '{task.name}' changed while the study ran; run it again.")
    if evaluation.purpose != "validation":
        store.log_look(trial, evaluation)
    reporter.stage(f"{evaluation.purpose.replace('_', ' ')}: {task.name}", len(examples))
    with measure(str(adapted.model.device)) as measured:
        rows = evaluate(adapted, task, examples, asked, progress=reporter.advance)
        # A trained candidate's is in the record of its training.
        prompts = evaluation.purpose == "validation" and store.training(trial) is None
        loss = reference_loss(adapted, task, examples, asked) if prompts else None
    record = EvaluationRecord(
        evaluation=evaluation,
        eval_seconds=measured.seconds,
        peak_memory_bytes=measured.peak_memory_bytes,
        # A prompt is read once for all answers that are drawn to it.
        prompt_tokens=sum(row.prompt_tokens for row in rows if not row.sample),
        output_tokens=sum(row.output_tokens for row in rows),
        validation_loss=loss,
        environment=environment.key,
        finished=now(),
    )
    store.save_evaluation(trial, record, rows)


def _adapted(
    planned: Planned, method: Method, loaded: LoadedModel, items: TaskItems, store: Store, reporter: Reporter
) -> "PreTrainedModel":
    """The model to evaluate: untouched, the user's own, trained before or now, or between two of these."""
    trial = planned.trial
    if method.of is not None:
        tuned = load_checkpoint(_weights_of_parent(trial, store), loaded, dtype=torch.float32)
        return cast_weights(interpolate(loaded.model, tuned, method.weight), loaded.model.dtype)
    if method.checkpoint is not None:
        return load_checkpoint(method.checkpoint, loaded)
    if method.training is None:
        return loaded.model
    artifact = store.artifact(trial)
    if artifact is not None:
        return load_checkpoint(artifact, loaded)
    return _train(planned, method, loaded, items, store, reporter)


def _weights_of_parent(trial: Trial, store: Store) -> Path:
    parent = store.parent(trial)
    method = build(parent.method, parent.settings) if parent is not None else None
    found = method.checkpoint if method is not None and method.checkpoint else parent and store.artifact(parent)
    if not found:
        raise StudyError(
            f"the weights of '{trial.settings['of']}', from which '{trial.arm}' goes on, are not there: its training "
            f"failed or was deleted; run the study again with --retry-failed."
        )
    return found


@torch.no_grad()
def interpolate(base: torch.nn.Module, tuned: M, weight: float) -> M:
    """`tuned`, changed in place to base + weight (tuned - base), each weight by itself (arXiv:2109.01903, section 3).

    Computed in the precision of `tuned`; exactly `base` at weight 0 and `tuned` at 1.

    Raises:
        StudyError: the two do not have the same weights.
    """
    # A head by both of its names: it may be tied to the embedding in one model, and have gone its own way in the other.
    start = dict(base.named_parameters(remove_duplicate=False))
    shapes = {name: parameter.shape for name, parameter in tuned.named_parameters(remove_duplicate=False)}
    if shapes != {name: parameter.shape for name, parameter in start.items()}:
        raise StudyError("between these two models nothing lies: their weights differ in name or shape.")
    for name, end in tuned.named_parameters():
        end.copy_(torch.lerp(start[name].to(end.dtype), end, weight))
    return tuned


def load_checkpoint(folder: Path, loaded: LoadedModel, *, dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """A trained model out of a PEFT adapter for `loaded`, merged, or out of a whole model's folder.

    `dtype` is that of its weights; None: as those of `loaded`.

    Raises:
        StudyError: it does not fit the model.
    """
    from peft import PeftModel

    dtype, device = dtype or loaded.model.dtype, str(loaded.model.device)
    adapter = (folder / "adapter_config.json").is_file()
    try:
        if adapter:
            model = cast_weights(loaded.copy(), torch.float32)
            wrapped = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
            if wrapped.active_peft_config.is_prompt_learning:
                raise ValueError("what it learned are prompts, which cannot be merged into weights")
            return _merged(wrapped, dtype)
        model = load_weights(folder, dtype=dtype, device=device)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudyError(f"the checkpoint {folder} does not fit {loaded.record.name}: {reason}") from error
    if model.config.get_text_config().vocab_size < len(loaded.tokenizer):
        raise StudyError(f"the checkpoint {folder} has fewer tokens than {loaded.record.name}: it is of another model.")
    return model


def _merged(wrapped: torch.nn.Module, dtype: torch.dtype) -> "PreTrainedModel":
    """The base with its adapter folded in: added in float32, rounded once to the precision it ships in."""
    _untie(wrapped.get_base_model())  # type: ignore[operator]
    merged: PreTrainedModel = cast_weights(wrapped, torch.float32).merge_and_unload()  # type: ignore[operator]
    return cast_weights(merged, dtype)


def _untie(model: "PreTrainedModel") -> None:
    """Give a head weights of its own where an adapter on it or on the embedding would else be merged into both."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not any(hasattr(part, "get_base_layer") for part in (embedding, head)):
        return
    embedding, head = (getattr(part, "base_layer", part) for part in (embedding, head))
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]
        model.config.get_text_config().tie_word_embeddings = False


def _train(
    planned: Planned, method: Method, loaded: LoadedModel, items: TaskItems, store: Store, reporter: Reporter
) -> "PreTrainedModel":
    trial = planned.trial
    assert method.training is not None
    assert method.prepare is not None
    encoder = _encoder(loaded.tokenizer, items.task, loaded.record.chat)
    limit = loaded.model.config.get_text_config().max_position_embeddings
    rows, too_long = _rows(encoder, items.splits.train, limit)
    validation, _ = _rows(encoder, items.splits.validation, limit)
    if not rows:
        raise StudyError(f"every training example of '{trial.task}' is longer than {limit} tokens.")
    texts = items.replayed(method, trial.seed)
    rows = [*rows, *(TrainingRow(encoder.text_row(text)[:limit], prompt_length=1) for text in texts)]

    # What a plugin prepares may begin elsewhere.
    before = None if trial.plugin else _untouched_loss(loaded.model, encoder, items.splits.validation, limit)
    model = loaded.copy()
    steps = math.ceil(len(rows) / method.training.batch_size) * method.training.epochs
    reporter.stage("training", steps)

    def progress(entry: TrainingLogEntry, _: int) -> None:
        reporter.advance(1, f"loss {entry.loss:.3f}")

    with measure(str(model.device)) as measured, torch.random.fork_rng():
        # Decides initialisation and dropout; the order of the data has a generator of its own.
        torch.manual_seed(trial.seed)
        wrapped = method.prepare(model)
        base: PreTrainedModel = wrapped.get_base_model() if method.adapter else wrapped  # type: ignore[operator, assignment]
        with packed_attention_on(base):
            trained = train(
                wrapped,
                rows,
                validation,
                training=method.training,
                seed=trial.seed,
                keep_float32=method.adapter,
                keep_best=trial.best_checkpoint,
                before=before,
                scratch=store.trial_folder(trial),
                progress=progress,
            )

    save = partial(_save, wrapped, None if method.adapter else loaded.tokenizer)
    kept = planned.rung is None
    artifact_bytes = folder_bytes(store.save_artifact(trial, save)) if kept else 0
    record = TrainingRecord(
        outcome=trained.outcome,
        step=trained.step,
        steps=trained.steps,
        validation_loss_before=trained.validation_loss_before,
        validation_loss=trained.validation_loss,
        trainable_parameters=sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
        train_tokens=trained.tokens,
        train_seconds=measured.seconds,
        tokens_per_second=trained.tokens / measured.seconds,
        peak_memory_bytes=measured.peak_memory_bytes,
        artifact_bytes=artifact_bytes,
        skipped_too_long=too_long,
    )
    store.save_training(trial, record, trained.log)
    return _merged(wrapped, loaded.model.dtype) if method.adapter else wrapped  # type: ignore[return-value]


def _save(model: torch.nn.Module, tokenizer: "PreTrainedTokenizerBase | None", folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@lru_cache(maxsize=2)
def _encoder(tokenizer: "PreTrainedTokenizerBase", task: Task, chat: bool) -> Encoder:
    """One for all trials of a model and a task, and with it the rows below."""
    return Encoder(tokenizer, task, chat=chat)


@lru_cache(maxsize=4)
def _rows(encoder: Encoder, examples: tuple[Example, ...], limit: int) -> tuple[list[TrainingRow], int]:
    """Examples in tokens, the same for every trial, and how many are longer than `limit`."""
    rows = [TrainingRow(*encoder.training_row(example)) for example in examples]
    kept = [row for row in rows if len(row.ids) <= limit]
    return kept, len(rows) - len(kept)


_UNTOUCHED_LOSSES: "WeakKeyDictionary[PreTrainedModel, dict[tuple[object, ...], float | None]]" = WeakKeyDictionary()


def _untouched_loss(
    model: "PreTrainedModel", encoder: Encoder, examples: tuple[Example, ...], limit: int
) -> float | None:
    """Where every training of this model begins: measured once, and kept for as long as the model is."""
    known = _UNTOUCHED_LOSSES.setdefault(model, {})
    key = encoder.task.name, encoder.task.version, encoder.chat, examples, limit
    if key not in known:
        with packed_attention_on(model):
            known[key] = validation_loss(model, _rows(encoder, examples, limit)[0])
    return known[key]
