"""The C library's memory, kept between steps."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
NEVER = 2**31 - 1
TOP_PAD_BYTES = 512 * 2**20


def keep_freed_memory() -> bool:
    """Let freed memory be used again rather than go back to the system; False where glibc is not.

    A training step allocates and frees the same large maps each time. By default glibc gives each
    back at once, and the next step pays for every page again: two thirds of a step on the CPU at a
    batch of 256. The memory a process holds is then its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
