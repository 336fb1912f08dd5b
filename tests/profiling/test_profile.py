from __future__ import annotations

import math
import platform
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evitseg.architecture import ModelConfig, SegmentationHead, cost, placed_convs
from evitseg.bundled import EXAMPLE_IMAGE, bundled_models
from evitseg.errors import EngineError, ImageError, WeightsError
from evitseg.profiling import worker
from evitseg.profiling.bench import Subject
from evitseg.profiling.machine_peak import MachinePeak
from evitseg.profiling.profile import Profile, profile
from evitseg.profiling.roofline import draw
from tests.optional import needs

SMALL = (64, 96)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WARM_UP_LEAST", 0.05)


def bundled_manifest() -> Any:
    return Subject().segmenter.manifest


def check_accounts(found: Profile, size: tuple[int, int]) -> None:
    """What holds of every engine's profile."""
    # The rest is the call itself and what lies between nodes: 0.2 to 0.5 ms here; other work may fall between, too.
    assert 0.1 * found.network_ms < found.nodes_ms <= 1.02 * found.network_ms
    config = bundled_manifest().model
    assert found.plan_macs == cost(config).macs(*size)
    assert math.fsum(block.ms for block in found.blocks) == pytest.approx(found.nodes_ms)
    assert len({node.name for node in found.nodes}) == len(found.nodes)
    plan = {f"{conv.block}.{conv.name}": conv for conv in placed_convs(config)}
    for name, conv in plan.items():
        parts = [node for node in found.nodes if f"{node.name}.".startswith(f"{name}.")]
        pixels = size[0] * size[1] // conv.stride**2
        assert sum(node.macs for node in parts) == conv.conv.macs * pixels
        assert all(node.count == 1 and node.block == conv.block for node in parts)
        assert sum(node.bytes_out for node in parts) >= 2 * conv.conv.outputs * pixels  # 16 bits at least
    assert {node.block for node in found.nodes} - {"head.up"} == {"input", *(conv.block for conv in plan.values())}
    assert 1 < found.peak.gb_per_s < found.peak.gflops


def surplus(config: ModelConfig, size: tuple[int, int]) -> int:
    """Multiply-adds of the graph for OpenVINO, without tiles, beyond the plan's."""
    height, width = size
    macs = 0
    for number, stage in enumerate(config.backbone.stages):
        if stage.attends:
            tokens = height * width // (4 << number) ** 2
            # All heads at once, in three products, instead of head by head, in two of which one has a row more.
            each = stage.width * (3 * stage.width - 2 * config.backbone.head_dim - 1)
            macs += stage.depth * (1 + len(config.backbone.attention_kernels)) * tokens * each
    assert isinstance(config.head, SegmentationHead)
    for stride in (16, 32):  # first every row becomes as wide as at stride 8, then every column as tall
        rows, columns = height // stride, width // stride
        macs += config.head.width * (rows * columns * (width // 8) + rows * (height // 8) * (width // 8))
    return macs


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_profile_accounts_for_the_graph_that_openvino_runs(precision: Any) -> None:
    size = (256, 320)
    found = profile(Subject(precision=precision), EXAMPLE_IMAGE, size, rounds=10)
    check_accounts(found, size)
    config = bundled_manifest().model
    assert found.macs == cost(config).macs(*size) + surplus(config, size)
    products = {node.name for node in found.nodes if node.type == "MatMul"}
    attention = {f"stage{s}.block{b}.attention" for s in (3, 4) for b in (1, 2)}
    kinds = ("keys×values", "queries×context", "divisor")
    up = {"head.up/width.4", "head.up/width.2", "head.up/height"}
    assert products == {f"{block}/{kind}.{i}" for block in attention for kind in kinds for i in (0, 1)} | up
    assert not [node.name for node in found.nodes if re.search(r"_\d|tile", node.name)]


def test_tiles_are_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from evitseg.runtime import openvino_graph

    size, subject = (256, 320), Subject(precision="float32")
    whole = profile(subject, EXAMPLE_IMAGE, size, rounds=1)
    monkeypatch.setattr(openvino_graph, "TILE_BYTES", 2**20)
    tiled = profile(subject, EXAMPLE_IMAGE, size, rounds=1)
    before, after = ({node.name: node for node in found.nodes} for found in (whole, tiled))
    assert {name for name in before if before[name].macs} == {name for name in after if after[name].macs}
    stem = after["stem.block0.conv"]
    assert stem.count == after["input/normalise"].count > 1
    # Tiles overlap; how much, the bytes of their three float32 channels say.
    pixels = after["input/normalise"].bytes_out // 12
    assert pixels > size[0] * size[1]
    assert stem.macs == 3 * 3 * 3 * 8 * pixels // 4
    assert tiled.macs > whole.macs


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_profile_accounts_for_the_graph_in_the_file(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "onnxruntime":
        needs("onnxruntime")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")  # where OpenVINO runs the file's, too
    size = (256, 320)
    found = profile(Subject(engine=engine, precision="float32"), EXAMPLE_IMAGE, size, rounds=10)
    check_accounts(found, size)
    # An independent count: on the plan, not on the engine's graph.
    assert found.macs == found.plan_macs


def test_what_is_no_convolution_belongs_to_what_it_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    found = profile(Subject(precision="float32"), EXAMPLE_IMAGE, SMALL, rounds=1)
    blocks = {node.engine_name: node.block for node in found.nodes}
    resized = [block for name, block in blocks.items() if name.startswith("Resize")]
    products = [block for name, block in blocks.items() if name.startswith("MatMul")]
    assert resized == ["head.from_stage4", "head.from_stage3"]
    assert len(products) == 8
    assert set(products) == {f"stage{s}.block{b}.attention" for s in (3, 4) for b in (1, 2)}


def test_a_profile_of_what_has_none_is_refused(tmp_path: Path) -> None:
    needs("torch", "onnx")
    import onnx

    with pytest.raises(EngineError, match="PyTorch does not report the time of its layers"):
        profile(Subject(engine="torch"), EXAMPLE_IMAGE, SMALL)
    content = onnx.load(bundled_models()["b0-camvid"])
    node = next(node for node in content.graph.node if node.op_type == "Conv")
    node.name = "other"
    onnx.save(content, tmp_path / "m.onnx")
    with pytest.raises(WeightsError, match="not the one that evitseg export writes"):
        profile(Subject(str(tmp_path / "m.onnx")), EXAMPLE_IMAGE, SMALL)


def test_a_roofline_is_drawn(tmp_path: Path) -> None:
    needs("matplotlib")
    found = profile(Subject(), EXAMPLE_IMAGE, SMALL, rounds=1)
    draw(found, "b0-camvid at 64x96", tmp_path / "roofline.png")
    with Image.open(tmp_path / "roofline.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50
    with pytest.raises(ImageError, match=r"roofline\.pdf: .*\.png"):
        draw(found, "", tmp_path / "roofline.pdf")


def test_a_roof_is_the_slower_of_arithmetic_and_memory() -> None:
    peak = MachinePeak(gflops=100.0, gb_per_s=10.0)
    assert peak.ms(macs=50_000_000, moved_bytes=1_000_000) == pytest.approx(1.0)  # 0.1 GFLOP at 100 a second
    assert peak.ms(macs=50_000_000, moved_bytes=20_000_000) == pytest.approx(2.0)  # 0.02 GB at 10 a second
