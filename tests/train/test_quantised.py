"""Training with the roundings of 8-bit integers, and the files that follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch", "accelerate")

import torch
from torch import Tensor

from evitseg.errors import ConfigError, ExportError
from evitseg.exporters.export import export
from evitseg.exporters.formats import FORMATS
from evitseg.exporters.integer_calibration import DIVISION_FACTOR
from evitseg.exporters.integer_graph import integer_graph
from evitseg.exporters.integer_litert import operators
from evitseg.exporters.integer_ranges import with_ranges
from evitseg.exporters.integer_simulation import IntegerNetwork, graph_input, simulated
from evitseg.exporters.verify import example_images
from evitseg.loading import network_of
from evitseg.model.checkpoints import average_checkpoints, load_checkpoint
from evitseg.model.network import NormalizedModel
from evitseg.preprocess import Preprocess
from evitseg.train import Event, Run, TrainConfig, fit
from evitseg.train.quantised import QuantisedNetwork, quantised_start
from evitseg.train.settings import read_config
from tests.exporters.converters import needs_format
from tests.exporters.integer_tensors import in_litert, in_onnx_runtime, steps_apart
from tests.train.scenes import SMALL, scenes

SIZE = (64, 96)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return Preprocess(fixed=SIZE).apply(example_images()[0])


@pytest.fixture(scope="module")
def quantised(image: NDArray[np.uint8]) -> QuantisedNetwork:
    """The bundled network before any training with roundings."""
    network, manifest = network_of("b0-camvid")
    return quantised_start(network, replace(manifest.preprocess, short_side=64), [image])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = scenes(tmp_path_factory.mktemp("data"), 5, (64, 64))
    (folder / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    return folder


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return SMALL.updated({"variant": "b0-relu", "qat": True, "start": "b0-camvid", "optim.learning_rate": 3e-4})


@pytest.fixture(scope="module")
def run(data: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(data, config, tmp_path_factory.mktemp("integers") / "run")


def normalised(image: NDArray[np.uint8], quantised: QuantisedNetwork) -> Tensor:
    ready = NormalizedModel(quantised.network, Preprocess())
    return (torch.from_numpy(image.copy())[None].permute(0, 3, 1, 2).float() + ready.shift) * ready.scale


def integers_of(quantised: QuantisedNetwork, size: tuple[int, int]) -> IntegerNetwork:
    graph = integer_graph(quantised.network, Preprocess(fixed=size), ())
    return with_ranges(graph, quantised.ranges())


def test_the_network_in_training_computes_bit_for_bit_what_the_files_simulation_computes(
    quantised: QuantisedNetwork, image: NDArray[np.uint8]
) -> None:
    batch = np.stack([image, image[::-1]])
    with torch.no_grad():
        logits = torch.cat([quantised(normalised(one, quantised)) for one in batch])
        together = quantised(torch.cat([normalised(one, quantised) for one in batch]))
    integers = integers_of(quantised, SIZE)
    expected = torch.cat([simulated(integers, graph_input(one)) for one in batch]).permute(0, 3, 1, 2)
    assert torch.equal(logits, expected)
    assert (together.argmax(1) == expected.argmax(1)).float().mean() > 0.9  # summed in another order
    exact = torch.cat([simulated(integers, graph_input(one), only=()) for one in batch]).permute(0, 3, 1, 2)
    assert (logits - exact).square().mean() < 0.5 * exact.var()


def test_the_features_of_the_stages_are_those_of_the_network_but_for_rounding(
    quantised: QuantisedNetwork, image: NDArray[np.uint8]
) -> None:
    pixels = normalised(image, quantised)
    with torch.no_grad():
        logits, rounded = quantised.logits_and_features(pixels)
        exact = quantised.network.backbone(pixels)
        assert torch.equal(logits, quantised(pixels))
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).square().mean() < 0.5 * theirs.var()


def test_features_need_a_teacher_with_the_same_widths(data: Path, config: TrainConfig, tmp_path: Path) -> None:
    other = config.updated({"qat": False, "variant": "b1", "start": "none", "distill.teachers": ("b0-camvid",)})
    with pytest.raises(
        ConfigError, match=r"distill.features is 1.0, but the stages of no teacher have the widths of b1"
    ):
        fit(data, other.updated({"distill.features": 1.0, "optim.learning_rate": 1e-3}), tmp_path / "run")


def test_ranges_of_sums_grow_with_the_image(quantised: QuantisedNetwork) -> None:
    small, large = (integers_of(quantised, size) for size in (SIZE, (128, 192)))
    for name in small.scales:
        factor = 4 if name.endswith(("/context", "/key sum", "/numerator", "/divisor")) else 1
        assert large.scale(name).step == pytest.approx(factor * small.scale(name).step), name
    for node in small.graph.nodes:
        if node.kind == "quotient":
            numerator, divisor = (large.scale(name).step for name in node.inputs)
            assert large.scale(node.output).step <= numerator / divisor / DIVISION_FACTOR * 1.0001


def test_gradients_reach_all_weights_and_steps(quantised: QuantisedNetwork, image: NDArray[np.uint8]) -> None:
    quantised.zero_grad()
    quantised(normalised(image, quantised)).square().mean().backward()
    for name, parameter in quantised.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
    assert quantised.log_steps.grad is not None
    assert (quantised.log_steps.grad != 0).float().mean() > 0.9
    fixed = {name.rpartition("norm.")[2] for name, p in quantised.named_parameters() if not p.requires_grad}
    assert fixed >= {"weight"}


def test_the_gradient_of_a_step_is_that_of_its_rounding() -> None:
    """Inside the range a number's rounding error in steps; beyond its ends the end."""
    from evitseg.train.quantised import round_to_integers

    x = torch.tensor([0.3, 0.6, 1.4, -70.0, 500.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    rounded = round_to_integers(x, step, -100)
    assert rounded.tolist() == [0.5, 0.5, 1.5, -14.0, 113.5]
    torch.autograd.backward([rounded], [torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])])
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 10.0, 100.0, 0.0, 0.0]
    assert step.grad is not None
    changes = [1 - 0.6, 1 - 1.2, 3 - 2.8, -28, 227]
    expected = sum(change * factor for change, factor in zip(changes, (1, 10, 100, 1000, 10000), strict=True))
    assert float(step.grad) == pytest.approx(expected / (127 * 5) ** 0.5, rel=1e-5)


