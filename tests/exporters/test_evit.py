"""The export for our own core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.optional import needs

needs("torch")

from evitseg.architecture import model_config
from evitseg.errors import ConfigError, ExportError
from evitseg.exporters.export import export
from evitseg.labels import numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.engine import TorchEngine
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime.engines import open_engine
from tests.networks import lively
from tests.runtime.programs import CONFIGS


@pytest.mark.parametrize("name", ["b0", *CONFIGS])  # "fused" has the blocks of the L series
def test_the_file_is_the_network_at_any_size(name: str, tmp_path: Path) -> None:
    model = lively(EfficientViT(CONFIGS.get(name) or model_config(name, 5)))
    labels = numbered(model.config.num_classes)
    manifest = Manifest("test", model.config, labels, Preprocess(64), Training("generated", "CC0"))
    path, written = export((model, manifest), "native", tmp_path / "m.evit")
    engine = open_engine(path, precision="float32")
    assert engine.manifest == written
    assert written.verification is not None
    assert written.verification.largest_difference < 1e-4
    for size in ((64, 96), (32, 160)):
        images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
        expected = TorchEngine(model, manifest, "float32")(images)
        np.testing.assert_allclose(engine(images), expected, atol=1e-5 * np.abs(expected).max())
    assert [file.name for file in tmp_path.iterdir()] == ["m.evit"]


def test_what_the_core_cannot_run_is_not_exported(tmp_path: Path) -> None:
    model = lively(EfficientViT(model_config("b0", 5)))
    manifest = Manifest("test", model.config, numbered(5), Preprocess(64), Training("generated", "CC0"))
    with pytest.raises(ExportError, match="float32, not as float16"):
        export((model, manifest), "native", tmp_path / "m.evit", weights="float16")
    backbone = replace(model.config.backbone, head_dim=8)
    model = lively(EfficientViT(replace(model.config, backbone=backbone)))
    with pytest.raises(ConfigError, match="multiple of 16"):
        export((model, replace(manifest, model=model.config)), "native", tmp_path / "m.evit")
    assert list(tmp_path.iterdir()) == []
