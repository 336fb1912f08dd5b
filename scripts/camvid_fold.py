"""A split of CamVid's training images for choosing settings, which its own validation split is too easy for.

Held out: the sequence 0006R0, and the last 20 frames of 0001TP. CamVid's validation split is a clip of the same drive
as much of its training split, and flatters; its test split is for one measurement at the end.

    python scripts/camvid_fold.py CAMVID OUT
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(camvid: Path, out: Path) -> None:
    images = sorted((camvid / "train").iterdir())
    dusk = [p for p in images if p.stem.startswith("0001TP")]
    held = {p for p in images if p.stem.startswith("0006R0")} | set(dusk[-20:])
    for image in images:
        split = "val" if image in held else "train"
        mask = next((camvid / "trainannot").glob(f"{image.stem}.*"))
        for folder, file in ((split, image), (f"{split}annot", mask)):
            (out / folder).mkdir(parents=True, exist_ok=True)
            (out / folder / file.name).symlink_to(file.resolve())
    print(f"{out}: {len(images) - len(held)} to train on, {len(held)} held out")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
