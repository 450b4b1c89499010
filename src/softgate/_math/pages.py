"""Large results in large pages.

The C library maps blocks from 32 MiB on anew for each tensor, and the system then hands out their pages as they are
first written: 8192 page faults for 32 MiB, which can take longer than everything else that a linear attention does. A
system that is asked for large pages hands out 2 MiB at a time.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

from torch import Tensor

#: Bytes from which a block is never taken from memory that was used before.
LARGE = 2**25


def in_large_pages(x: Tensor, at_least: int = LARGE) -> Tensor:
    """``x``, which nothing has been written to yet, in large pages if it has ``at_least`` bytes; a hint, no more."""
    if x.nbytes < at_least or x.device.type != "cpu":
        return x
    advise = _advise()
    if advise is not None:
        start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, (x.data_ptr() + x.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE)
    return x


@functools.cache
def _advise() -> Callable[[int, int], int] | None:
    """``(address, bytes) -> status`` of the system's call, None where there is none."""
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda address, size: madvise(address, size, mmap.MADV_HUGEPAGE)
