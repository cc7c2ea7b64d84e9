"""Full fine-tuning."""

from typing import TYPE_CHECKING

from finetrap.method import Method, Training, trains

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


@trains(learning_rate=5e-5, prior=5e-5)
def full(*, training: Training) -> Method:
    """Train every weight, with float32 master weights."""

    def prepare(model: "PreTrainedModel") -> "Module":
        model.requires_grad_(True)
        return model

    return Method(training=training, prepare=prepare)
