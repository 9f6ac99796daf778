"""Memory that is about to be filled, taken from the system some megabytes at a time.

The first write to each page of new memory stops the program while the system finds a page and clears it. Asked for at
once, a run of pages costs two thirds of that, and is still in the processor's cache when it is written
(https://man7.org/linux/man-pages/man2/madvise.2.html, MADV_POPULATE_WRITE, since Linux 5.14).
"""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator

import numpy as np

_POPULATE_WRITE = 23  # Linux's number, which the module mmap does not have yet
_PIECE = 2**21


def _system_call() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise


_madvise = _system_call()


def pieces(buffer: memoryview) -> Iterator[memoryview]:
    """Parts of a buffer of bytes, each to be filled before the next is asked for; their pages are there by then.

    Where the system does not do that, they come by themselves as they are written.
    """
    for start in range(0, len(buffer), _PIECE):
        piece = buffer[start : start + _PIECE]
        if _madvise is not None and len(piece) > mmap.PAGESIZE:
            place = np.frombuffer(piece, np.uint8).ctypes.data
            first, end = -(-place // mmap.PAGESIZE), (place + len(piece)) // mmap.PAGESIZE
            _madvise(first * mmap.PAGESIZE, (end - first) * mmap.PAGESIZE, _POPULATE_WRITE)
        yield piece
