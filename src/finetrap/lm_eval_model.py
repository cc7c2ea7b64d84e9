"""finetrap's engine as a model of lm-evaluation-harness: `lm_eval --model finetrap`.

It is the harness's own `hf` model with another way of computing: tokens, templates, windows and truncation are
inherited, so that they cannot differ. What is not greedy is left to Transformers, as there.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from finetrap.config import DType, ModelSpec
from finetrap.engine.generate import generate_greedy, stop_tokens
from finetrap.engine.likelihood import ChoiceItem, choice_scores
from finetrap.errors import unknown
from finetrap.models import check_checkpoint, choose_device, choose_dtype, find, load

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Tokens = tuple[int, ...]
Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What is cached under, the context's tokens and the continuation's."""

LONG_TOKENS = 256
"""A continuation longer than that is scored with a context of its own: nothing is gained where little is shared."""
SHARED_TOKENS = 32
"""What contexts begin with alike is computed once from this length on, if it is half of each at least."""
ANSWERS_TOGETHER = 64
"""Answers are written apart from others for what they share if they are as many: few rows take as long as many."""

_GREEDY_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"}
_GREEDY_CONFIG = _GREEDY_KEYS | {
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
    *("max_length", "use_cache", "cache_implementation", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
}
"""Settings of a generation that leave the likeliest token what it is."""
_NEUTRAL = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), 1),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "diversity_penalty"), 0),
}
"""Likewise, at these values."""


class Asking(NamedTuple):
    """A context, and the requests for each of its continuations."""

    context: Tokens
    choices: dict[Tokens, list[int]]


class _Limits(NamedTuple):
    until: tuple[str, ...]
    max_new_tokens: int


