"""Losses, gradients and whole runs of the packed loop, against a padded one, PEFT's own forward and TRL."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from finetrap.engine.attention import packed_attention_on
from finetrap.engine.loss import CompletionLoss, TrainingRow
from finetrap.engine.train import train, validation_loss
from finetrap.method import Training
from same_answers.cells import RELATIVE, Cell, Outcome, of_numbers
from same_answers.subjects import ADAPTING, SMOLLM2, TINY, Pair, base, solved, trainable

PAD = 0
STEPS = 50
IN_TRAIN = ", in train"
"""After the name of a parameter whose gradient the whole loop gave."""
RUN = 1e-4
"""How far validation losses after `STEPS` steps may lie apart: Adam divides by the size of a gradient, so that it
makes steps of the same size out of gradients that are rounding alone."""
FURTHER = 4
"""How many times as far from float64's gradient as Transformers' own ours may lie, where float32 is coarse: of random
tokens the distances of `sdpa`, `eager` and ours were up to 7 times one another, now one the furthest, now another."""
LOW_PRECISION = 0.03
"""How far the losses of a run in bfloat16 may lie from those in float32: it has 8 significant bits."""


# --- the plain loop --------------------------------------------------------------------------------------------------


def padded(rows: Sequence[TrainingRow]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, padded on the right."""
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [PAD] * (length - len(row.ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows])
    return ids, mask


def plain_losses(model: torch.nn.Module, rows: Sequence[TrainingRow]) -> Tensor:
    """Nats of each completion token, by the model's own forward pass on a padded batch.

    Of its logits in float64: torch's float32 cross entropy on a CPU loses the unlikely tokens beside a sure one.
    """
    ids, mask = padded(rows)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double()
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(rows), -1)
    return torch.cat([losses[i, row.prompt_length - 1 : len(row.ids) - 1] for i, row in enumerate(rows)])


def plain_gradient(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of each parameter that trains."""
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def plain_run(
    model: Any, rows: Sequence[TrainingRow], validation: Sequence[TrainingRow], training: Training, *, seed: int
) -> tuple[list[float], float]:
    """The losses of a run, padded, with torch's own AdamW; and the validation loss that it ends at."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=training.weight_decay, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(rows) / training.batch_size) * training.epochs
    warm = round(steps * training.warmup)
    losses: list[float] = []
    for _ in range(training.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), training.batch_size):
            done = len(losses)
            share = (done + 1) / warm if done < warm else (steps - done) / (steps - warm + 1)
            optimiser.param_groups[0]["lr"] = training.learning_rate * share
            optimiser.zero_grad()
            loss = plain_losses(model, [rows[i] for i in order[start : start + training.batch_size]]).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, training.clip)
            optimiser.step()
            losses.append(loss.item())
    with torch.no_grad():
        return losses, torch.cat([plain_losses(model, [row]) for row in validation]).mean().item()


# --- ours ------------------------------------------------------------------------------------------------------------


@contextmanager
def attending(pair: Pair) -> Iterator[None]:
    """Packed attention on the base of a model to train."""
    with packed_attention_on(pair.ours.get_base_model() if hasattr(pair.ours, "get_base_model") else pair.ours):
        yield


