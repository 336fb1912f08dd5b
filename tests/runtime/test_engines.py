from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import evitseg
from evitseg.bundled import bundled_models
from evitseg.errors import ConfigError, EngineError, WeightsError
from evitseg.preprocess import Preprocess
from evitseg.runtime.engines import ENGINES, open_engine, read_manifest
from evitseg.runtime.openvino_engine import openvino_precision
from evitseg.system.machine import physical_cores
from tests.exported import bundled_onnx
from tests.optional import needs

BUNDLED = bundled_models()["b0-camvid"]


@pytest.fixture(autouse=True)
def _engine_is_installed(request: pytest.FixtureRequest) -> None:
    """Skips a row of a table whose engine is an extra that is not there."""
    engine = getattr(request.node, "callspec", None) and request.node.callspec.params.get("engine")
    if engine in ("openvino", "onnxruntime", "torch"):
        needs(engine)


@pytest.fixture(scope="module")
def image(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return Preprocess(256).apply(photograph)[None]


def test_all_engines_agree(image: NDArray[np.uint8]) -> None:
    needs("onnxruntime")
    logits = [
        open_engine(bundled_onnx(), engine, "float32")(image)
        for engine, kind in ENGINES.items()
        if ".onnx" in kind.endings
    ]
    for other in logits[1:]:
        assert np.abs(other - logits[0]).max() / np.abs(logits[0]).max() < 1e-4


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_lower_precision_gives_nearly_the_same_mask(
    precision: str, photograph: NDArray[np.uint8], skip_without: Callable[[str, Exception], NoReturn]
) -> None:
    needs("openvino")
    image = Preprocess(512).apply(photograph)[None]
    reference = open_engine(bundled_onnx(), "openvino", "float32")(image)
    try:
        engine = open_engine(bundled_onnx(), "openvino", precision)  # type: ignore[arg-type]
    except EngineError as error:
        skip_without(precision, error)
    logits = engine(image)
    assert engine.info.precision == precision
    assert np.isfinite(logits).all()
    assert (logits.argmax(1) == reference.argmax(1)).mean() > 0.98


@pytest.mark.parametrize("engine", ["native", "openvino", "onnxruntime"])
def test_threads_are_what_was_asked_for(engine: str, image: NDArray[np.uint8]) -> None:
    one = open_engine(bundled_onnx(), engine, threads=1)
    assert one.info.threads == 1
    assert "1 thread," in str(one.info)
    assert one(image).shape[1] == 11


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say where threads may run")
@pytest.mark.parametrize("engine", ["native", "openvino", "onnxruntime"])
def test_fewer_threads_than_cores_are_tied_to_none(engine: str, image: NDArray[np.uint8]) -> None:
    """Two engines of one thread each would else share the first core."""
    if physical_cores() < 2:
        pytest.skip("this machine has one core")
    seen = set[frozenset[int]]()
    work: Callable[[], object] = partial(open_engine(bundled_onnx(), engine, threads=1), image)
    begun, stop = threading.Event(), threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            work()
            begun.set()

    thread = threading.Thread(target=repeat)
    thread.start()
    begun.wait(60)
    assert thread.native_id is not None
    for _ in range(200):
        seen.add(frozenset(os.sched_getaffinity(thread.native_id)))
        time.sleep(0.002)
    stop.set()
    thread.join()
    assert seen == {frozenset(os.sched_getaffinity(0))}


def test_results_of_an_earlier_call_stay_as_they_were(image: NDArray[np.uint8]) -> None:
    engine = open_engine(BUNDLED)
    first = engine(image)
    before = first.copy()
    engine(image[:, ::-1])
    np.testing.assert_array_equal(first, before)


def test_openvino_compiles_once_for_all_sizes_and_agrees_with_the_core(photograph: NDArray[np.uint8]) -> None:
    needs("openvino")
    own, other = (open_engine(bundled_onnx(), engine, "float32") for engine in ("native", "openvino"))
    assert other.info.precision == "float32"
    # A photograph, because in noise the two limit divisors of attention differently.
    images = [
        np.asarray(Image.fromarray(photograph).resize((width, height)))[None]
        for height, width in ((64, 64), (96, 160), (256, 192), (32, 288), (512, 640))
    ]
    logits = [other(image) for image in images]
    for image, found in zip(images, logits, strict=True):
        expected = own(image)
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    # A mask does not depend on the images before it.
    again = open_engine(bundled_onnx(), "openvino", "float32")
    for image, found in reversed([*zip(images, logits, strict=True)]):
        np.testing.assert_array_equal(again(image), found)


@pytest.mark.parametrize("engine", ["native", "openvino"])
def test_streams_run_at_the_same_time_and_give_the_same(engine: str, photograph: NDArray[np.uint8]) -> None:
    images = [Preprocess(256).apply(np.roll(photograph, 8 * i, axis=1))[None] for i in range(8)]
    expected = [*map(open_engine(bundled_onnx(), engine, "float32"), images)]
    together = open_engine(bundled_onnx(), engine, "float32", streams=2)
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(together, images), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max())


