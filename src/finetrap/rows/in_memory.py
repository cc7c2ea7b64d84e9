"""Tables and models that a Python caller holds become files in the cache, named by their content.

So a study made of them is planned, resumed and repeated as any other.
"""

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetrap.errors import StudyError
from finetrap.presets import cache_folder, file_sha256

_TABLES, _MODELS = "tables", "in_memory"


def is_table(value: object) -> bool:
    """Whether it is a table of pandas or `datasets`, one of any kind."""
    return hasattr(value, "to_pandas") or hasattr(value, "to_json")


def is_model(value: object) -> bool:
    """Whether it is a model of Transformers, or one and its tokenizer."""
    if isinstance(value, tuple):
        return (
            len(value) == 2 and is_model(value[0]) and not is_model(value[1]) and hasattr(value[1], "save_pretrained")
        )
    return hasattr(value, "save_pretrained") and hasattr(value, "forward")


def named_table(value: Any) -> object:
    """The path of a pandas or `datasets` table, written once as JSON lines; a file's as it is.

    A number is written without a point where it is whole: pandas makes floats of whole numbers when one is missing.

    Raises:
        StudyError: the table cannot be written so.
    """
    if isinstance(value, str | Path):
        return str(value)
    if value is None:
        return None
    rows = _rows(value)
    try:
        text = "".join(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        data = text.encode()
    except (TypeError, ValueError) as error:
        raise StudyError(f"the table cannot be written as JSON: {error}.") from None

    def write(folder: Path) -> str:
        (folder / "data.jsonl").write_bytes(data)
        return hashlib.sha256(data).hexdigest()[:16]

    return str(_kept(_TABLES, write) / "data.jsonl")


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    kind = f"{type(table).__module__.partition('.')[0]}.{type(table).__name__}"
    if isinstance(table, dict):
        raise StudyError(f"a {kind} holds several tables; give each: OwnData(train=data['train'], test=data['test']).")
    if hasattr(table, "iloc") and hasattr(table, "columns"):
        if not table.columns.is_unique:
            raise StudyError("two columns of the table have the same name.")
        return _frame_rows(table)
    if not hasattr(table, "column_names") or not hasattr(table, "with_format"):
        raise StudyError(f"a {kind} is no data: give a file, a Hub id, a pandas DataFrame or a datasets.Dataset.")
    if not hasattr(table, "__len__"):
        raise StudyError(f"a {kind} is read as it comes, and a study reads its rows again; load it without streaming.")
    return iter(table.with_format(None))


def _frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in frame.columns]
    # Of objects, so that a whole number in one column stays one beside floats in another.
    cells = frame.astype(object).itertuples(index=False, name=None)
    for values, missing in zip(cells, frame.isna().to_numpy(), strict=True):
        yield {n: None if gone else value for n, value, gone in zip(names, values, missing, strict=True)}


def _plain(value: Any) -> Any:
    """A cell as JSON has it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # of numpy
        return _plain(value.tolist())
    return value.isoformat() if hasattr(value, "isoformat") else value


def named_model(value: Any) -> object:
    """The folder of a loaded Transformers model and its tokenizer, written once in Transformers format.

    Raises:
        StudyError: it is not a whole model in memory, or its tokenizer is not given and cannot be found.
    """
    if not is_model(value):
        return str(value) if isinstance(value, Path) else value
    model, tokenizer = value if isinstance(value, tuple) else (value, None)
    _check_whole(model)
    tokenizer = _as_loaded(_tokenizer_of(model) if tokenizer is None else tokenizer)
    from finetrap.quiet import quiet_libraries
    from finetrap.records import slug

    def write(folder: Path) -> str:
        try:
            with quiet_libraries():
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StudyError(f"the model cannot be written in Transformers format: {said}") from error
        content = [[path.name, file_sha256(path)] for path in sorted(folder.rglob("*")) if path.is_file()]
        name = slug(Path(str(getattr(model, "name_or_path", ""))).name or type(model).__name__)
        return f"{name}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}"

    return str(_kept(_MODELS, write))


def shown_name(name: str) -> str:
    """How a model is called in tables: one out of memory by its own name, not by its path in the cache."""
    path = Path(name)
    return path.name if path.parent == cache_folder().absolute() / _MODELS else name


def _check_whole(model: Any) -> None:
    if hasattr(model, "peft_config"):
        raise StudyError(
            "the model is wrapped by PEFT; give the base model, and the saved adapter as an arm NAME=PATH."
        )
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise StudyError("the model is quantised; a study adapts full-precision weights: load it without quantisation.")
    if any(weight.is_meta for weight in model.parameters()):
        raise StudyError("some of the model's weights are not in memory (device_map); load it onto one device.")


def _tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.name_or_path, revision=getattr(model.config, "_commit_hash", None))
    except (OSError, ValueError) as error:
        raise StudyError(
            "the model does not say where its tokenizer is; give both: models=(model, tokenizer)."
        ) from error


def _as_loaded(tokenizer: Any) -> Any:
    """A copy without the padding and truncation of its last call, which it would save as well."""
    tokenizer = copy.deepcopy(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    return tokenizer


def _kept(kind: str, write: Callable[[Path], str]) -> Path:
    """The folder that `write` fills and names; it is there whole or not at all, whoever else writes the same."""
    cache = cache_folder().absolute() / kind
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as part:
            folder = Path(part) / "content"
            folder.mkdir()
            final = cache / write(folder)
            try:
                folder.replace(final)
            except OSError:
                if not final.is_dir():  # else it was there, or another process was faster
                    raise
    except OSError as error:
        raise StudyError(
            f"{cache} cannot be written to ({error.strerror or error}); name another folder in FINETRAP_CACHE."
        ) from error
    return final