@register_model("finetrap")
class FinetrapLM(HFLM):  # type: ignore[misc]
    """A model by preset, folder, GGUF file or Hub id, as every command of finetrap takes it."""

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        **prompting: Any,
    ) -> None:
        """`batch_size` is for sampling only; `prompting` are those settings of `hf` that decide tokens and templates.

        Raises:
            StudyError: there is no such model, it cannot be loaded, or the adapter does not fit it.
        """
        known = ("add_bos_token", "prefix_token_id", "truncation", "think_end_token", "enable_thinking")
        for name in prompting:
            if name not in (*known, "chat_template_args"):
                raise unknown("model argument", name, (*known, "chat_template_args", "pretrained", "peft", "dtype"))
        if dtype not in get_args(DType):
            raise unknown("dtype", dtype, get_args(DType))
        from finetrap.engine.attention import check_packing
        from finetrap.trial import load_checkpoint

        if peft:
            check_checkpoint(Path(peft))
        source = find(ModelSpec(name=pretrained, revision=revision, trust_remote_code=trust_remote_code))
        chosen = choose_device(device or "auto")
        loaded = load(source, dtype=choose_dtype(cast("DType", dtype), chosen), device=chosen)
        check_packing(loaded.model)
        model = load_checkpoint(Path(peft), loaded) if peft else loaded.model
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer or loaded.tokenizer.name_or_path,
            trust_remote_code=trust_remote_code,
            batch_size=batch_size or 1,
            max_batch_size=max_batch_size or 64,
            max_length=max_length,
            **prompting,
        )
        self.record = loaded.record

    def get_model_info(self) -> dict[str, Any]:
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "model_revision": self.record.revision,
            "model_sha": self.record.fingerprint,
        }

    def loglikelihood_rolling(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[float]:
        owners: list[int] = []
        windows: list[Request] = []
        for index, request in enumerate(requests):
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                owners.append(index)
                windows.append((None, *make_disjoint_window(pair)))
        totals = [0.0] * len(requests)
        for index, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[index] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        asked: list[Asking] = []
        by_context: dict[Tokens, Asking] = {}
        cut = 0
        for index, (_, context, continuation) in enumerate(requests):
            if not context or not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"request {index}: {len(context)} tokens of context and {len(continuation)} to score; it takes at "
                    f"least one of each, and at most {self.max_length} to score."
                )
            # The last token is predicted and not read, hence one more than fits.
            room = self.max_length + 1 - len(continuation)
            cut += len(context) > room
            kept = tuple(context[-room:])
            if len(continuation) > LONG_TOKENS or kept not in by_context:
                asked.append(Asking(kept, {}))
                by_context[kept] = asked[-1]
            by_context[kept].choices.setdefault(tuple(continuation), []).append(index)
        if cut:
            _say(f"{cut} contexts are longer than the model's {self.max_length} tokens allow, and are cut on the left")
        answers: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(asked), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for shared, places in by_beginning([one.context for one in asked]):
                group = [asked[place] for place in places]
                items = [ChoiceItem(list(a.context[shared:]), [list(choice) for choice in a.choices]) for a in group]
                prefix = group[0].context[:shared]
                scored = choice_scores(self.model, items, prefix=prefix, progress=bar.update)
                for one, scores in zip(group, scored, strict=True):
                    for indices, score in zip(one.choices.values(), scores, strict=True):
                        for index in indices:
                            answers[index] = (score.loglikelihood, score.greedy)
                            if (key := requests[index][0]) is not None:
                                self.cache_hook.add_partial("loglikelihood", key, answers[index])
        return [answers[index] for index in range(len(requests))]

    def generate_until(self, requests: "list[Instance]", disable_tqdm: bool = False) -> list[str]:
        alike: dict[_Limits | None, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            alike[self._limits(request.args[1])].append(index)
        answers: dict[int, str] = {}
        for limits, indices in alike.items():
            chosen = [requests[index] for index in indices]
            if limits is None:
                _say(f"{len(chosen)} answers are not greedy alone, and are generated by Transformers, as by `hf`")
                texts = super().generate_until(chosen, disable_tqdm)
            else:
                texts = self._greedy(chosen, limits, disable_tqdm)
            answers.update(zip(indices, texts, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _limits(self, settings: dict[str, Any]) -> _Limits | None:
        """What ends an answer; None where it is not the likeliest token after another, all of them."""
        normal = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        configured = self.model.generation_config
        own = configured.to_diff_dict() if configured is not None else {}
        asked, own = ({k for k, v in d.items() if k not in _NEUTRAL or v != _NEUTRAL[k]} for d in (normal, own))
        if normal["do_sample"] or not _GREEDY_KEYS.issuperset(asked) or not _GREEDY_CONFIG.issuperset(own):
            return None
        if self.think_end_token is not None:
            return None
        until = handle_stop_sequences(normal["until"], eos=self.tok_decode(self.eot_token_id, False))
        return _Limits(tuple(until), normal["max_gen_toks"])

    def _greedy(self, requests: "list[Instance]", limits: _Limits, disable_tqdm: bool) -> list[str]:
        room = self.max_length - limits.max_new_tokens
        if room <= 0:
            raise ValueError(f"max_gen_toks is {limits.max_new_tokens}, and the model reads {self.max_length} tokens")
        prompts = [
            # One at a time: whether a batch gets its beginning-of-sequence token is decided by its first.
            self.tok_batch_encode([request.args[0]], left_truncate_len=room, truncation=self.truncation)[0][0].tolist()
            for request in requests
        ]
        ends = stop_tokens(self.model, self.tokenizer, limits.until) | {self.eot_token_id}
        texts: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for _, group in by_beginning([tuple(prompt) for prompt in prompts], least=ANSWERS_TOGETHER):
                generated = generate_greedy(
                    self.model,
                    self.tokenizer,
                    [prompts[index] for index in group],
                    max_new_tokens=limits.max_new_tokens,
                    stop_tokens=ends,
                    stop_texts=limits.until,
                    progress=bar.update,
                )
                for index, answer in zip(group, generated, strict=True):
                    texts[index] = postprocess_generated_text(answer.text, list(limits.until), None)
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
        return [texts[index] for index in range(len(requests))]


def _say(what: str) -> None:
    logging.getLogger(__name__).warning("%s.", what)


def by_beginning(contexts: Sequence[Tokens], least: int = 2) -> list[tuple[int, list[int]]]:
    """Their indices in groups, each with the number of tokens that all of it begin with, one left over for each.

    What would be in a group of fewer than `least` shares nothing, and is one group.
    """
    groups: list[tuple[int, list[int]]] = []
    group: list[int] = []
    shared = longest = 0
    for index in sorted(range(len(contexts)), key=lambda i: contexts[i]):
        # In this order whatever the first and the last begin with alike, all between them do too.
        both = _common(contexts[group[0]], contexts[index]) if group else 0
        longest = max(longest, len(contexts[index]))
        if group and both < max(SHARED_TOKENS, longest // 2):
            groups.append((shared, group))
            group, longest = [], len(contexts[index])
        group.append(index)
        shared = both
    groups.append((shared, group))
    alone = [index for _, group in groups if len(group) < least for index in group]
    together = [(shared, group) for shared, group in groups if len(group) >= least]
    return [*together, (0, alone)] if alone else together


def _common(a: Tokens, b: Tokens) -> int:
    shortest = min(len(a), len(b))
    return min(next((i for i in range(shortest) if a[i] != b[i]), shortest), shortest - 1)
