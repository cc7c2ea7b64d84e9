"""Libraries that talk while they work, told to be quiet: finetrap has its own progress."""


def quiet_libraries() -> None:
    """Silence progress bars and advice of Transformers; its errors stay."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
