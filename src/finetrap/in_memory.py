"""Tables and models that a Python caller holds become files in the cache, named by their content.

So a study made of them is planned, resumed and repeated as any other.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from finetrap.errors import StudyError
from finetrap.presets import cache_folder, file_sha256


def named_table(value: object) -> object:
    """The path of a pandas or `datasets` table, written once as JSON lines; a file's as it is.

    Raises:
        StudyError: the table cannot be written so.
    """
    if isinstance(value, str | Path):
        return str(value)
    try:
        if hasattr(value, "to_pandas"):
            value = value.to_pandas()
        if not hasattr(value, "to_json"):
            return value
        text = value.to_json(orient="records", lines=True, force_ascii=False, date_format="iso")
    except (TypeError, ValueError, OverflowError) as error:
        raise StudyError(f"the table cannot be written as JSON: {error}.") from None
    file = cache_folder() / "tables" / hashlib.sha256(text.encode()).hexdigest()[:16] / "data.jsonl"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    return str(file)


def named_model(model: Any, tokenizer: Any = None) -> str:
    """The folder of a loaded Transformers model and its tokenizer, written once in Transformers format.

    Raises:
        StudyError: it is wrapped by PEFT, or its tokenizer is not given and cannot be found.
    """
    if hasattr(model, "peft_config"):
        raise StudyError(
            "the model is wrapped by PEFT; give the base model, and the saved adapter as an arm NAME=PATH."
        )
    name = Path(str(getattr(model, "name_or_path", "")) or type(model).__name__).name
    if tokenizer is None:
        tokenizer = _tokenizer_of(model)
    target = cache_folder() / "in_memory"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as part:
        folder = Path(part) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        content = "".join(file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file())
        final = target / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        if not final.is_dir():
            folder.replace(final)
    return str(final)


def _tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise StudyError(
            "the model does not say where its tokenizer is; give both: models=(model, tokenizer)."
        ) from error
