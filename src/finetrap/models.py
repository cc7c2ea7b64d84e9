"""From a model's name to a loaded model and tokenizer. Safetensors and GGUF only."""

import copy
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from finetrap.config import DType, ModelSpec
from finetrap.errors import StudyError, unknown
from finetrap.gguf import dequantised, read_header
from finetrap.presets import PRESETS, file_sha256, here
from finetrap.quiet import quiet_hub, quiet_libraries
from finetrap.records import ModelRecord, digest
from finetrap.rows.in_memory import shown_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

M = TypeVar("M", bound="torch.nn.Module")


@dataclass(frozen=True)
class Source:
    """A model found on this machine, not loaded yet."""

    record: ModelRecord
    path: Path
    """A folder in Transformers format, or a GGUF file."""
    trust_remote_code: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A base model in memory. `model` stays as it was loaded: what trains, trains a copy."""

    record: ModelRecord
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    untouched: "PreTrainedModel | None" = None
    """What `model` was made of, where that is another one."""

    def copy(self) -> "PreTrainedModel":
        """An untouched copy to train."""
        return copy.deepcopy(self.model)


def find(spec: ModelSpec) -> Source:
    """Find a model by preset, local folder, GGUF file or Hub id, and check its files. Torch is not needed.

    Raises:
        StudyError: there is none, it is damaged, or its weights are a pickle.
    """
    preset = PRESETS.get(spec.name)
    # Unlike Path's, these take a name that is too long, or a user who is not there, for what it is: no file here.
    path = Path(os.path.expanduser(spec.name))
    revision = None
    if preset is not None and preset.gguf is not None:
        if not here(preset):
            raise StudyError(
                f"the weights of '{spec.name}' are not on this machine; run: finetrap models get {spec.name}"
            )
        path = preset.gguf
    elif preset is not None or not os.path.exists(path):
        path, revision = _from_hub(spec)
    name = shown_name(spec.name)
    record = _gguf_record(name, path) if path.is_file() else _folder_record(name, path)
    if spec.revision is not None and revision is None:
        raise StudyError(f"--revision names a commit of a Hub repository, and '{spec.name}' is on this machine.")
    known = preset or next((p for p in PRESETS.values() if p.hub == spec.name and p.package is None), None)
    # Of a model that is not known, a chat template says most; a base model may carry one all the same.
    aligned = known.aligned if known else record.chat
    chat = aligned and record.chat if spec.chat is None else spec.chat
    if chat and not record.chat:
        raise StudyError(
            f"model '{spec.name}' has no chat template; leave --chat out (in a study file: `chat: false`)."
        )
    record = record.model_copy(update={"aligned": aligned, "chat": chat, "revision": revision})
    return Source(record, path, spec.trust_remote_code)


def on_this_machine(spec: ModelSpec) -> bool:
    """Whether a model would be found without fetching it; what cannot be one at all is left to `find` to refuse."""
    if spec.name in PRESETS:
        return here(PRESETS[spec.name])
    if os.path.exists(os.path.expanduser(spec.name)) or not _is_hub_id(spec.name):
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(spec.name, "config.json", revision=spec.revision), str)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1


def _is_hub_id(name: str) -> bool:
    return "/" in name and not _looks_like_path(name)


def _from_hub(spec: ModelSpec) -> tuple[Path, str]:
    preset = PRESETS.get(spec.name)
    repository = preset.hub if preset else spec.name
    if preset is None and not _is_hub_id(spec.name):
        if _looks_like_path(spec.name):
            raise StudyError(f"there is no model at {spec.name}.")
        raise unknown("model", spec.name, PRESETS)
    from huggingface_hub import snapshot_download

    try:
        with quiet_hub():
            folder = snapshot_download(
                repository,
                revision=spec.revision,
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.py"],
            )
    except Exception as error:
        # The hub's client raises a dozen unrelated types; each is an input that the user can mend.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        what = "is not on this machine" if preset else "is no preset and no file here"
        raise StudyError(
            f"model '{spec.name}' {what}, and the Hub did not give '{repository}': {reason}. "
            f"Give a local folder, or see `finetrap models`."
        ) from error
    return Path(folder), Path(folder).name


def _gguf_record(name: str, path: Path) -> ModelRecord:
    header = read_header(path)
    return ModelRecord(
        name=name,
        fingerprint=file_sha256(path),
        quantisation=header.quantisation,
        parameters=header.parameters,
        aligned=False,
        chat=header.chat,
        file_bytes=path.stat().st_size,
    )


def _folder_record(name: str, folder: Path) -> ModelRecord:
    config = folder / "config.json"
    if not config.is_file():
        raise StudyError(f"{folder} has no config.json: it is not a model in Transformers format.")
    # Some repositories carry the same weights a second time, as consolidated.safetensors.
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if pickles:
            raise StudyError(
                f"{folder} holds its weights as a pickle ({pickles[0].name}), which can run code when it is loaded. "
                f'If you trust it, convert it: python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
        raise StudyError(f"{folder} has no weights (*.safetensors).")
    parameters = sum(_parameters(path) for path in weights)
    tokenizer = [folder / file for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")]
    extra = [folder / file for file in _DECIDING_FILES]
    if not any(path.is_file() for path in tokenizer):
        raise StudyError(f"{folder} has no tokenizer (tokenizer.json); save it beside the model.")
    present = [path for path in [config, *weights, *tokenizer, *extra] if path.is_file()]
    for path in present:
        if path.suffix == ".json":
            _json_object(path)
    return ModelRecord(
        name=name,
        fingerprint=_fingerprint(present),
        quantisation=None,
        parameters=parameters,
        aligned=False,
        chat=_has_chat_template(folder),
        file_bytes=sum(path.stat().st_size for path in weights),
    )


_DECIDING_FILES = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""What besides weights, configuration and vocabulary can change an answer."""


