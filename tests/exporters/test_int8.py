from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("torch", "onnx")

import torch

from evitseg.errors import ConfigError, DatasetError, ExportError, FileError
from evitseg.exporters.export import export
from evitseg.exporters.formats import FORMATS
from evitseg.exporters.int8 import LEVELS, by_table, eight_bit, in_steps, per_channel, rounded, steps
from evitseg.exporters.verify import TOLERANCE, example_images
from evitseg.loading import network_of
from evitseg.manifest import Manifest
from evitseg.model.engine import TorchEngine
from evitseg.model.fold import convolutions, folded, set_folded, with_folded_norms
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime.engines import open_engine
from evitseg.runtime.segmenter import Segmenter
from tests.networks import lively
from tests.runtime.programs import CONFIGS

SIZE = (128, 192)


@pytest.fixture(scope="module")
def bundled() -> tuple[EfficientViT, Manifest]:
    return network_of("b0-camvid")


@pytest.fixture(scope="module")
def inputs() -> list[torch.Tensor]:
    fitting = Preprocess(fixed=SIZE)
    pixels = [torch.from_numpy(fitting.apply(image).copy()).float() for image in example_images()]
    return [(pixel.permute(2, 0, 1)[None] - 118) / 58 for pixel in pixels]


@pytest.fixture(scope="module")
def data(bundled: tuple[EfficientViT, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of the shipped photograph, small, with the masks that the network itself gives them."""
    folder = tmp_path_factory.mktemp("data")
    segment = Segmenter(TorchEngine(bundled[0], replace(bundled[1], preprocess=Preprocess(128))))
    whole = np.asarray(Image.fromarray(example_images()[0]).resize((480, 270)))
    for split, count in (("train", 4), ("val", 4)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(count):
            part = np.ascontiguousarray(whole[25 + 15 * i : 200 + 15 * i, (split == "val") * 125 :][:, :325])
            Image.fromarray(part).save(folder / f"images/{split}/{i}.png")
            Image.fromarray(segment.mask(part).astype(np.uint8)).save(folder / f"masks/{split}/{i}.png")
    return folder


def test_rounding_is_to_what_the_bits_can_say() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 24, 3, 3)).astype(np.float32) * np.geomspace(1e-3, 10, 16)[
        :, None, None, None
    ].astype(np.float32)
    assert in_steps(weight) is None
    whole = in_steps(per_channel(weight))
    assert whole is not None
    assert whole.dtype == np.int8
    assert np.abs(whole).max() == 127
    np.testing.assert_allclose(whole * steps(weight), per_channel(weight), rtol=1e-6)
    assert (np.abs(per_channel(weight) - weight) <= steps(weight) / 2 * 1.001).all()
    assert in_steps(np.zeros((2, 3, 1, 1), np.float32)) is not None

    table = by_table(weight)
    assert len(np.unique(table)) <= LEVELS
    even = np.rint(weight / np.abs(weight).max() * 127) * np.abs(weight).max() / 127
    assert np.square(table - weight).sum() < np.square(even - weight).sum()
    np.testing.assert_array_equal(by_table(table), table)
    small = weight[:2, :2]
    np.testing.assert_array_equal(by_table(small), small.astype(np.float16))


def test_folding_the_norms_changes_nothing(
    bundled: tuple[EfficientViT, Manifest], inputs: list[torch.Tensor], b0_checkpoint: Path
) -> None:
    model = network_of(b0_checkpoint)[0]
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        for given in inputs:
            expected = model.eval()(given)
            assert (with_folded_norms(model)(given) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_corrected_biases_take_most_of_the_change_back(
    bundled: tuple[EfficientViT, Manifest], inputs: list[torch.Tensor]
) -> None:
    model = with_folded_norms(bundled[0])
    corrected = rounded(model, inputs, per_channel)
    plain = copy.deepcopy(corrected)
    for (name, module), original in zip(convolutions(plain).items(), convolutions(model).values(), strict=True):
        set_folded(module, folded(module)[0], folded(original)[1])
        assert in_steps(module.conv.weight.detach().numpy()) is not None, name
    with torch.inference_mode():
        before, after, uncorrected = (torch.cat([net(x) for x in inputs]) for net in (model, corrected, plain))
    assert (after - before).square().mean() < 0.3 * (uncorrected - before).square().mean()


def test_the_worst_layers_stay_until_the_drop_is_small_enough(inputs: list[torch.Tensor]) -> None:
    def coarse(weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros_like(weight) if weight.shape == (8, 3, 3, 3) else per_channel(weight)

    small_network = lively(EfficientViT(CONFIGS["mbconv"]))
    model = with_folded_norms(small_network)
    asked = []

    def drop_of(network: EfficientViT) -> float:
        with torch.inference_mode():
            change = (network(inputs[0]) - model(inputs[0])).abs().max()
        asked.append(float(change))
        return asked[-1]

    images, small = example_images()[:2], Preprocess(fixed=(64, 96))
    new, kept = eight_bit(small_network, small, images, drop_of, asked_of := 3.0, coarse)
    assert len(asked) == 2  # all, then all but the worst
    assert asked[0] > asked_of > asked[1]
    assert list(kept) == ["backbone.stem.0.conv"]
    assert kept["backbone.stem.0.conv"] > 0.1
    assert in_steps(convolutions(new)["backbone.stem.0.conv"].conv.weight.detach().numpy()) is None
    with pytest.raises(ExportError, match="whichever layers stay in float16"):
        eight_bit(small_network, small, images[:1], lambda network: 1.0, 0.5)


@dataclass(frozen=True)
class Exported:
    path: Path
    manifest: Manifest
    told: list[str]


@pytest.fixture(scope="module")
def exported(
    bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """The bundled model in 8 bits, in a format that is written once."""

    @cache
    def make(to: str) -> Exported:
        told: list[str] = []
        out = FORMATS[to].name(tmp_path_factory.mktemp(to) / "m")
        return Exported(
            *export(bundled, to, out, size=SIZE, weights="int8", data=data, max_drop=5, tell=told.append), told
        )

    return make


def size_of(to: str, path: Path) -> int:
    """Bytes of an exported model without a manifest of its own file."""
    files = [file for top in FORMATS[to].files(path) for file in (top, *top.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files if file.suffix != ".json")


@pytest.mark.converters
@pytest.mark.parametrize("to", ["onnx", "openvino", "litert", "ncnn", "coreml"])
def test_every_format_stores_what_was_rounded(to: str, exported: Callable[[str], Exported]) -> None:
    made = exported(to)
    manifest, told = made.manifest, made.told
    assert size_of(to, made.path) < 1_200_000
    verification = manifest.verification
    assert verification is not None
    # The same numbers as the rounded network, but for float16 where the format computes so, and a logit may jump.
    if to == "coreml":
        assert verification.equal_pixels > 0.99
    else:
        assert verification.largest_difference < 1e-3
    assert verification.measured_on == 4
    assert verification.checkpoint_miou is not None
    assert verification.exported_miou is not None
    assert verification.exported_miou >= verification.checkpoint_miou - 5
    assert [line.split()[0] for line in told] == ["scoring", "rounding", "converting", "scoring"]


def test_both_engines_run_the_portable_file(
    bundled: tuple[EfficientViT, Manifest], inputs: list[torch.Tensor], tmp_path: Path
) -> None:
    needs("onnxruntime")
    model = rounded(with_folded_norms(bundled[0]), inputs, per_channel)
    manifest = replace(bundled[1], weights="int8")
    path = tmp_path / "m.onnx"
    FORMATS["onnx"].write(model, manifest, path)
    FORMATS["onnx"].set_manifest(path, manifest)
    image = Preprocess(256).apply(example_images()[0])[None]
    expected = TorchEngine(model, manifest)(image)
    for engine in ("openvino", "onnxruntime"):
        logits = open_engine(path, engine, "float32")(image)
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.converters
@pytest.mark.parametrize("to", ["onnx", "openvino", "litert", "ncnn", "coreml"])
def test_layers_that_stay_are_stored_in_float16(
    to: str,
    bundled: tuple[EfficientViT, Manifest],
    exported: Callable[[str], Exported],
    inputs: list[torch.Tensor],
    tmp_path: Path,
) -> None:
    form, without = FORMATS[to], exported(to)
    assert without.manifest.float16_layers == {}
    model = with_folded_norms(bundled[0])
    name = "backbone.stages.3.0.pointwise"
    keeping = rounded(model, inputs, form.rounding, keep=[name])
    image = Preprocess(fixed=SIZE).apply(example_images()[0])[None]
    path = form.name(tmp_path / "m")
    form.write(keeping, without.manifest, path)
    form.set_manifest(path, without.manifest)  # of the same length in both
    stored = copy.deepcopy(keeping)
    kept = convolutions(stored)[name]
    weight, bias = folded(kept)
    set_folded(kept, weight.astype(np.float16).astype(np.float64), bias)
    expected = TorchEngine(stored, without.manifest)(image)
    logits = form.run(path)(image)
    if to == "coreml":  # computes in float16; PyTorch's errors in float16 are half as large in the mean square
        half = TorchEngine(stored, without.manifest, "float16")(image)
        assert np.square(logits - expected).mean() < 3 * np.square(half - expected).mean()
    else:
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    more = size_of(to, path) - size_of(to, without.path)
    assert 0.8 * weight.size < more < 1.2 * weight.size  # a byte more for each


def test_a_score_that_is_too_low_is_refused(
    bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evitseg.exporters.export as module

    monkeypatch.setattr(module, "eight_bit", lambda model, *rest: (model, {}))
    monkeypatch.setitem(TOLERANCE, "int8", (1.0, 0.0))  # the file's weights are rounded, those of this model are not
    scores = iter([70.0, 69.4])
    monkeypatch.setattr(module, "miou", lambda *rest: (next(scores), ()))
    with pytest.raises(ExportError, match=r"it scores 69.40 % .* 0.5 points .* below the 70.00 % of its checkpoint"):
        export(bundled, "onnx", tmp_path / "m.onnx", weights="int8", data=data)
    assert list(tmp_path.iterdir()) == []


def test_what_it_needs_is_said(bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="give their folder"):
        export(bundled, "onnx", tmp_path / "m.onnx", weights="int8")
    with pytest.raises(ExportError, match="executorch files store weights as float32"):
        export(bundled, "executorch", tmp_path / "m.pte", weights="int8", data=data)


@pytest.mark.slow
def test_camvid_loses_little(
    bundled: tuple[EfficientViT, Manifest], shared: Callable[[str], Path], tmp_path: Path
) -> None:
    for folder in ("train", "trainannot", "val", "valannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
        for path in sorted((shared("data/camvid") / folder).iterdir())[::4]:
            (tmp_path / "camvid" / folder / path.name).symlink_to(path)
    _, manifest = export(
        bundled, "openvino", tmp_path / "m.xml", size=(384, 512), weights="int8", data=tmp_path / "camvid"
    )
    verification = manifest.verification
    assert verification is not None
    assert verification.measured_on == 26
    assert manifest.float16_layers == {}


def test_data_is_scored_by_the_names_of_its_classes(
    bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path: Path
) -> None:
    names = bundled[1].labels.names
    reordered = tmp_path / "reordered"
    shutil.copytree(data, reordered)
    (reordered / "classes.txt").write_text("\n".join(reversed(names)))
    for mask in (reordered / "masks").rglob("*.png"):
        Image.fromarray(len(names) - 1 - np.asarray(Image.open(mask))).save(mask)
    scores = []
    for folder in (data, reordered):
        _, manifest = export(bundled, "onnx", tmp_path / "a.onnx", size=SIZE, data=folder)
        assert manifest.verification is not None
        scores.append(manifest.verification.checkpoint_miou)
    assert scores[0] == scores[1]
    (reordered / "images" / "val" / "0.png").write_bytes(b"not an image")
    _, manifest = export(bundled, "onnx", tmp_path / "a.onnx", size=SIZE, data=reordered)
    assert manifest.verification is not None
    assert manifest.verification.measured_on == 3
    (reordered / "classes.txt").write_text("\n".join([*names[:-1], "tram"]))
    with pytest.raises(ConfigError, match="the data lacks bicyclist; the model lacks tram"):
        export(bundled, "onnx", tmp_path / "b.onnx", size=SIZE, data=reordered)


def test_unreadable_images_are_left_out_of_the_calibration(
    bundled: tuple[EfficientViT, Manifest], data: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    for image in (broken / "images" / "train").iterdir():
        image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DatasetError, match="none of the 4 images to calibrate on can be read"):
        export(bundled, "onnx", tmp_path / "a.onnx", weights="int8", size=SIZE, data=broken)
    shutil.copy(data / "images" / "train" / "2.png", broken / "images" / "train" / "2.png")
    export(bundled, "onnx", tmp_path / "a.onnx", weights="int8", size=SIZE, data=broken, max_drop=100)


def test_an_export_does_not_replace_what_it_is_made_from(
    bundled: tuple[EfficientViT, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, _ = export(bundled, "onnx", tmp_path / "a.onnx")
    before = out.read_bytes()
    for given in (None, "a.onnx", "./a.onnx"):
        with pytest.raises(FileError, match=r"a\.onnx: is also the input, which would be lost; give another"):
            export("a.onnx", "onnx", given, weights="float16")
    assert out.read_bytes() == before
