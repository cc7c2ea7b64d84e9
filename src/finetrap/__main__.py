"""python -m finetrap"""

from finetrap.cli import entry

entry()
