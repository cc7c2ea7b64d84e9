"""Random two-layer models of each family and a byte tokenizer, for tests and for bench/same_answers."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetrap.models import cast_weights

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": 256 + len(SPECIAL_TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "attn_implementation": "sdpa",
}
KINDS: dict[str, tuple[type[PreTrainedModel], type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
VARIANTS = {f"{kind}-{ties}": (kind, ties == "tied") for kind in KINDS for ties in ("tied", "untied")}
# Gemma untied: tied, a random model would only repeat its last token, since it scales its embeddings up.
FAMILIES = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", True), "gemma3": ("gemma3", False)}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte and five special ones, with a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    bos, eos, pad, *_ = SPECIAL_TOKENS
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(family: str = "llama", *, dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
    """A random two-layer model of a family or variant, ready to evaluate; the same at every call.

    `settings` are those of its configuration.
    """
    kind, tied = {**FAMILIES, **VARIANTS}[family]
    model, config, own = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model(config(**{**SIZES, **own, "tie_word_embeddings": tied, **settings}))
        return cast_weights(made, dtype).eval()