def test_auto_takes_what_the_processor_has() -> None:
    assert openvino_precision("auto", ["FP32", "BF16", "FP16"]) == "bfloat16"
    assert openvino_precision("auto", ["FP32", "FP16"]) is None
    assert openvino_precision("auto", ["FP32", "INT8"]) is None
    assert openvino_precision("float16", ["FP32", "FP16"]) == "float16"
    with pytest.raises(EngineError, match="no bfloat16 arithmetic; it has float32, float16"):
        openvino_precision("bfloat16", ["FP32", "FP16"])


def test_what_an_engine_cannot_do_is_a_sentence() -> None:
    needs("onnxruntime")
    with pytest.raises(EngineError, match="float32 on a CPU, not in bfloat16"):
        open_engine(bundled_onnx(), "onnxruntime", "bfloat16")
    with pytest.raises(ConfigError, match="did you mean 'openvino'"):
        open_engine(BUNDLED, "openvno")
    with pytest.raises(ConfigError, match="unknown precision 'floatt16'; did you mean 'float16'"):
        open_engine(BUNDLED, precision="floatt16")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="threads is 0"):
        open_engine(BUNDLED, threads=0)


@pytest.mark.parametrize("engine", ["native", "openvino", "onnxruntime"])
def test_files_that_are_no_exported_models_are_one_sentence(engine: str, tmp_path: Path) -> None:
    needs("onnx")
    import onnx

    whole = bundled_onnx().read_bytes()
    foreign = onnx.load(bundled_onnx())
    del foreign.metadata_props[:]
    cases = {
        "empty": b"",
        "text": b"this is not a model\n" * 50,
        "truncated": whole[: len(whole) // 2],
        "foreign": foreign.SerializeToString(),
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises((EngineError, WeightsError), match=f"{name}.onnx") as error:
            open_engine(path, engine)
        assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match="no such file"):
        open_engine(tmp_path / "absent.onnx", engine)


@pytest.mark.parametrize("engine", ["native", "openvino", "onnxruntime"])
def test_a_graph_that_is_not_what_its_manifest_says_is_refused(engine: str, tmp_path: Path) -> None:
    needs("onnx")
    import onnx

    proto = onnx.load(bundled_onnx())
    last = proto.graph.node[-1]
    for name in last.input[1:]:  # two classes fewer
        tensor = next(i for i in proto.graph.initializer if i.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:9], name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    onnx.save(proto, tmp_path / "lying.onnx")
    with pytest.raises(WeightsError, match="contradicts its manifest"):
        open_engine(tmp_path / "lying.onnx", engine)


@pytest.mark.parametrize("engine", ["native", "openvino", "onnxruntime"])
def test_an_exported_model_cannot_make_us_read_other_files(engine: str, tmp_path: Path) -> None:
    needs("onnx")
    import onnx

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4 * 8 * 3 * 9))
    proto = onnx.load(bundled_onnx())
    kernel = next(i for i in proto.graph.initializer if list(i.dims) == [8, 3, 3, 3])
    kernel.ClearField("raw_data")
    kernel.data_location = onnx.TensorProto.EXTERNAL
    kernel.external_data.add(key="location", value=secret.name)
    (tmp_path / "pointing.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises((EngineError, WeightsError), match=r"pointing\.onnx"):
        open_engine(tmp_path / "pointing.onnx", engine)


def test_a_manifest_is_read_without_compiling() -> None:
    assert read_manifest(bundled_onnx()).name == read_manifest(BUNDLED).name == "b0-camvid"
    assert evitseg.load().manifest == read_manifest(BUNDLED)


def test_an_engine_that_does_not_run_a_file_says_which_does(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"onnxruntime does not run \.xml files; openvino can"):
        open_engine(tmp_path / "a.xml", "onnxruntime")
    with pytest.raises(EngineError, match=r"openvino does not run \.safetensors files; native can"):
        open_engine(BUNDLED, "openvino")
    with pytest.raises(WeightsError, match=r"models end in \.safetensors, \.onnx, \.evit, \.xml"):
        open_engine(tmp_path / "a.bin")
    with pytest.raises(WeightsError, match=r"a\.xml: no such file"):
        open_engine(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_bytes(b"<net/>")
    with pytest.raises(WeightsError, match=r"a\.bin: no such file"):
        open_engine(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(EngineError, match=r"a\.xml: OpenVINO cannot read it"):
        open_engine(tmp_path / "a.xml")
