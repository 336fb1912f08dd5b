"""The processes that train together, from the first connection to the end of their threads."""

from __future__ import annotations

import atexit
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
        # DistributedDataParallel does. Imported earlier, it lets `_end_group` end the group and its threads.
        import_module("torch._dynamo")
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise MissingPackageError("training", "train") from error
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    cpu = not torch.accelerator.is_available()  # without it, accelerate does not connect processes on CPUs
    mixed_precision = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]
    is_connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision, log_with=trackers(), project_dir=folder)
    if accelerator.num_processes > 1 and not is_connected:
        # The group stays for further runs. Connecting anew fails: torchrun's store still has the old group's addresses.
        atexit.register(_end_group)
    return accelerator


def end_run(accelerator: Accelerator) -> None:
    """Close the trackers and free the memory of a run.

    The caller must have dropped the network that the accelerator prepared, because it holds the process group.
    """
    accelerator.free_memory()
    for tracker in accelerator.trackers:
        tracker.finish()


def _end_group() -> None:
    """End the process group, because threads that outlive it abort the process if they release a tensor while the
    interpreter shuts down (https://github.com/pytorch/pytorch/issues/190489).
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
