"""Files that are there whole or not at all, and what a disk or a damaged file says, in words for the user."""

import errno
import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from finetrap.errors import StudyError
from finetrap.records import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")


def read_record(kind: type[R], path: Path) -> R:
    """The record that a JSON file holds.

    Raises:
        StudyError: the file cannot be read, or holds something else.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StudyError(
            f"{path} is damaged or of another version of finetrap ({type(error).__name__}); delete it and run again."
        ) from error


def read_lines(path: Path, parse: Callable[[bytes], T]) -> list[T]:
    """The values of a file that holds one a line, compressed where its name ends in .gz.

    Raises:
        StudyError: the file cannot be read, or a line is wrong.
    """
    try:
        content = path.read_bytes()
        return [parse(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()]
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        raise StudyError(f"{path} is damaged ({type(error).__name__}); delete its folder and run again.") from error


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `target` once all is written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    try:
        yield part
        part.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an error, or what it arose from, says that the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors writes in Rust and wraps what the system said in an error of its own.
    return error is not None and ("No space left on device" in str(error) or is_disk_error(error.__cause__))


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full or forbidden disk is for the user to mend, not a bug.

    Raises:
        StudyError: the disk is full, or `folder` cannot be written to.
    """
    try:
        yield
    except Exception as error:
        if is_disk_error(error):
            raise StudyError(
                f"no space left on the disk of {folder}; what is finished is kept. Make room, then run the same again."
            ) from error
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
            raise StudyError(f"{folder} cannot be written to; name another folder with --out.") from error
        raise
