"""The commands, a module for those that belong together. No logic: words become a study, and answers are printed."""

# ruff: isort: off
# Imported for their commands, in the order of --help.
from finetrap.cli import demo as demo
from finetrap.cli import compare as compare
from finetrap.cli import run as run
from finetrap.cli import check_data as check_data
from finetrap.cli import folder as folder
from finetrap.cli import judge as judge
from finetrap.cli import lists as lists
from finetrap.cli.root import app, call, entry

__all__ = ["app", "call", "entry"]