def check_checkpoint(folder: Path) -> None:
    """Check the files of a checkpoint that the user already has. Torch is not needed.

    Raises:
        StudyError: it is neither a PEFT adapter nor a model, or has no weights as safetensors that are whole.
    """
    if not folder.exists():
        raise StudyError(f"there is no checkpoint at {folder}.")
    if not (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise StudyError(f"{folder} is neither a PEFT adapter (adapter_config.json) nor a model (config.json).")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise StudyError(f"{folder} has no weights as safetensors; save them with safe_serialization.")
    for path in weights:
        _parameters(path)


def _parameters(path: Path) -> int:
    """Number of weights in a safetensors file, by its header.

    Raises:
        StudyError: the file is damaged.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        total, end = 0, 0
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
            end = max(end, tensor["data_offsets"][1])
        if 8 + length + end > path.stat().st_size:
            raise ValueError("tensors longer than the file")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise StudyError(f"{path} is a damaged or truncated safetensors file ({error}); download it again.") from None
    return total


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and "chat_template" in _json_object(config)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise StudyError(f"{path} cannot be read: it holds no settings, but a {type(value).__name__}.")
    return value


def _fingerprint(paths: list[Path]) -> str:
    return digest({path.name: file_sha256(path) for path in paths})


def choose_device(name: str) -> str:
    """The device to run on: as named, or the first of cuda, mps and cpu that is there.

    Raises:
        StudyError: the one named is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, is_there in there.items() if is_there)
    kind, _, index = name.partition(":")
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise StudyError(
            f"device '{name}' is not on this machine; there is: {', '.join(k for k, v in there.items() if v)}."
        )
    return name


def choose_dtype(name: DType, device: str) -> "torch.dtype":
    """The dtype to compute in: as named, or bfloat16 where the device multiplies in it, else float32."""
    import torch

    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.startswith("cuda"):
        # Where it is emulated it is slower than float32, and attention has no kernel for it.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Private to torch, and not in every build of it.
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if device == "cpu" and has_bfloat16() else torch.float32


class Reader(NamedTuple):
    """What reads a model's prompts."""

    tokenizer: "PreTrainedTokenizerBase"
    context: int
    """Tokens that the model can read."""
    width: int
    """Its hidden size."""


def load_reader(source: Source) -> Reader:
    """Load a model's tokenizer and the length of its context, without its weights.

    Raises:
        StudyError: Transformers cannot load them.
    """
    from transformers import AutoConfig, AutoTokenizer

    with _loading(source):
        options = {"local_files_only": True, "trust_remote_code": source.trust_remote_code}
        folder = str(_folder(source))
        config = AutoConfig.from_pretrained(folder, **options).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        return Reader(tokenizer, int(config.max_position_embeddings), int(config.hidden_size))


def load(source: Source, *, dtype: "torch.dtype", device: str) -> LoadedModel:
    """Load a model and its tokenizer.

    Raises:
        StudyError: Transformers cannot load it as a causal language model.
    """
    with _loading(source):
        model = load_weights(_folder(source), dtype=dtype, device=device, trust_remote_code=source.trust_remote_code)
    return LoadedModel(source.record, model, load_reader(source).tokenizer)


def _folder(source: Source) -> Path:
    return dequantised(source.path, source.record.fingerprint) if source.path.is_file() else source.path


@contextmanager
def _loading(source: Source) -> Iterator[None]:
    try:
        with quiet_libraries():
            yield
    except Exception as error:
        # Transformers and tokenizers raise what they please on a file that is not right, a bare Exception included.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, LookupError):
            reason = f"{type(error).__name__} {reason}"
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says"
        raise StudyError(
            f"model '{source.record.name}' cannot be loaded as a causal language model: {reason}"
        ) from error


def load_weights(
    folder: Path, *, dtype: "torch.dtype", device: str, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """Load a folder in Transformers format, without dropout, ready to evaluate."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        attn_implementation="sdpa",
    )
    torch.nn.Module.to(model, device)
    loaded: PreTrainedModel = torch.nn.Module.eval(model)
    return loaded


def cast_weights(model: M, dtype: "torch.dtype") -> M:
    """The same model, its weights in another precision.

    Buffers stay as they are, which `Module.to` would cast too: Transformers loads rotary frequencies in float32, and
    rounded to bfloat16 they turn distant tokens by tenths of a radian.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
