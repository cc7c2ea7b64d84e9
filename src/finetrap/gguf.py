"""GGUF files: looked into without torch, dequantised once into the cache, their tokenizers repaired."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from finetrap.errors import StudyError
from finetrap.presets import cache_folder

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase


CONVERSION = 2
"""Raised whenever the copy of a file comes out otherwise, so that older copies in the cache are not taken for it."""


class GGUFHeader(NamedTuple):
    """What a GGUF file says of itself."""

    quantisation: str
    """As llama.cpp names the file's mix of types, such as Q4_K_M; else the type of most of its weights."""
    parameters: int
    pre_tokenizer: str
    """`tokenizer.ggml.pre`."""
    chat: bool
    """Whether it carries a chat template."""


def read_header(path: Path) -> GGUFHeader:
    """Read and check a GGUF file's header.

    Raises:
        StudyError: it is not GGUF, or it is cut off.
    """
    from gguf import GGMLQuantizationType, GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise StudyError(f"{path} is not a GGUF file (its first four bytes are not 'GGUF').")
    try:
        reader = GGUFReader(path)
    except Exception as error:
        # The reader runs off the end of the file in as many ways as there are places to cut it.
        raise StudyError(f"{path} is a damaged or truncated GGUF file; download it again.") from error
    weights: dict[str, int] = {}
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > path.stat().st_size:
            raise StudyError(f"{path} is a truncated GGUF file: '{tensor.name}' is not all there; download it again.")
        name = GGMLQuantizationType(tensor.tensor_type).name
        weights[name] = weights.get(name, 0) + int(tensor.n_elements)
    architecture = reader.get_field("general.architecture")
    kind = str(architecture.contents()) if architecture else "?"
    for size in ("block_count", "embedding_length"):
        # Transformers would put a large model's sizes in their place.
        if reader.get_field(f"{kind}.{size}") is None:
            raise StudyError(f"{path} is no language model that can be loaded: it does not say its {kind}.{size}.")
    pre = reader.get_field("tokenizer.ggml.pre")
    return GGUFHeader(
        quantisation=_file_type(reader) or max(weights, key=lambda name: weights[name]),
        parameters=sum(weights.values()),
        pre_tokenizer=str(pre.contents()) if pre else "",
        chat=reader.get_field("tokenizer.chat_template") is not None,
    )


def _file_type(reader: "GGUFReader") -> str | None:
    from gguf import LlamaFileType

    field = reader.get_field("general.file_type")
    known = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    return known.get(int(field.contents())) if field else None


def dequantised(path: Path, sha256: str) -> Path:
    """The folder with the dequantised copy of a GGUF file, made on first use; float32, Transformers format."""
    folder = cache_folder() / "dequantised" / f"{sha256}-{CONVERSION}"
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    header = read_header(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            dtype="float32",
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        model.save_pretrained(part)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
        repair(tokenizer, header.pre_tokenizer)
        tokenizer.save_pretrained(part)
        part.chmod(0o755)
        try:
            part.replace(folder)
        except OSError:
            # Another process made it meanwhile: the same copy.
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def repair(tokenizer: "PreTrainedTokenizerBase", pre_tokenizer: str) -> None:
    """Give a tokenizer back what Transformers' conversion loses; `pre_tokenizer` is the file's `tokenizer.ggml.pre`."""
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if pre_tokenizer == "smollm":
        # SmolLM2 splits numbers into digits.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    if type(tokenizer).__name__ == "GemmaTokenizer":
        # Its runs of spaces are user-defined: taken whole from the text, the longest first, and not merged from pairs.
        runs = [token for token in tokenizer.get_vocab() if len(token) > 1 and not token.strip("\u2581")]
        tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs])
