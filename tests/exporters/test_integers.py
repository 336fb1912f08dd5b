"""Full-integer files: the graph, its scales, and what LiteRT and ONNX Runtime compute from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("torch", "onnx")

import torch
from torch.nn.functional import hardswish

import evitseg
from evitseg.errors import EngineError, ExportError
from evitseg.exporters import export as export_module
from evitseg.exporters.export import export
from evitseg.exporters.formats import FORMATS
from evitseg.exporters.integer_calibration import calibrated, least_squares, scale_between
from evitseg.exporters.integer_graph import MIDDLE_GREY, Kernel, integer_graph
from evitseg.exporters.integer_litert import operators, write_integer_litert
from evitseg.exporters.integer_simulation import (
    IntegerNetwork,
    graph_input,
    rounded_kernel,
    simulated,
)
from evitseg.exporters.measured_heads import with_measured_head_factors
from evitseg.exporters.verify import example_images
from evitseg.loading import network_of
from evitseg.manifest import Manifest
from evitseg.model.engine import TorchEngine
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime.engines import open_engine
from evitseg.runtime.litert_device import LiteRtDevice
from tests.exporters.converters import needs_format
from tests.exporters.integer_tensors import in_litert, in_onnx_runtime, steps_apart

SIZE = (128, 192)


@pytest.fixture(scope="module")
def bundled() -> tuple[EfficientViT, Manifest]:
    model, manifest = network_of("b0-camvid")
    return model, replace(manifest, preprocess=replace(manifest.preprocess, fixed=SIZE))


@pytest.fixture(scope="module")
def image(bundled: tuple[EfficientViT, Manifest]) -> NDArray[np.uint8]:
    return bundled[1].preprocess.apply(example_images()[0])


@pytest.fixture(scope="module")
def integers(bundled: tuple[EfficientViT, Manifest]) -> IntegerNetwork:
    model, manifest = bundled
    model = with_measured_head_factors(model, manifest.preprocess, example_images())
    return calibrated(integer_graph(model, manifest.preprocess), manifest.preprocess, example_images())


@pytest.fixture(scope="module")
def tflite(integers: IntegerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_format("litert")
    path = tmp_path_factory.mktemp("integers") / "m.tflite"
    write_integer_litert(integers, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of the shipped photograph with masks of one class."""
    folder = tmp_path_factory.mktemp("data")
    for split, images in (("train", example_images()), ("val", example_images()[1:2])):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).resize(SIZE[::-1]).save(folder / f"images/{split}/{i}.png")
            Image.fromarray(np.full(SIZE, 3, np.uint8)).save(folder / f"masks/{split}/{i}.png")
    return folder


def test_the_graph_without_rounding_is_the_network(bundled: tuple[EfficientViT, Manifest]) -> None:
    model, manifest = bundled
    # Padding is then the network's own.
    grey = replace(manifest.preprocess, mean=(MIDDLE_GREY / 255,) * 3)
    graph = integer_graph(model, grey)
    pixels = grey.apply(example_images()[0])
    actual = simulated(IntegerNetwork(graph, {}, {}), graph_input(pixels), only=())
    expected = TorchEngine(model, replace(manifest, preprocess=grey))(pixels[None])
    np.testing.assert_allclose(actual.permute(0, 3, 1, 2).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_every_operator_in_litert_is_within_one_step_of_the_simulation(
    tflite: Path, integers: IntegerNetwork, image: NDArray[np.uint8]
) -> None:
    for name, apart in steps_apart(integers, in_litert(tflite, integers, image), image):
        assert apart.max() < 1.01, name
        assert apart.mean() < 0.1, name  # 0.072 behind a hard-swish, which LiteRT computes in integers


def test_the_steps_of_a_division_suit_the_shift_of_litert(integers: IntegerNetwork) -> None:
    """A numerator of -1 gave the smallest integer where they did not."""
    divisions = [node for node in integers.graph.nodes if node.kind == "quotient"]
    assert divisions
    for node in divisions:
        numerator, divisor = (integers.scale(name).step for name in node.inputs)
        assert numerator >= 64 * divisor * integers.scale(node.output).step, node.output


def test_no_operator_is_in_floating_point(tflite: Path, integers: IntegerNetwork) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(tflite))
    (given,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["dtype"], logits["dtype"]) == (np.uint8, np.int8)
    found = operators(tflite)
    assert {kind for _, kind in found} == {"INT8", "INT16"}
    assert ("HARD_SWISH", "INT8") in found
    assert ("HARD_SWISH", "INT16") not in found
    assert {name for name, _ in found} >= {"DIV", "BATCH_MATMUL", "SUM", "MAXIMUM"}
    assert integers.graph.sixteen == {name for name in integers.graph.shapes if _is_wide(name)}


def _is_wide(name: str) -> bool:
    wide = name.startswith(("backbone.stem", "backbone.stages.0", "backbone.stages.1", "head.blocks"))
    return (wide and not name.endswith("8 bits")) or name.endswith("16 bits")


