"""How fast a model trains and answers here: a short probe of the real loops, in place of a matrix product."""

import time
from dataclasses import replace

from transformers import PreTrainedModel

from finetrap.data import Encoder
from finetrap.engine.attention import packed_attention_on
from finetrap.engine.loss import CompletionLoss, TrainingRow
from finetrap.evaluate import Asked, evaluate
from finetrap.method import Method
from finetrap.models import LoadedModel
from finetrap.plan import SHARE_OF_PEAK, TaskItems, tokens_of

EXAMPLES = 4
NEW_TOKENS = 16


def probed_flops(loaded: LoadedModel, items: TaskItems, method: Method | None) -> float:
    """Operations a second with which `finetrap.plan.estimate` comes to what a sample of the work took.

    The sample is one step of training of `method`, where one trains, and answers to a few validation questions.
    """
    tokens = 0.0
    taken = 0.0
    if method is not None and method.prepare is not None:
        encoder = Encoder(loaded.tokenizer, items.task, chat=loaded.record.chat)
        examples = items.splits.train[:EXAMPLES]
        rows = [TrainingRow(*encoder.training_row(example)) for example in examples]
        wrapped = method.prepare(loaded.copy())
        base: PreTrainedModel = wrapped.get_base_model() if method.adapter else wrapped  # type: ignore[operator, assignment]
        with packed_attention_on(base):
            losses = CompletionLoss(wrapped)
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                losses.backward(rows, forget=lambda: None)
                once = time.perf_counter() - started
        tokens, taken = 3 * tokens_of(examples), once
    asked = items.splits.validation[:EXAMPLES]
    short = replace(items.task, max_new_tokens=min(NEW_TOKENS, items.task.max_new_tokens))
    started = time.perf_counter()
    answers = evaluate(loaded, short, asked, Asked(), progress=lambda done: None)
    taken += time.perf_counter() - started
    decoded = sum(row.output_tokens for row in answers) if short.kind == "generate" else 0
    tokens += tokens_of(asked) + 3 * decoded
    return float(2 * loaded.record.parameters * tokens / (SHARE_OF_PEAK * taken))
