"""THE training loop: one for every method. What trains is said by `requires_grad`."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal, NamedTuple

import torch
from torch import Tensor

from finetrap.engine.loss import CompletionLoss, TrainingRow
from finetrap.method import Training
from finetrap.records import TrainingLogEntry

OPTIMISER_BYTES = 12
"""Of a trained weight: its gradient and AdamW's two moments, in float32, which the first step allocates."""
VALIDATIONS = 4
"""How often validation loss is measured in a run, evenly spaced, the end included."""


class Trained(NamedTuple):
    """How a run went; its weights are in the model."""

    outcome: Literal["completed", "diverged"]
    step: int
    """The step whose weights are in the model."""
    steps: int
    validation_loss_before: float | None
    validation_loss: float | None
    tokens: int
    log: list[TrainingLogEntry]


class Masters:
    """Float32 copies of the trained parameters, for the optimiser; in float32 the parameters themselves.

    A bfloat16 weight has 8 significant bits: an update smaller than 1/256 of it would round to nothing.
    Gradients are added up in float32 as well, as soon as they arise.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.parameters]
        self._hooks = []
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master is not parameter:
                master.grad = torch.zeros_like(master)
                hook = parameter.register_post_accumulate_grad_hook(_adder(master))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for master in self.masters:
            if master.grad is not None:
                master.grad.zero_()

    def publish(self) -> None:
        """Round the masters into the parameters that compute."""
        pairs = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if m is not p]
        if pairs:
            with torch.no_grad():
                torch._foreach_copy_([p for p, _ in pairs], [m for _, m in pairs])

    def finish(self, *, keep_float32: bool) -> None:
        """End training: leave the masters in the model where `keep_float32`, else what was rounded from them."""
        for hook in self._hooks:
            hook.remove()
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.grad = None
            if keep_float32 and master is not parameter:
                parameter.data = master
            master.grad = None


def _adder(master: Tensor) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        if parameter.grad is not None and master.grad is not None:
            master.grad += parameter.grad
            parameter.grad = None

    return add


class _Best:
    """The weights of the lowest validation loss so far, on disk: a full model's would not fit beside its optimiser."""

    def __init__(self, masters: Masters, loss: float | None, file: IO[bytes] | BytesIO) -> None:
        self._masters = masters
        self._file = file
        self.keep(loss, step=0)

    def keep(self, loss: float | None, *, step: int) -> None:
        """Take the weights as they are."""
        self.loss, self.step = loss, step
        self._file.seek(0)
        for parameter in self._masters.parameters:
            self._file.write(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
        self._file.flush()

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the weights back."""
        self._file.seek(0)
        for parameter, master in zip(self._masters.parameters, self._masters.masters, strict=True):
            saved = bytearray(self._file.read(parameter.numel() * parameter.itemsize))
            master.copy_(torch.frombuffer(saved, dtype=parameter.dtype).view(parameter.shape))
        self._masters.publish()


def train(
    model: torch.nn.Module,
    rows: Sequence[TrainingRow],
    validation: Sequence[TrainingRow],
    *,
    training: Training,
    seed: int,
    keep_float32: bool,
    keep_best: bool = False,
    before: float | None = None,
    scratch: Path | None = None,
    progress: Callable[[TrainingLogEntry, int], None] = lambda entry, steps: None,
) -> Trained:
    """Train what requires gradients; `model` is to be within `packed_attention_on`.

    The loss is that of completion tokens, the end-of-turn token included, averaged over the tokens of an
    optimiser step. The rate rises linearly over the warmup and falls linearly to zero. Data order is decided by
    `seed` alone, so that methods pair. A run that diverges ends with the weights of its best validation loss.

    `keep_best`: end with the weights of the lowest validation loss that was measured after a step, in any case.
    `before`: the validation loss to begin with, where it is known; None: it is measured.
    `keep_float32`: leave trained parameters in float32 (adapters, to be merged at full precision).
    `scratch`: the folder for a file of weights that may have to come back; None: the system's for such files.
    """
    steps_an_epoch = math.ceil(len(rows) / training.batch_size)
    steps = steps_an_epoch * training.epochs
    masters = Masters([p for p in model.parameters() if p.requires_grad])
    optimiser = torch.optim.AdamW(
        # One pass over the weights: on a CPU seven times faster than the default for a full model.
        masters.masters,
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=True,
    )
    validate_at = {math.ceil(steps * (i + 1) / VALIDATIONS) for i in range(VALIDATIONS)}

    losses = CompletionLoss(model, reserved_bytes=OPTIMISER_BYTES * sum(m.numel() for m in masters.masters))
    before = validated = _validated(losses, validation) if before is None else before
    # Beside a GPU there is memory for them; beside a CPU's optimiser there is not.
    on_gpu = losses.device.type == "cuda"
    with BytesIO() if on_gpu else TemporaryFile(dir=scratch) as file:
        best = _Best(masters, before, file)
        limit: float | None = None
        tokens = 0
        log: list[TrainingLogEntry] = []
        outcome: Literal["completed", "diverged"] = "completed"
        started = time.perf_counter()
        model.train()
        for step, batch in enumerate(_batches(rows, training.batch_size, training.epochs, seed), start=1):
            rate = training.learning_rate * _schedule(step, steps, training.warmup)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = losses.backward(batch, forget=masters.zero_grad)
            norm = float(torch.nn.utils.clip_grad_norm_(masters.masters, training.clip))
            tokens += sum(len(row.ids) for row in batch)
            limit = limit or explosion_limit(model, loss)
            if not (math.isfinite(loss) and math.isfinite(norm)) or loss > limit:
                outcome = "diverged"
                break
            optimiser.step()
            masters.publish()
            if step in validate_at:
                validated = _validated(losses, validation)
                model.train()
                # After the last step no training loss tells any more. Not `>`, which a NaN would pass.
                if validated is not None and before is not None and not validated <= max(limit, 1.5 * before):
                    outcome = "diverged"
                    break
                # With `keep_best`, the first takes the place of the untouched weights, even if it is worse.
                better = best.loss is None or (validated is not None and validated < best.loss)
                if validated is not None and step < steps and (better or (keep_best and best.step == 0)):
                    best.keep(validated, step=step)
            entry = TrainingLogEntry(
                step=step,
                epoch=step / steps_an_epoch,
                loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                tokens=tokens,
                seconds=time.perf_counter() - started,
                validation_loss=validated if step in validate_at else None,
            )
            log.append(entry)
            progress(entry, steps)
        last = steps
        worse = validated is not None and best.loss is not None and best.loss < validated
        if outcome == "diverged" or (keep_best and worse and best.step > 0):
            best.restore()
            last, validated = best.step, best.loss
    masters.finish(keep_float32=keep_float32)
    model.eval()
    return Trained(outcome, last, steps, before, validated, tokens, log)


def explosion_limit(model: torch.nn.Module, first_loss: float) -> float:
    """The loss from which a run counts as diverged: half again what guessing every token alike would give.

    A model that is worse than ln(vocabulary) before it is trained is measured by its own first loss.
    """
    vocabulary: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    return 1.5 * max(math.log(vocabulary), first_loss)


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest rate at `step` of `steps`, both from 1; never zero, so that each step counts."""
    rising = max(1, round(steps * warmup))
    return step / rising if step <= rising else (steps - step + 1) / (steps - rising + 1)


def _batches(rows: Sequence[TrainingRow], batch_size: int, epochs: int, seed: int) -> Iterator[list[TrainingRow]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), batch_size):
            yield [rows[i] for i in order[start : start + batch_size]]


def validation_loss(model: torch.nn.Module, rows: Sequence[TrainingRow]) -> float | None:
    """Mean nats a completion token, None without rows; within `packed_attention_on`."""
    return _validated(CompletionLoss(model), rows)


def _validated(loss: CompletionLoss, rows: Sequence[TrainingRow]) -> float | None:
    if not rows:
        return None
    loss.model.eval()
    return loss.mean(rows)
