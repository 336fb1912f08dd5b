"""The processes that train together, from the first connection to the end of their threads."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evitseg.errors import MissingPackageError
from evitseg.train.run_log import trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_processes(folder: Path, precision: str) -> Accelerator:
    """The accelerator of a run: the other processes, the device and the precision."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # PyTorch 2.13: `torch._dynamo` holds on to a process group that exists when it is imported, which
        # DistributedDataParallel does. Imported earlier, it lets `end_processes` end the group and its threads.
        import_module("torch._dynamo")
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise MissingPackageError("training", "train") from error
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    cpu = not torch.accelerator.is_available()  # without it, accelerate does not connect processes on CPUs
    mixed_precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision, log_with=trackers(), project_dir=folder)


def end_processes(accelerator: Accelerator) -> None:
    """Close the trackers, and end the process group and its threads.

    The caller must have dropped the network that the accelerator prepared, because it holds the group. Threads that
    outlive the group abort the process if they release a tensor while the interpreter shuts down
    (https://github.com/pytorch/pytorch/issues/190489).
    """
    accelerator.free_memory()
    accelerator.end_training()
