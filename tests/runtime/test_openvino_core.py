import subprocess
import sys

from tests.exported import bundled_onnx
from tests.optional import needs

# Before every engine shared one core, this ended with a segmentation fault: the signal handler ran on the stack that
# OpenVINO had given the thread, and unmapped when the first of two cores was deleted.
SCRIPT = """
import gc, signal, sys
import numpy as np
import evitseg

image = np.zeros((64, 96, 3), np.uint8)
for _ in range(2):
    first, second = (evitseg.load(sys.argv[1], engine="openvino") for _ in range(2))
    first(image), second(image)
    del first
    gc.collect()
    del second
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


def test_a_signal_is_handled_after_segmenters_were_deleted() -> None:
    needs("openvino")
    command = [sys.executable, "-c", SCRIPT, str(bundled_onnx())]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


def test_a_data_loader_ends_after_segmenters_were_deleted() -> None:
    needs("openvino", "torch")
    loader = """
from torch.utils.data import DataLoader
from tests.optional import needs
print(sum(len(batch) for batch in DataLoader(range(8), num_workers=2)))
"""
    command = [sys.executable, "-c", SCRIPT + loader, str(bundled_onnx())]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "handled\n8\n"), run.stderr