def test_a_run_with_integers_learns_its_ranges_and_has_its_start_as_teacher(run: Run) -> None:
    (start, before), (network, manifest) = (
        load_checkpoint(run.folder / name) for name in ("start.safetensors", run.last)
    )
    assert manifest.activation_ranges.keys() == before.activation_ranges.keys() >= {"backbone.stem.0.conv", "logits"}
    assert manifest.activation_ranges != before.activation_ranges
    assert manifest.model.variant == "b0-relu"
    distill = read_config(run.folder).distill
    assert (distill.teachers, distill.features) == (("b0-camvid",), 0.3)
    weights = [own.state_dict()["backbone.stages.1.0.expand.conv.weight"] for own in (start, network)]
    assert not torch.equal(*weights)
    assert weights[0].abs().amax((1, 2, 3)).max() < 2  # AdamW changes small and large weights alike


def test_a_resumed_run_ends_in_the_same_bits(data: Path, config: TrainConfig, run: Run, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, config, tmp_path / "run", watch=interrupt)
    resumed = fit(data, config, tmp_path / "run", resume=True)
    assert resumed.last.read_bytes() == run.last.read_bytes()


def test_a_run_from_such_a_run_goes_on_with_its_ranges(
    data: Path, config: TrainConfig, run: Run, tmp_path: Path
) -> None:
    told: list[str] = []
    again = config.updated({"start": str(run.last), "epochs": 1})
    second = fit(data, again, tmp_path / "again", tell=told.append)
    assert "continuing with the ranges that the start has learned" in told
    assert second.start_miou == run.last_miou
    first, new = (load_checkpoint(path)[1].activation_ranges for path in (run.last, second.last))
    assert first.keys() == new.keys()
    assert first != new


def test_a_trained_file_has_integers_of_8_bits_only_and_the_learned_ranges(
    run: Run, data: Path, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    network, manifest = load_checkpoint(run.last)
    graph = integer_graph(network, replace(manifest.preprocess, fixed=SIZE), ())
    integers = with_ranges(graph, manifest.activation_ranges)
    # Operator by operator: over 178 of them, a step here and there grows to another class at one place in eight.
    for to, tensors_in, most in (("litert", in_litert, 0.1), ("onnx", in_onnx_runtime, 0.005)):
        needs_format(to)
        path, written = export(run.last, to, FORMATS[to].name(tmp_path / "m"), weights="w8a8", size=SIZE, data=data,
                               max_drop=100)  # fmt: skip
        assert written.int16_tensors == ()
        assert written.activation_ranges == manifest.activation_ranges
        for name, apart in steps_apart(integers, tensors_in(path, integers, image), image):
            assert apart.max() < 1.01, (to, name)
            assert apart.mean() < most, (to, name)
    found = operators(tmp_path / "m.tflite")
    assert {kind for _, kind in found} == {"INT8"}
    assert sum(name == "HARD_SWISH" for name, _ in found) == 15
    assert ("RELU", "INT8") in found


def test_ranges_are_dropped_where_they_fit_no_more(run: Run, tmp_path: Path) -> None:
    needs_format("onnx")
    bundled, about = network_of("b0-camvid")
    ranged = replace(about, activation_ranges={"logits": (-1.0, 1.0)})
    _, written = export((bundled, ranged), "onnx", tmp_path / "m.onnx", preprocess=Preprocess(fixed=SIZE))
    assert written.activation_ranges == {}
    assert average_checkpoints([run.best, run.last])[1].activation_ranges == {}
    network, manifest = load_checkpoint(run.last)
    graph = integer_graph(network, replace(manifest.preprocess, fixed=SIZE), ())
    for ranges in ({}, {**manifest.activation_ranges, "logits": (1.0, 2.0)}, {"logits": (-1.0, 1.0)}):
        with pytest.raises(ExportError, match="activation ranges are not those of its network"):
            with_ranges(graph, ranges)


def test_settings_that_integers_cannot_honour_are_errors(config: TrainConfig) -> None:
    for change in ({"loss.auxiliary": 0.4}, {"precision": "bfloat16"}, {"optim.freeze_backbone": True},
                   {"optim.freeze_norm": False}, {"average.start_weight": 0.5}, {"optim.drop_path": 0.1}):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{next(iter(change))} cannot be set with qat"):
            config.updated(change)
    with pytest.raises(ConfigError, match="qat needs trained weights"):
        config.updated({"start": "none"})
