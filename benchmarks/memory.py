"""Memory of a process that segments images of random sizes, one after the other: it must level off.

    python benchmarks/memory.py --images 2000
    python benchmarks/memory.py --images 60 --largest 160

Every image has a size of its own, and goes through the network at that. What is printed is what the process holds
after every hundredth image, and at the end how much that grew after the first hundred.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from PIL import Image

import evitseg
from evitseg.bundled import EXAMPLE_IMAGE
from evitseg.system.machine import held_memory, peak_memory

MIB = 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--smallest", type=int, default=48, help="side in pixels")
    parser.add_argument("--largest", type=int, default=1000, help="side in pixels")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    sides = rng.integers(arguments.smallest, arguments.largest + 1, (arguments.images, 2))
    segment = evitseg.load(size="native", threads=arguments.threads)
    photograph = Image.open(EXAMPLE_IMAGE).convert("RGB")
    print(f"{segment.info}; {arguments.images} images of sides from {arguments.smallest} to {arguments.largest} pixels")
    every = max(1, min(100, arguments.images // 6))
    held: list[int] = []
    start = time.perf_counter()
    for done, (height, width) in enumerate(sides.tolist(), 1):
        segment(np.asarray(photograph.resize((width, height))))
        if done % every == 0:
            held.append(held_memory() // MIB)
            taken = 1000 * (time.perf_counter() - start) / done
            print(f"{done:6} images  {held[-1]:6} MiB  {taken:6.0f} ms per image", flush=True)
    growth = (max(held[1:]) - held[0]) if len(held) > 1 else 0
    print(f"after the first {every}: at most {growth} MiB more; peak {(peak_memory() or 0) // MIB} MiB")


if __name__ == "__main__":
    main()
