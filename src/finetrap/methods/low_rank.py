"""Low-rank adapters, through PEFT: LoRA and DoRA on every linear layer but the head."""

from typing import TYPE_CHECKING

from finetrap.method import Method, Training, trains

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


def _low_rank(rank: int, alpha: int, dropout: float, training: Training, *, use_dora: bool) -> Method:
    def prepare(model: "PreTrainedModel") -> "Module":
        from peft import LoraConfig, get_peft_model

        from finetrap.engine.adapters import speed_up

        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules="all-linear",
            use_dora=use_dora,
            task_type="CAUSAL_LM",
        )
        wrapped: Module = get_peft_model(model, config)
        speed_up(wrapped)
        return wrapped

    return Method(training=training, prepare=prepare, adapter=True)


@trains(learning_rate=1e-3, prior=5e-4)
def lora(rank: int = 16, alpha: int = 32, dropout: float = 0.0, *, training: Training) -> Method:
    """Train B and A in W + (alpha / rank) B A, with W frozen (arXiv:2106.09685).

    Args:
        rank: Columns of B and rows of A: how much can be learned, and how large the adapter is.
        alpha: Scale of what is added, over `rank`.
        dropout: Share of A's inputs that is zeroed in training.
        training: As every method that trains.
    """
    return _low_rank(rank, alpha, dropout, training, use_dora=False)


@trains(learning_rate=1e-3, prior=5e-4)
def dora(rank: int = 16, alpha: int = 32, dropout: float = 0.0, *, training: Training) -> Method:
    """LoRA for the direction of each column of W, its magnitude trained apart (arXiv:2402.09353).

    Args:
        rank: Columns of B and rows of A: how much can be learned, and how large the adapter is.
        alpha: Scale of what is added, over `rank`.
        dropout: Share of A's inputs that is zeroed in training.
        training: As every method that trains.
    """
    return _low_rank(rank, alpha, dropout, training, use_dora=True)
