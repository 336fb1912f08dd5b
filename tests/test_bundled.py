from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evitseg.bundled import DEFAULT_MODEL, EXAMPLE_IMAGE, bundled_models
from evitseg.raster.files import read_image
from evitseg.runtime.engines import read_manifest


def test_every_bundled_model_has_a_card_and_a_manifest() -> None:
    assert DEFAULT_MODEL in bundled_models()
    for name, path in bundled_models().items():
        manifest = read_manifest(path)
        card = path.with_suffix(".md").read_text(encoding="utf-8")
        assert manifest.name == name
        for accuracy in manifest.accuracy:
            assert f"**{accuracy.miou:.2f}**" in card
        assert manifest.training.licence
        assert len(manifest.checkpoint_sha256) == 64


def test_the_photograph_says_nothing_about_who_was_where() -> None:
    assert read_image(EXAMPLE_IMAGE).shape == (1080, 1920, 3)
    with Image.open(EXAMPLE_IMAGE) as image:
        assert not dict(image.getexif())


@pytest.mark.slow
def test_camvid_miou_of_the_written_masks_is_the_cards(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """The number we promise, from the files that a person gets, by arithmetic that shares nothing with ours."""
    camvid = shared("data/camvid")
    command = [sys.executable, "-m", "evitseg", "predict", str(camvid / "test"), "--no-overlay", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    precision = re.search(r"float32|bfloat16|float16", run.stdout)
    assert precision is not None

    hits, truths, predictions = np.zeros(11), np.zeros(11), np.zeros(11)
    masks = sorted(tmp_path.glob("*_mask.png"))
    assert len(masks) == 233
    for path in masks:
        truth = np.asarray(Image.open(camvid / "testannot" / path.name.replace("_mask", "")))
        mask = np.asarray(Image.open(path))
        for c in range(11):
            hits[c] += np.sum((truth == c) & (mask == c))
            truths[c] += np.sum(truth == c)
            predictions[c] += np.sum((mask == c) & (truth < 11))
    miou = 100 * np.mean(hits / (truths + predictions - hits))

    card = bundled_models()[DEFAULT_MODEL].with_suffix(".md").read_text(encoding="utf-8")
    header = next(line for line in card.splitlines() if line.startswith("| class"))
    means = next(line for line in card.splitlines() if line.startswith("| **mean**"))
    promised = dict(zip(map(str.strip, header.split("|")), means.split("|"), strict=True))
    # The last digit is the measuring processor's own: another one's kernels sum in another order, and its name does
    # not tell it from the next generation. If no processor that measured the card computes in float16, it has no number
    # for it; then it must lose no more than bfloat16.
    if precision[0] in promised:
        assert miou == pytest.approx(float(promised[precision[0]].strip(" *")), abs=0.03)
    else:
        lost = abs(float(promised["float32"].strip(" *")) - float(promised["bfloat16"].strip(" *")))
        assert miou == pytest.approx(float(promised["float32"].strip(" *")), abs=lost)
