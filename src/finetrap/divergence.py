"""How far a model moved: the Kullback-Leibler divergence of its next-token distributions from the untouched model's.

Accuracies miss what costs no answer yet, and likelihoods of choices a chat format that collapsed.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from finetrap.engine.attention import by_token_budget, pack_causal, packed_attention_on
from finetrap.engine.head import LOGITS_AT_A_TIME, Head
from finetrap.engine.loss import TrainingRow

TOKENS_AT_A_TIME = 2048


@torch.no_grad()
def divergences(
    untouched: PreTrainedModel,
    adapted: PreTrainedModel,
    texts: Sequence[TrainingRow],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """KL(untouched || adapted) of every text in nats: the sum over its tokens after the prompt.

    Both models read the same packed rows; at any time some tokens' logits of each exist, however large the
    vocabulary is. Where a checkpoint's is padded otherwise, what both have is compared.
    """
    results = [0.0] * len(texts)
    with packed_attention_on(untouched), packed_attention_on(adapted):
        heads = Head(untouched), Head(adapted)
        for group in by_token_budget([len(text.ids) for text in texts], TOKENS_AT_A_TIME):
            for i, nats in zip(group, _row(*heads, [texts[i] for i in group]), strict=True):
                results[i] = nats
            progress(len(group))
    return results


def _row(untouched: Head, adapted: Head, texts: Sequence[TrainingRow]) -> list[float]:
    device = untouched.causal.device
    row = pack_causal([text.ids for text in texts], device)
    predicting = [
        i
        for span, text in zip(row.spans, texts, strict=True)
        for i in range(span.stop - 1 - text.completion_length, span.stop - 1)
    ]
    positions = torch.tensor(predicting, device=device)
    # Two sets of logits, and of each its logarithms.
    size = max(1, LOGITS_AT_A_TIME // (4 * len(untouched.layer.weight)))
    parts = zip(
        untouched.logits(row, positions, at_a_time=size), adapted.logits(row, positions, at_a_time=size), strict=True
    )
    # Added up in float64, which not every device has.
    nats = torch.cat([token_divergences(p, q).cpu().double() for (_, p), (_, q) in parts])
    totals = torch.zeros(len(texts), dtype=nats.dtype)
    owners = torch.tensor([i for i, text in enumerate(texts) for _ in range(text.completion_length)])
    return list(totals.index_add_(0, owners, nats).tolist())


def token_divergences(
    p: Float[Tensor, "tokens vocabulary"], q: Float[Tensor, "tokens other"]
) -> Float[Tensor, " tokens"]:
    """KL(p || q) of each token in nats, from logits in float32, over the tokens that both vocabularies have."""
    shared = min(p.shape[1], q.shape[1])
    log_p, log_q = p[:, :shared].log_softmax(dim=-1), q[:, :shared].log_softmax(dim=-1)
    shares = log_p.exp()
    return log_p.sub_(log_q).mul_(shares).sum(dim=-1)
