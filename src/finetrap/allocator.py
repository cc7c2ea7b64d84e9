"""The C library's allocator, told to keep what is freed: a hot loop frees and allocates the same large tensors."""

import ctypes
import platform
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3), from malloc.h."""
LARGEST = (1 << 31) - 1


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Let glibc serve large tensors out of memory it keeps. Else each is mapped, cleared and unmapped by the kernel.

    Elsewhere than with glibc nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)
