"""Memory of a training step: kept once it was asked for, and recognised when it runs out."""

from __future__ import annotations

import ctypes
import errno

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory, or the machine's own, is full, as PyTorch, numpy or the system say it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYINGS)


_SAYINGS = ("can't allocate memory", "bad_alloc")


def keep_freed_memory() -> None:
    """Ask the C library to keep large freed blocks for this process instead of giving them back to the system.

    A step frees and asks again for the same hundreds of megabytes; fetching their pages anew took a quarter of its
    time on a CPU (benchmarks/training.py). Only glibc has the switch; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
