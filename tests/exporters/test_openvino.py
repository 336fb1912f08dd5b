from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch", "onnx")

import evitseg
from evitseg.errors import ExportError, FileError
from evitseg.exporters.verify import example_images, verify
from evitseg.model.checkpoints import load_checkpoint
from evitseg.model.engine import TorchEngine
from evitseg.preprocess import Preprocess
from evitseg.runtime.engines import open_engine


@pytest.mark.parametrize("weights", ["float32", "float16"])
def test_openvinos_own_file_says_what_the_onnx_file_says(
    b0_checkpoint: Path, photograph: NDArray[np.uint8], tmp_path: Path, weights: str
) -> None:
    own, manifest = evitseg.export(
        b0_checkpoint, "openvino", tmp_path / "b0.xml", weights=weights, preprocess=Preprocess(256)
    )
    portable, _ = evitseg.export(
        b0_checkpoint, "onnx", tmp_path / "b0.onnx", weights=weights, preprocess=Preprocess(256)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b0.bin", "b0.onnx", "b0.xml"]
    assert (tmp_path / "b0.bin").stat().st_size < (1_600_000 if weights == "float16" else 3_000_000)
    for short_side in (128, 256):  # any size
        image = Preprocess(short_side).apply(photograph)[None]
        one, other = (open_engine(path, "openvino", "float32")(image) for path in (own, portable))
        # float16 weights are rounded from float64 in one file, by way of float32 in the other.
        assert np.abs(one - other).max() < (1e-5 if weights == "float32" else 1e-3) * np.abs(other).max()
    engine = open_engine(own)
    assert engine.manifest == manifest
    assert manifest.verification is not None


def test_a_broken_weight_is_seen(b0_checkpoint: Path, tmp_path: Path) -> None:
    path, manifest = evitseg.export(b0_checkpoint, "openvino", tmp_path / "b0.xml", preprocess=Preprocess(256))
    constants = [data.attrib for data in ElementTree.parse(path).iter("data") if "offset" in data.attrib]
    largest = max(constants, key=lambda data: int(data["size"]))
    weights = np.frombuffer((tmp_path / "b0.bin").read_bytes(), np.uint8).copy()
    weights[int(largest["offset"]) : int(largest["offset"]) + int(largest["size"])] = 0
    (tmp_path / "b0.bin").write_bytes(weights.tobytes())
    with pytest.raises(ExportError, match="disagrees"):
        verify(
            "b0.xml",
            open_engine(path),
            TorchEngine(load_checkpoint(b0_checkpoint)[0], manifest),
            manifest,
            example_images(),
        )


def test_the_command_writes_and_uses_it(
    b0_checkpoint: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> Any:
        done = cli(*arguments)
        assert done.status == 0, done.stderr
        return done

    monkeypatch.chdir(tmp_path)
    done = run("export", b0_checkpoint, "--to", "openvino", "--size", "256", "--out", "b0.xml")
    assert "wrote b0.xml (3." in done.stdout or "wrote b0.xml (2." in done.stdout
    run("predict", "--example", "--model", "b0.xml", "--out", "out")
    assert (tmp_path / "out/street_mask.png").exists()
    assert "cityscapes" in run("info", "b0.xml").stdout


@pytest.mark.parametrize(("to", "ending"), [("openvino", ".xml"), ("onnx", ".onnx")])
@pytest.mark.parametrize("size", ["64k", "2700k"])  # the second has room for some of the weights
def test_a_full_disk_is_one_sentence_and_leaves_nothing(size: str, to: str, ending: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a small disk")
    try:
        with pytest.raises(FileError, match=rf"^{disk}/m{ending}: cannot be written \(No space left on device\)"):
            evitseg.export("b0-camvid", to, disk / f"m{ending}")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
