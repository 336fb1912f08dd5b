from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch", "onnx")

import onnx
import torch

import evitseg
from evitseg.architecture import BACKBONES, SEGMENTATION_HEADS, model_config, stage_plans, stem_plan
from evitseg.bundled import bundled_models
from evitseg.errors import WeightsError
from evitseg.exporters.onnx import onnx_graph, set_onnx_manifest, write_onnx
from evitseg.exporters.openvino import write_openvino
from evitseg.labels import load_labels
from evitseg.manifest import Manifest, Training
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess
from evitseg.runtime import openvino_engine, openvino_graph
from evitseg.runtime.engines import open_engine, read_manifest
from evitseg.runtime.openvino_engine import OpenVinoEngine
from evitseg.runtime.openvino_graph import Writer, tile_counts, tiles

BUNDLED = bundled_models()["b0-camvid"]


@pytest.fixture(autouse=True)
def small_images_have_graphs_of_their_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here are graphs for a size, on images of few pixels."""
    if "share_a_graph" not in request.node.name:
        monkeypatch.setattr(openvino_engine, "OWN_GRAPH_PIXELS", 0)


def model_file(model: EfficientViT, path: Path, weights: str = "float32") -> Path:
    names = model.config.num_classes
    labels = load_labels("cityscapes" if names == 19 else "ade20k")
    manifest = Manifest(
        name="random",
        model=model.config,
        labels=labels,
        preprocess=Preprocess(),
        weights=weights,
        training=Training(data="", licence="", recipe=""),
    )
    if path.suffix == ".xml":
        write_openvino(model, manifest, path)
    else:
        write_onnx(model, manifest, path)
    return path


def random_network(variant: str, head: str | None = None) -> EfficientViT:
    torch.manual_seed(0)
    model = evitseg.build(variant, 150 if "ade20k" in (head or "") else 19, head).eval()
    with torch.inference_mode():
        for name, values in model.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(std=0.2)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 1.5)
    return model


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)


def relative(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("variant", list(BACKBONES))
def test_every_variant_gives_the_networks_logits(variant: str, tmp_path: Path) -> None:
    model = random_network(variant)
    engine = open_engine(model_file(model, tmp_path / "m.onnx"), "openvino", "float32")
    image = noise(64, 96)
    with torch.inference_mode():
        expected = NormalizedModel(model, Preprocess())(torch.from_numpy(image)).numpy()
    assert relative(engine(image), expected) < 1e-5


@pytest.mark.parametrize("head", ["b1-ade20k", "l1-ade20k"])
def test_every_kind_of_head_gives_the_networks_logits(head: str, tmp_path: Path) -> None:
    model = random_network(head.split("-")[0], head)
    engine = open_engine(model_file(model, tmp_path / "m.onnx"), "openvino", "float32")
    image = noise(64, 64)
    with torch.inference_mode():
        expected = NormalizedModel(model, Preprocess())(torch.from_numpy(image)).numpy()
    assert relative(engine(image), expected) < 1e-5
    assert {"b1-ade20k", "l1-ade20k"} <= SEGMENTATION_HEADS.keys()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["b0", "l0"])
def test_tiles_change_nothing(variant: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_file(random_network(variant), tmp_path / "m.onnx")
    whole = open_engine(path, "openvino", precision)  # type: ignore[arg-type]
    image = noise(416, 480)
    expected = whole(image)
    tile_bytes = {"b0": 2**21, "l0": 2**23}[variant] // {"float32": 1, "bfloat16": 2}[precision]
    monkeypatch.setattr(openvino_graph, "TILE_BYTES", tile_bytes)
    tiled = OpenVinoEngine(path, precision=precision)  # type: ignore[arg-type]
    names = {node.get_friendly_name() for node in tiled.graph((416, 480)).get_ops()}
    assert {"stem.block0/conv tile 0,0", "stem.block0/conv tile 1,1"} <= names
    if precision == "float32":
        assert relative(tiled(image), expected) < 1e-5
    else:  # the same numbers are rounded at the same places
        assert relative(tiled(image), expected) < 2e-2


@pytest.mark.parametrize("file", ["m.onnx", "m.xml"])
@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_weights_are_read_however_they_are_stored(weights: str, file: str, tmp_path: Path) -> None:
    from evitseg.exporters.int8 import per_channel, rounded

    model = random_network("b0")
    if weights == "int8":
        model = rounded(model, [torch.zeros(1, 3, 64, 64)], per_channel)
    path = model_file(model, tmp_path / file, weights)
    engine = OpenVinoEngine(path, "float32")
    assert engine._weights is not None
    image = noise(64, 96)
    as_stored = engine._core.compile_model(engine._model, "CPU", engine._settings)([image])[0]
    assert relative(engine(image), as_stored) < 1e-5


def test_tiles_cover_a_side_once_and_see_enough() -> None:
    backbone = BACKBONES["l1"]
    blocks = [*stem_plan(backbone), *stage_plans(backbone)[0], *stage_plans(backbone)[1]]
    convs = [conv for block in blocks for conv in block.convs.values()]
    for side, count in product((256, 736, 4096), (1, 2, 3, 7)):
        pieces = tiles(side, count, convs)
        assert [piece.start // 8 + piece.skip for piece in pieces] == [
            sum(piece.keep for piece in pieces[:i]) for i in range(count)
        ]
        assert sum(piece.keep for piece in pieces) == side // 8
        for piece in pieces:
            # A convolution's edge spoils as many rows as its kernel reaches over; counted layer by layer.
            low = high = 0
            for conv in convs:
                low = -(-(low + conv.kernel // 2) // conv.stride)
                high = -(-(high + conv.kernel // 2) // conv.stride)
            assert piece.start == 0 or piece.skip >= low
            assert piece.stop == side or (piece.stop - piece.start) // 8 - piece.skip - piece.keep >= high


def test_large_features_are_cut_and_small_ones_are_not() -> None:
    backbone = BACKBONES["b0"]
    convs = [conv for block in stem_plan(backbone) + stage_plans(backbone)[0] for conv in block.convs.values()]
    assert tile_counts((512, 512), convs, 4) == (1, 1)
    rows, columns = tile_counts((2048, 4096), convs, 4)
    # 32 channels of float32 at stride 2, in tiles that overlap a little.
    assert rows * columns >= 2048 * 4096 * 32 * 4 / 4 / openvino_graph.TILE_BYTES
    assert tile_counts((2048, 4096), convs, 2) != (rows, columns)


def test_a_graph_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    path = model_file(random_network("b0"), tmp_path / "m.onnx")
    manifest = read_manifest(path)
    other = onnx_graph(random_network("b1"), Preprocess())
    onnx.save(other, path)
    set_onnx_manifest(path, manifest)
    with pytest.raises(WeightsError, match=r"m\.onnx: its graph is not the one that evitseg export writes"):
        open_engine(path, "openvino")
    assert model_config("b1", 19) != manifest.model


def test_a_mask_does_not_depend_on_what_was_segmented_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "OWN_GRAPH_PIXELS", 96 * 96)
    sizes = [(64, 64), (96, 96), (64, 96), (128, 96), (128, 128), (64, 64), (96, 160), (128, 128), (64, 128)]
    images = [noise(*size) for size in sizes]
    with monkeypatch.context() as patch:
        patch.setattr(openvino_engine, "GRAPHS_BYTES", 0)  # every graph takes the place of the one before
        engine = OpenVinoEngine(BUNDLED, "float32")
    once = [engine(image) for image in images]
    resumed = OpenVinoEngine(BUNDLED, "float32")
    for image, expected in reversed([*zip(images, once, strict=True)]):
        np.testing.assert_array_equal(resumed(image), expected)


def test_small_images_share_a_graph_and_those_of_large_ones_keep_their_room() -> None:
    engine = OpenVinoEngine(BUNDLED, "float32")
    for size in ((64, 64), (480, 512)):
        engine(noise(*size))
    assert not engine._sizes
    engine._room = 2 * engine._bytes_of((512, 544))
    for size in ((512, 512), (512, 544), (544, 512), (512, 512)):
        engine(noise(*size))
    assert list(engine._sizes) == [(544, 512), (512, 512)]
    engine._room = 0
    engine(noise(544, 544))
    assert list(engine._sizes) == [(544, 544)]


def test_streams_run_beside_each_other_and_give_the_same(photograph: NDArray[np.uint8]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    images = [Preprocess(256).apply(np.roll(photograph, 8 * i, axis=1))[None] for i in range(8)]
    alone = OpenVinoEngine(BUNDLED, "float32")
    expected = [alone(image) for image in images]
    engine = OpenVinoEngine(BUNDLED, "float32", streams=2)
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(engine, images), expected, strict=True):
            assert relative(actual, wanted) < 1e-5


def test_sums_over_many_tokens_do_not_lose_what_is_small_in_float32() -> None:
    import openvino

    writer = Writer(random_network("b0").config, Preprocess(), [], (4096, 4096), "float32")
    keys = np.random.default_rng(0).random((1, 256 * 256, 16), np.float32)
    given = writer.ops.parameter(list(keys.shape), np.float32)
    model = openvino.Model([writer.ops.result(writer.key_sum(given, (256, 256)))], [given], "sums")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = keys.sum(1, dtype=np.float64, keepdims=True)
    assert relative(compiled(keys)[0], expected) < 1e-6
