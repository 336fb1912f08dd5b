"""What a huge image loses or gains: the whole, a neighbourhood, blended windows, on mosaics of CamVid's images.

    python benchmarks/mosaics.py CAMVID

Mosaics of 4×4 test images at twice their size, at which the model was trained: 16 frames of one drive that follow
each other, and 16 of all drives. Every way gives a mask of the mosaic. mIoU is over all mosaics of a kind, on truth at
twice its size. A seam is where the mask changes across a line at which the way itself begins another window or tile,
and the truth does not: its share is told beside that of all other neighbouring pixels.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contest import RESULTS
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.bundled import bundled_models
from evitseg.data.layouts import find_dataset
from evitseg.evaluation.metrics import confusion_matrix, mean_iou
from evitseg.raster.files import read_image
from evitseg.raster.masks import read_truth
from evitseg.raster.window import ArraySink, ArraySource
from evitseg.system.files import replacing
from evitseg.tiling.network import Network
from evitseg.tiling.sliding_window import sliding_window
from evitseg.tiling.stream import segment_large

SIDE, MOSAICS = 4, 4
WIDTH, HEIGHT = 960, 720
CONTEXTS, WINDOWS = (960, 1920), (512, 1024)
Pixels = NDArray[Any]
Way = Callable[[Pixels], tuple[Pixels, list[int], list[int]]]
"""From a mosaic to its mask, and the rows and columns at which the way begins anew."""


def ways(network: Network, scratch: str) -> dict[str, Way]:
    segment = evitseg.load(precision="float32", size="native")

    def alone(image: Pixels) -> tuple[Pixels, list[int], list[int]]:
        mask = np.zeros(image.shape[:2], np.uint8)
        for row in range(SIDE):
            for column in range(SIDE):
                place = np.s_[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH]
                mask[place] = segment.mask(np.ascontiguousarray(image[place]))
        return mask, [], []

    def tiled(context: int | None) -> Way:
        def run(image: Pixels) -> tuple[Pixels, list[int], list[int]]:
            sink = ArraySink(image.shape[:2])
            segment_large(network, ArraySource(image), sink, scratch=scratch, context_window=context)
            return sink.mask, [], []  # where a context window begins anew is not known here

        return run

    def blended(window: int) -> Way:
        def run(image: Pixels) -> tuple[Pixels, list[int], list[int]]:
            sink = ArraySink(image.shape[:2])
            sliding_window(network, ArraySource(image), sink, window)
            rows, columns = (list(range(window // 2, side, window // 2)) for side in image.shape[:2])
            return sink.mask, rows, columns

        return run

    return {
        "each image alone": alone,
        "the whole": tiled(None),
        **{f"context window of {context}": tiled(context) for context in CONTEXTS},
        **{f"blended windows of {window}": blended(window) for window in WINDOWS},
    }


def changes(mask: Pixels, truth: Pixels, rows: list[int], columns: list[int]) -> NDArray[np.int64]:
    """Pairs of neighbours of one true class at lines, and those that the mask tells apart; the same elsewhere."""
    found = np.zeros(4, np.int64)
    for axis, lines in ((0, rows), (1, columns)):
        same = np.diff(truth.astype(np.int16), axis=axis) == 0
        apart = same & (np.diff(mask.astype(np.int16), axis=axis) != 0)
        at = np.zeros(same.shape[axis], np.bool_)
        at[[line - 1 for line in lines]] = True
        for i, chosen in enumerate((at, ~at)):
            found[2 * i] += same.compress(chosen, axis).sum()
            found[2 * i + 1] += apart.compress(chosen, axis).sum()
    return found


def main(camvid: Path) -> None:
    dataset = find_dataset(camvid)
    assert dataset.labels is not None
    labels, pairs = dataset.labels, dataset.pairs("test")
    count = SIDE**2
    kinds = {
        "frames of one drive": [pairs[i * count : (i + 1) * count] for i in range(0, 3 * MOSAICS, 3)],
        "frames of all drives": [pairs[i :: len(pairs) // count][:count] for i in range(MOSAICS)],
    }
    network = Network(bundled_models()["b0-camvid"], "float32")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind, mosaics in kinds.items():
            confusions: dict[str, Any] = {}
            seams: dict[str, Any] = {}
            for chosen in mosaics:
                images = [
                    np.asarray(Image.fromarray(read_image(p.image)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
                    for p in chosen
                ]
                truths = [np.kron(read_truth(p.mask, labels), np.ones((2, 2), np.uint8)) for p in chosen]
                image, truth = (
                    np.concatenate([np.concatenate(parts[i : i + SIDE], 1) for i in range(0, count, SIDE)])
                    for parts in (images, truths)
                )
                for name, way in ways(network, scratch).items():
                    mask, tops, lefts = way(image)
                    confusions[name] = confusions.get(name, 0) + confusion_matrix(
                        truth, mask, len(labels.classes), labels.ignore_index
                    )
                    seams[name] = seams.get(name, 0) + changes(mask, truth, tops, lefts)
            for name, confusion in confusions.items():
                at, apart, elsewhere, apart_elsewhere = (int(n) for n in seams[name])
                rows.append(
                    {
                        "mosaics": kind,
                        "way": name,
                        "miou": 100 * mean_iou(confusion),
                        "changes_at_lines": apart / at if at else None,
                        "changes_elsewhere": apart_elsewhere / elsewhere,
                    }
                )
                print(rows[-1], flush=True)
            content = {"mosaics_of_a_kind": MOSAICS, "images_a_side": SIDE, "rows": rows}
            with replacing(RESULTS / "mosaics.json") as file:
                file.write(json.dumps(content, indent=2).encode() + b"\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
