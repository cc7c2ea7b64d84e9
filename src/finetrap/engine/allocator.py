"""The C library's allocator, told to keep what is freed: a hot loop frees and allocates the same large tensors."""

import ctypes
import platform
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3), from malloc.h."""
LARGEST = (1 << 31) - 1
LARGEST_BEFORE_2_35 = 32 << 20
"""What older versions of glibc take for M_MMAP_THRESHOLD at most."""


def give_back_freed_memory() -> None:
    """Return to the system what is kept, so that the memory of what comes next can be measured."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let glibc serve large tensors out of memory it keeps. Else each is mapped, cleared and unmapped by the kernel.

    Elsewhere than with glibc nothing is done.
    """
    if _is_glibc():
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(M_MMAP_THRESHOLD, LARGEST):
            mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE_2_35)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
