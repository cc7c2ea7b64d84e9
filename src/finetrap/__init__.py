"""finetrap: how to adapt a small language model to a task, answered with evidence."""

__version__ = "0.1.0"