def loop_gradient(pair: Pair, rows: Sequence[TrainingRow]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of a step of `train`, as the optimiser is given them; nothing is learned from it."""
    seen: list[Tensor] = []

    def look(optimiser: torch.optim.Optimizer, *_: object) -> None:
        seen.extend(p.grad.flatten().clone() for g in optimiser.param_groups for p in g["params"] if p.grad is not None)

    training = Training(learning_rate=1e-9, batch_size=len(rows), clip=1e9)
    hook = register_optimizer_step_pre_hook(look)
    try:
        with attending(pair):
            trained = train(pair.ours, rows, [], training=training, seed=0, keep_float32=True)
    finally:
        hook.remove()
    # In the order of the parameters, whether the optimiser holds them one by one or as a whole.
    named = {name: p for name, p in pair.ours.named_parameters() if p.requires_grad}
    parts = torch.split(torch.cat(seen), [p.numel() for p in named.values()])
    gradients = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
    return trained.log[0].loss, gradients


def relative(got: Tensor, expected: Tensor) -> float:
    """The length of the difference over the length of what is expected."""
    size = expected.double().norm()
    return ((got.double() - expected.double()).norm() / size).item() if size else float(got.abs().max() > 0)


def of_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative difference of each parameter's gradient; the two have the same parameters."""
    if got.keys() != expected.keys():
        return dict.fromkeys(got.keys() ^ expected.keys(), math.inf)
    return {name: relative(got[name], expected[name]) for name in expected}


def of_all(ours: dict[str, dict[str, Tensor]], expected: dict[str, Tensor]) -> dict[str, float]:
    """The same of several gradients, by how they were computed."""
    return {f"{name}{how}": value for how, got in ours.items() for name, value in of_gradients(got, expected).items()}


def to_the_nearer(
    ours: dict[str, dict[str, Tensor]], reference: dict[str, Tensor], other: dict[str, Tensor]
) -> dict[str, float]:
    """The differences, each to the nearer of two references.

    Transformers' own two ways of attending lie more than `RELATIVE` apart by rounding in some gradients of real
    weights, so that no third can be as near to both.
    """
    one, two = of_all(ours, reference), of_all(ours, other)
    return {name: min(one[name], two[name]) for name in one}


# --- rows ------------------------------------------------------------------------------------------------------------


def _random(lengths: Sequence[int], vocabulary: int, prefix: Sequence[int] = ()) -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index, length in enumerate(lengths):
        ids = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        rows.append(TrainingRow([*prefix, *ids], len(prefix) + min(length - 1, index % 4) or 1))
    return rows


class RowSet(NamedTuple):
    """Rows to learn from, and what there is to them."""

    make: Callable[[str], list[TrainingRow]]
    """Out of a model's name."""
    by_loop: bool = False
    """Whether `train` makes several micro-batches of it, so that only the whole loop tells its gradient."""


def _solved(count: int) -> Callable[[str], list[TrainingRow]]:
    return lambda model: [TrainingRow(*row) for row in solved(base(model), count)]


def _made(lengths: Sequence[int], prefix: Sequence[int] = ()) -> Callable[[str], list[TrainingRow]]:
    return lambda model: _random(lengths, base(model).model.config.vocab_size, prefix)


ROWS = {
    "rows of a task, which share what the template begins with": RowSet(_solved(8)),
    "rows of 2 to 60 tokens that share nothing": RowSet(_made([60, 2, 7, 8, 9, 33, 16, 17, 2])),
    "rows that share 40 tokens": RowSet(_made([5, 30, 1, 8, 9], range(40))),
    "one row": RowSet(_made([50])),
    "a batch of several micro-batches": RowSet(
        _made([300, 290, 310, 5, 280, 305, 295, 300, 20], range(20)), by_loop=True
    ),
}


# --- cells -----------------------------------------------------------------------------------------------------------


def _loss_and_gradient(model: str, method: str, rows: RowSet, attention: str) -> Outcome:
    pair, batch = trainable(model, method), rows.make(model)
    pair.reference.set_attn_implementation(attention)
    loss_of_reference = plain_losses(pair.reference, batch).mean()
    expected, gradient = loss_of_reference.detach(), plain_gradient(pair.reference, loss_of_reference)
    ours: dict[str, dict[str, Tensor]] = {}
    numbers: dict[str, float] = {}
    if not rows.by_loop:
        with attending(pair):
            mean = CompletionLoss(pair.ours).summed(batch) / sum(row.completion_length for row in batch)
            ours[""] = plain_gradient(pair.ours, mean)
        numbers["loss of CompletionLoss"] = relative(mean.detach(), expected)
    loss, ours[IN_TRAIN] = loop_gradient(pair, batch)
    numbers["loss of train"] = abs(loss / expected.item() - 1)
    tokens = sum(len(row.ids) for row in batch)
    outcome = of_numbers(numbers | of_all(ours, gradient), tokens=tokens)
    if outcome.passed:
        return outcome
    pair.reference.set_attn_implementation("eager" if attention == "sdpa" else "sdpa")
    other = plain_gradient(pair.reference, plain_losses(pair.reference, batch).mean())
    apart = max(of_gradients(gradient, other).values())
    said = f"to the nearer of Transformers' sdpa and eager, which lie {apart:.2g} apart"
    outcome = of_numbers(numbers | to_the_nearer(ours, gradient, other), tokens=tokens, says=said)
    if outcome.passed or max(numbers.values()) > RELATIVE:
        return outcome
    reference = pair.reference.double()
    exact = plain_gradient(reference, plain_losses(reference, batch).mean())
    return by_float64(outcome, ours, (gradient, other), exact)


def by_float64(
    outcome: Outcome,
    ours: dict[str, dict[str, Tensor]],
    theirs: Sequence[dict[str, Tensor]],
    exact: dict[str, Tensor],
) -> Outcome:
    """The outcome by how far gradients in float32 lie from one in float64, against the furthest of `theirs`.

    Where the model or its rows make float32 coarse, two ways to compute the same lie apart by rounding alone, each in
    other layers: what counts is the furthest of all layers' parameters of a kind.
    """
    off = of_all(ours, exact)
    of_theirs: dict[str, float] = {}
    for their in theirs:
        for name, value in of_gradients(their, exact).items():
            of_theirs[_kind(name)] = max(of_theirs.get(_kind(name), 0.0), value)
    limit = {name: max(RELATIVE, FURTHER * of_theirs[_kind(name.removesuffix(IN_TRAIN))]) for name in off}
    over = [name for name in off if not off[name] <= limit[name]]
    if over:
        said = f"{over[0]}: {off[over[0]]:.2g} from float64, at most {limit[over[0]]:.2g} allowed"
    else:
        said = f"from float64 {max(off.values()):.2g}, Transformers' {max(of_theirs.values()):.2g}"
    return outcome._replace(differing=len(over), passed=not over, says=said)


def _kind(parameter: str) -> str:
    """A parameter's name without the number of its layer."""
    return re.sub(r"\.\d+\.", ".", parameter)


def _trl(model: str, method: str) -> Outcome:
    import datasets
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    pair, batch = trainable(model, method), _solved(6)(model)
    labelled = [{"input_ids": ids, "labels": [-100] * length + ids[length:]} for ids, length in batch]
    with TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=pair.reference,
            args=SFTConfig(
                output_dir=folder,
                report_to=[],
                use_cpu=True,
                bf16=False,
                max_length=None,
                per_device_train_batch_size=len(batch),
                activation_checkpointing=False,
                remove_unused_columns=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=datasets.Dataset.from_list(labelled),
            processing_class=base(model).tokenizer,
        )
        (given,) = trainer.get_train_dataloader()
        expected = trainer.compute_loss(pair.reference, given)
        gradient = plain_gradient(pair.reference, expected)
    loss, of_loop = loop_gradient(pair, batch)
    differences = {"gradient": relative(_as_one(of_loop), _as_one(gradient)), "loss": abs(loss / expected.item() - 1)}
    return of_numbers(differences, tokens=sum(len(row.ids) for row in batch))


def _as_one(gradient: dict[str, Tensor]) -> Tensor:
    """All parameters together, as clipping sees them; parameter by parameter the reference is `plain_losses`.

    TRL's loss is float32, whose rounding alone is above 1e-5 of the gradient of a parameter that has next to none.
    """
    return torch.cat([gradient[name].double().flatten() for name in sorted(gradient)])


def _run_rows(model: str) -> tuple[list[TrainingRow], list[TrainingRow], Training]:
    """What a run of `STEPS` steps is made of: 40 rows, 4 at a time, 5 times; of SmolLM2 2 at a time."""
    rows = _solved(48)(model)
    batch, epochs = (2, STEPS * 2 // 20) if model == SMOLLM2 else (4, STEPS * 4 // 40)
    count = 20 if model == SMOLLM2 else 40
    training = Training(learning_rate=1e-3, epochs=epochs, batch_size=batch, weight_decay=0.01)
    return rows[:count], rows[count : count + 8], training


def _rate(method: str, model: str) -> float:
    return 3e-5 if method == "full" and model == SMOLLM2 else 1e-3


def _whole_run(model: str, method: str) -> Outcome:
    pair = trainable(model, method)
    rows, validation, training = _run_rows(model)
    training = Training(**{**vars(training), "learning_rate": _rate(method, model)})
    losses, expected = plain_run(pair.reference, rows, validation, training, seed=0)
    with attending(pair):
        trained = train(pair.ours, rows, validation, training=training, seed=0, keep_float32=True)
        loss_after = validation_loss(pair.ours, validation)
    assert trained.validation_loss is not None
    assert loss_after is not None
    got = [entry.loss for entry in trained.log]
    if len(got) != STEPS or len(losses) != STEPS:
        return Outcome(len(got), trained.tokens, 1, says=f"{len(got)} and {len(losses)} steps instead of {STEPS}")
    differences = {
        "validation loss told": abs(trained.validation_loss / expected - 1),
        "validation loss of the weights left": abs(loss_after / expected - 1),
        "loss of the first step": abs(got[0] / losses[0] - 1),
    }
    said = (
        f"validation loss {trained.validation_loss:.6f} and {expected:.6f}, from {trained.validation_loss_before:.4f}"
    )
    return of_numbers(differences, tokens=trained.tokens, limit=RUN, says=said)


def _low_precision_run(model: str, method: str) -> Outcome:
    """In bfloat16 with float32 masters, against the plain loop in float32."""
    pair = trainable(model, method, torch.bfloat16)
    rows, validation, training = _run_rows(model)
    training = Training(**{**vars(training), "learning_rate": _rate(method, model)})
    losses, expected = plain_run(pair.reference, rows, validation, training, seed=0)
    with attending(pair):
        trained = train(pair.ours, rows, validation, training=training, seed=0, keep_float32=False)
    assert trained.validation_loss is not None
    got = torch.tensor([entry.loss for entry in trained.log])
    differences = {
        "validation loss": abs(trained.validation_loss / expected - 1),
        "losses of the steps": relative(got, torch.tensor(losses)),
    }
    said = (
        f"validation loss {trained.validation_loss:.4f} and {expected:.4f}, from {trained.validation_loss_before:.4f}"
    )
    return of_numbers(differences, tokens=trained.tokens, limit=LOW_PRECISION, says=said)


def cells(models: Sequence[str]) -> Iterator[Cell]:
    """Every model and method on every set of rows, and as whole runs."""
    for model in models:
        for method in ADAPTING:
            for name, rows in ROWS.items():
                if model == SMOLLM2 and rows.by_loop:
                    continue
                for attention in ("sdpa",) if rows.by_loop else ("sdpa", "eager"):
                    compute = partial(_loss_and_gradient, model, method, rows, attention)
                    yield Cell(f"loss and gradient, {name}, attention {attention}", model, method, compute)
            yield Cell("loss and gradient of TRL", model, method, partial(_trl, model, method))
            yield Cell(f"a run of {STEPS} steps", model, method, partial(_whole_run, model, method))
            if model in TINY:
                compute = partial(_low_precision_run, model, method)
                yield Cell(f"a run of {STEPS} steps in bfloat16, within {LOW_PRECISION:.0%}", model, method, compute)
