"""What the user already trained, evaluated as one more arm."""

from pathlib import Path

from finetrap.method import Method, method


@method
def checkpoint(path: str) -> Method:
    """A PEFT adapter for the study's model, or a whole fine-tuned model: did the fine-tune break it?

    Args:
        path: Folder with safetensors and a config.json, or with an adapter_config.json. NAME=PATH is short for it.
    """
    return Method(checkpoint=Path(path))
