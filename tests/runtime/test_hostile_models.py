"""Model files that were damaged, or made to harm: each is one sentence."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.exported import bundled_onnx, verified_on_small_images
from tests.optional import needs

needs("onnx", "torch")

import onnx
from onnx import numpy_helper

import evitseg
from evitseg.errors import ConfigError, EngineError, EvitsegError, WeightsError
from evitseg.manifest import METADATA_KEY, parse_manifest
from evitseg.runtime.engines import open_engine, read_manifest
from evitseg.runtime.segmenter import Segmenter
from evitseg.tiling.network import Network

ENGINES = ("native", "openvino", "onnxruntime")
Change = Callable[[onnx.ModelProto], None]


def changed(path: Path, change: Change) -> Path:
    proto = onnx.load(bundled_onnx())
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def external(location: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "64")):
            tensor.external_data.add(key=key, value=value)

    return change


def external_inside_a_node(proto: onnx.ModelProto) -> None:
    """Where only a look into every graph of the file finds it."""
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [0.0])
    external("weights.bin")(wrapping := onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor])))
    branch = onnx.GraphProto(name="then", initializer=wrapping.graph.initializer)
    proto.graph.node.add(op_type="If", input=["x"], output=["y"]).attribute.add(
        name="then_branch", type=onnx.AttributeProto.GRAPH, g=branch
    )


def no_outputs(proto: onnx.ModelProto) -> None:
    del proto.graph.output[:]


def no_manifest(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def damaged_manifest(proto: onnx.ModelProto) -> None:
    proto.metadata_props[0].value = "[" * 100_000


def short_weights(proto: onnx.ModelProto) -> None:
    tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.raw_data = tensor.raw_data[:-4]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (external("*/_ORT_MEM_ADDR_/*"), "stores weights in other files or in memory"),
        (external("weights.bin"), "stores weights in other files or in memory"),
        (external_inside_a_node, "stores weights in other files or in memory"),
        (no_outputs, "1 inputs and 0 outputs"),
        (no_manifest, "has no manifest"),
        (damaged_manifest, "the manifest is damaged"),
        (short_weights, "damaged: a tensor of"),
    ],
)
def test_an_onnx_file_that_is_not_what_we_write_is_one_sentence(
    change: Change, sentence: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(2**20))
    path = changed(tmp_path / "evil.onnx", change)
    with pytest.raises(EvitsegError, match=rf"evil\.onnx: .*({sentence})"):
        open_engine(path, engine)


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1])
def test_a_shortened_onnx_file_is_one_sentence(cut: int, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(bundled_onnx().read_bytes()[:cut])
    for engine in ENGINES:
        with pytest.raises(EvitsegError, match=r"cut\.onnx"):
            open_engine(tmp_path / "cut.onnx", engine)
    with pytest.raises(EvitsegError, match=r"cut\.onnx"):
        read_manifest(tmp_path / "cut.onnx")


def test_names_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    content = bundled_onnx().read_bytes()
    assert content.count(b"Conv_3") > 1
    (tmp_path / "name.onnx").write_bytes(content.replace(b"Conv_3", b"Con\xff_3"))
    with pytest.raises(EvitsegError, match=r"name\.onnx"):
        open_engine(tmp_path / "name.onnx")


@pytest.fixture(scope="module")
def openvino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with verified_on_small_images():
        return evitseg.export("b0-camvid", "openvino", tmp_path_factory.mktemp("openvino") / "m.xml")[0]


def shorter(content: bytes) -> bytes:
    return content[:-1000]


def empty(content: bytes) -> bytes:
    return b""


def far_offset(content: bytes) -> bytes:
    return content.replace(b'offset="0"', b'offset="99999999999"')


@pytest.mark.parametrize(
    ("ending", "change"), [(".bin", shorter), (".bin", empty), (".xml", shorter), (".xml", empty), (".xml", far_offset)]
)
def test_a_damaged_openvino_pair_is_one_sentence(
    ending: str, change: Callable[[bytes], bytes], openvino_file: Path, tmp_path: Path
) -> None:
    for path in (openvino_file, openvino_file.with_suffix(".bin")):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(change(content) if path.suffix == ending else content)
    with pytest.raises(EvitsegError, match=r"m\.xml"):
        open_engine(tmp_path / "m.xml")
    (tmp_path / "m.bin").unlink()
    with pytest.raises(WeightsError, match=r"m\.bin: no such file"):
        open_engine(tmp_path / "m.xml")


def with_nan(proto: onnx.ModelProto) -> None:
    tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_an_exported_model_whose_weights_are_not_finite_is_refused(
    tmp_path: Path, photograph: NDArray[np.uint8]
) -> None:
    path = changed(tmp_path / "nan.onnx", with_nan)
    for engine in ("native", "openvino"):
        with pytest.raises(WeightsError, match=r"nan\.onnx: its weights are not finite"):
            open_engine(path, engine, "float32")
    with pytest.raises(WeightsError, match=r"nan\.onnx: its weights are not finite"):
        Network(path, "float32")
    # An engine whose weights are not looked at, gives itself away by what it answers.
    segment = Segmenter(open_engine(path, "onnxruntime"))
    with pytest.raises(WeightsError, match="'b0-camvid' gives logits that are not finite"):
        segment(photograph[:64, :64])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"attention_eps": 0.0', '"attention_eps": Infinity'),
        ('"norm_eps": 1e-05', '"norm_eps": NaN'),
        ('"norm_eps": 1e-05', '"norm_eps": 1e999'),
        ('"norm_eps": 1e-05', '"norm_eps": 1' + "0" * 400),
        ('"max_enlarge": 2.0', '"max_enlarge": NaN'),
        ('"name": "b0-camvid"', '"name": ' + "[" * 900 + "]" * 900),
        ('"stem_depth": 1', '"stem_depth": -1'),
        ('"stem_depth": 1', '"stem_depth": 1' + "0" * 5000),
    ],
)
def test_a_manifest_with_numbers_that_no_network_has_is_one_sentence(old: str, new: str) -> None:
    text = next(p.value for p in onnx.load(bundled_onnx()).metadata_props if p.key == METADATA_KEY)
    assert old in text
    with pytest.raises(ConfigError, match=r"^m\.onnx: the manifest "):
        parse_manifest(text.replace(old, new, 1), "m.onnx")
    assert json.loads(text)


def test_a_segmenter_can_be_pickled(
    photograph: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(bundled_onnx().read_bytes())
    monkeypatch.chdir(tmp_path)
    segment = evitseg.load("m.onnx", size=128, precision="float32", threads=1)
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(segment))
    assert again.info == segment.info
    np.testing.assert_array_equal(again.mask(photograph), segment.mask(photograph))
    with pytest.raises(EngineError, match="not made by evitseg.load"):
        pickle.dumps(Segmenter(segment.engine))


def test_memory_levels_off_over_images_of_many_sizes() -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks/memory.py"
    command = [sys.executable, str(benchmark), "--images", "60", "--smallest", "32", "--largest", "256"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout.split("at most ")[1].split()[0]) < 250, run.stdout  # 25 MiB a size, if each had a graph
