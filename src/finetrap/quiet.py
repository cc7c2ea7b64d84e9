"""Libraries that talk while they work, told to be quiet: finetrap has its own progress."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within it, no progress bars and no advice of Transformers, nor deprecations between it and peft."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Within it, the Hub's client does not tell of each try that failed: the error at the end says it once."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Within it, no advice of lm-evaluation-harness, and no progress bars of the data that it reads."""
    import logging

    import datasets

    harness = logging.getLogger("lm_eval")
    level, bars = harness.level, datasets.are_progress_bars_disabled()
    harness.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        harness.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