def test_every_operator_in_onnx_runtime_is_the_simulations(
    bundled: tuple[EfficientViT, Manifest], integers: IntegerNetwork, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    needs_format("onnx")
    path, form = tmp_path / "m.onnx", FORMATS["onnx"]
    assert form.write_integers is not None
    form.write_integers(integers, path)
    form.set_manifest(path, bundled[1])
    tensors = in_onnx_runtime(path, integers, image)
    differing = 0
    for name, apart in steps_apart(integers, tensors, image):
        assert apart.max() < 1.01, name
        assert apart.mean() < 0.005, name  # sums in another order; 0.0016 at most
        differing += bool(apart.any())
    assert differing <= len(integers.graph.nodes) / 5
    logits = form.run_integers(path)(image[None])
    np.testing.assert_array_equal(logits, tensors["logits"].permute(0, 3, 1, 2).numpy())


def test_least_squares_cut_off_rare_outliers() -> None:
    values = [torch.randn(300_000, generator=torch.Generator().manual_seed(0)), torch.tensor([-20.0, 60.0])]
    scale, widest = least_squares(values, -20.0, 60.0), scale_between(-20.0, 60.0)
    assert scale.step < 0.6 * widest.step
    errors = [sum(float((own.rounded(x) - x).square().sum()) for x in values) for own in (scale, widest)]
    assert errors[0] < errors[1]
    assert scale.rounded(torch.zeros(1)) == 0
    assert least_squares([torch.zeros(5)], 0.0, 0.0).rounded(torch.zeros(1)) == 0


def test_a_range_in_front_of_a_hard_swish_leaves_out_what_it_makes_zero() -> None:
    values = [torch.cat([torch.linspace(-60, -4, 2000), torch.linspace(-3, 8, 2000)])]

    def activated(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return points * np.clip(points / 6 + 0.5, 0, 1)

    before, after = least_squares(values, -60.0, 8.0), least_squares(values, -60.0, 8.0, activated)
    errors = [float((hardswish(own.rounded(values[0])) - hardswish(values[0])).abs().max()) for own in (before, after)]
    assert errors[1] < 0.3 * errors[0]


def test_a_rounded_interpolation_keeps_a_constant() -> None:
    from evitseg.exporters.export_model import up_sampling

    for factor in (2, 4):
        own = rounded_kernel(Kernel(up_sampling(9, factor).double().numpy(), axis=1))
        np.testing.assert_allclose((own.whole * own.step).sum(1), 1, rtol=1e-6)


def test_corrected_biases_remove_the_mean_error(
    bundled: tuple[EfficientViT, Manifest], integers: IntegerNetwork
) -> None:
    biased = {
        node.output: replace(integers.kernels[node.output], bias=node.kernel.bias)
        for node in integers.graph.nodes
        if node.kernel is not None and node.kernel.bias is not None
    }
    plain = replace(integers, kernels=dict(integers.kernels) | biased)
    inputs = [graph_input(bundled[1].preprocess.apply(image)) for image in example_images()]

    def mean_error(network: IntegerNetwork) -> torch.Tensor:
        changes = [simulated(network, x) - simulated(integers, x, only=()) for x in inputs]
        return torch.stack([change.mean((0, 1, 2)) for change in changes]).mean(0)

    assert mean_error(integers).square().mean() < 0.5 * mean_error(plain).square().mean()


@pytest.mark.parametrize("to", ["litert", "onnx"])
def test_an_export_with_integers_is_verified_and_scored(
    to: str, bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path: Path, image: NDArray[np.uint8]
) -> None:
    model, manifest = bundled
    path, written = export(
        (model, manifest), to, FORMATS[to].name(tmp_path / "m"), weights="w8a8", size=SIZE, data=data, max_drop=100
    )
    assert written.weights == "w8a8"
    assert "backbone.stem.0.conv" in written.int16_tensors
    assert written.verification is not None
    assert written.verification.measured_on == 1
    engine = open_engine(path, "litert" if to == "litert" else "onnxruntime")
    if to == "litert":
        assert engine.info.precision == "int8"
        try:
            device = LiteRtDevice(path, "NPU")  # where there is none, LiteRT 2.3 runs it on the CPU
        except EngineError as error:
            assert "finds no NPU" in str(error)
        else:
            np.testing.assert_allclose(device(image[None]), engine(image[None]), atol=0.1)
            device.close()
    else:
        with pytest.raises(EngineError, match="use --engine onnxruntime"):
            open_engine(path)
    agreement = (engine(image[None]).argmax(1) == TorchEngine(model, manifest)(image[None]).argmax(1)).mean()
    assert agreement > 0.8


def test_a_loss_that_is_too_large_names_layers(
    bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_format("onnx")
    scores = iter([70.0, 68.9])
    monkeypatch.setattr(export_module, "miou", lambda *rest: (next(scores), ()))
    layers = r"whose rounding changes the logits most.* are ([a-z0-9.]+ \(\d\.\de-\d\d\)(, |\.$)){5}$"
    limit = r"more than 1 points \(--max-drop\) below the 70\.00 % of its checkpoint; "
    with pytest.raises(ExportError, match=rf"scores 68.90 % .*{limit}.*{layers}") as refusal:
        export(bundled, "onnx", tmp_path / "m.onnx", weights="w8a8", size=SIZE, data=data)
    assert ". " not in str(refusal.value).removeprefix("m.onnx")  # one sentence
    assert list(tmp_path.iterdir()) == []


def test_requests_that_integers_cannot_fulfil_are_refused(
    bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    with pytest.raises(ExportError, match="ncnn files of evitseg have no integer arithmetic .* litert files do"):
        export(bundled, "ncnn", tmp_path / "m.ncnn.param", weights="w8a8", data=data)
    with pytest.raises(ExportError, match="or --w8a8 DATA"):
        export(bundled, "onnx", tmp_path / "m.onnx", weights="w8a8")
    free = replace(bundled[1], preprocess=Preprocess())
    with pytest.raises(ExportError, match="onnx files with integers take images of one size"):
        export((bundled[0], free), "onnx", tmp_path / "m.onnx", weights="w8a8", data=data)
    large = evitseg.build("l0", 4)
    with pytest.raises(ExportError, match="networks of the b series"):
        integer_graph(large, bundled[1].preprocess)
    done = cli("export", "b0-camvid", "--w8a8", data, "--int8", data)
    assert (done.status, "--w8a8" in done.stderr) == (2, True)
