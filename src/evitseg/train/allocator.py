"""Memory of a training step: keeping freed blocks, and recognising an out-of-memory error."""

from __future__ import annotations

import ctypes
import errno

import torch

_MESSAGES = ("can't allocate memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, numpy or the system means that a GPU or the machine ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MESSAGES)


def keep_freed_memory() -> None:
    """Make the C library keep large freed blocks for this process instead of returning them to the system.

    Every step frees and allocates the same large blocks; fetching their pages again takes a quarter of its time on a
    CPU (benchmarks/training.py). Only glibc supports this; elsewhere the function does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
