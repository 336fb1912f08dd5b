"""Speed of a training step, compared with a straightforward loop, and what each change contributes.

    python benchmarks/training.py                      measure in alternating rounds, and write results/training.json
    python benchmarks/training.py --batch 16 --threads 4

The usual loop has batches in PyTorch's default layout, fully up-sampled logits, cross-entropy and AdamW. Each
contestant adds one change to the one before; "ours" is what `evitseg train` does. All have the same network, images,
loss and optimizer, and read nothing from disk. The time to load a crop is measured separately at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from contest import compete, report, serve
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evitseg.data.lists import Pair
from evitseg.labels import numbered
from evitseg.model.network import build
from evitseg.train.allocator import keep_freed_memory
from evitseg.train.config import TrainConfig
from evitseg.train.crops import Batches, Crops, batch_keys
from evitseg.train.losses import Objective
from evitseg.train.wrapper import TrainingWrapper, channels_last

CLASSES = 11
CONTESTANTS = {
    "usual loop": frozenset(),
    "+ channels last": frozenset({"layout"}),
    "+ freed memory is kept": frozenset({"layout", "memory"}),
    "+ every second row and pixel (ours)": frozenset({"layout", "memory", "stride"}),
    "+ bfloat16": frozenset({"layout", "memory", "stride", "bfloat16"}),
}


def contestant(name: str, batch: int, crop: tuple[int, int], threads: int) -> None:
    parts = CONTESTANTS[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = TrainingWrapper(build("b0", CLASSES), auxiliary=False).to(device)
    images = torch.randint(0, 256, (batch, 3, *crop), dtype=torch.uint8, device=device)
    truth = torch.randint(0, CLASSES, (batch, *crop), device=device)
    if "memory" in parts:
        keep_freed_memory()
    if "layout" in parts:
        trained = channels_last(trained, device)
        images = images.to(memory_format=torch.channels_last)
    config = TrainConfig(batch_size=batch).updated({"data.crop": crop, "loss.stride": 2 if "stride" in parts else 1})
    weights = torch.ones(CLASSES, device=device)
    objective = Objective(config.loss, config.distill, weights, 255)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    trained.train()

    def loss_of(logits: Tensor) -> Tensor:
        if "stride" in parts:
            return objective(logits, [], truth, [], (0, 1), progress=0.0)
        full = F.interpolate(logits.float(), crop, mode="bilinear", align_corners=False)
        return F.cross_entropy(full, truth, weights, ignore_index=255)

    def step() -> None:
        pixels = (images.float() - 118) / 58
        with torch.autocast(device.type, torch.bfloat16, enabled="bfloat16" in parts):
            logits, *_ = trained(pixels)
        loss = loss_of(logits)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 2.0)
        optimizer.step()
        float(loss.detach())

    serve(step)


def reading_ms(crop: tuple[int, int]) -> float:
    """Time to load a training crop from a 640×480 photograph and its mask, in one process."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).resize((640, 480))
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder) / "image.jpg", Path(folder) / "mask.png")
        smooth.save(pair.image, quality=95)
        Image.fromarray(rng.integers(0, CLASSES, (30, 40)).astype(np.uint8)).resize((640, 480), 0).save(pair.mask)
        config = TrainConfig().updated({"data.crop": crop, "data.workers": 0, "augment.scale": (0.5, 2.0)})
        keys = batch_keys(64, 8, 0, 0)
        crops = Crops([pair] * 64, numbered(CLASSES), config)
        start = time.perf_counter()
        for _ in Batches(crops, workers=0).read(keys):
            pass
        return (time.perf_counter() - start) / 64 * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, nargs=2, default=(352, 480))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    crop = (arguments.crop[0], arguments.crop[1])
    if arguments.contestant:
        contestant(arguments.contestant, arguments.batch, crop, arguments.threads)
        return
    options = ["--batch", str(arguments.batch), "--crop", *map(str, crop), "--threads", str(arguments.threads)]
    results = compete(
        {name: [sys.executable, __file__, *options, "--contestant", name] for name in CONTESTANTS}, arguments.rounds
    )
    settings = {
        "batch": arguments.batch, "crop": crop, "threads": arguments.threads, "reading_a_piece_ms": reading_ms(crop),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }  # fmt: skip
    print(f"loading a crop: {settings['reading_a_piece_ms']:.1f} ms in one process")
    report("training", settings, results, reference="usual loop")


if __name__ == "__main__":
    main()
