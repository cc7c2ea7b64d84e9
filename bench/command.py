"""What the scripts of this folder are told on the command line, and how they find models."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from finetrap.presets import PRESETS, here


def say_of(what: str) -> Callable[[str], None]:
    return lambda text: print(f"{what}: {text}", flush=True)


def spec_of(model: str, folder: Path | None) -> str | None:
    """What finds a model: a preset that is here, a path, or a GGUF file of that name in a folder; None without one."""
    if (model in PRESETS and here(PRESETS[model])) or Path(model).exists():
        return model
    found = sorted(folder.glob(f"{model}*.gguf")) if folder else []
    return str(found[0]) if found else None


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What this script and those beside it are told."""
    folder = os.environ.get("FINETRAP_BENCH_MODELS")
    parser.add_argument("--models", type=Path, default=folder, help="folder with GGUF files")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few rows: whether it runs, not how fast")
    return parser.parse_args()


def model_here(given: argparse.Namespace) -> tuple[str, str]:
    """The name of the one model that a script was told, and what finds it; ends the script where it is not here."""
    spec = spec_of(given.model, given.models)
    if spec is None:
        raise SystemExit(f"{given.model} is not here; run: finetrap models get {given.model}")
    return (Path(spec).stem if Path(spec).exists() else spec), spec


def quiet() -> None:
    """What the workers inherit: no Hub, no progress bars."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
