"""The formats of phones and boards: each file is made and run here, or, for Core ML, computed by hand."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("torch", "onnx")

import onnx
import torch

import evitseg
from evitseg.errors import ConfigError, EngineError, ExportError, WeightsError
from evitseg.exporters import export_model, ncnn
from evitseg.exporters.coreml import CoreMlReader
from evitseg.exporters.export import export
from evitseg.exporters.formats import FORMATS, format_of
from evitseg.exporters.verify import TOLERANCE, example_images
from evitseg.labels import numbered
from evitseg.loading import network_of
from evitseg.manifest import Manifest
from evitseg.model.engine import TorchEngine
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime.device_check import check_on_device
from evitseg.runtime.engines import open_engine, read_manifest
from evitseg.runtime.model_file import digest, manifest_file
from evitseg.runtime.segmenter import Segmenter
from evitseg.runtime.undelegated import undelegated_in_executorch, undelegated_in_litert
from evitseg.system.silence import silenced
from tests.exporters.converters import can_convert, needs_format
from tests.runtime.programs import CONFIGS

pytestmark = pytest.mark.converters

SIZE = (128, 192)
DEVICES = [name for name, form in FORMATS.items() if form.one_size]
RUN_HERE = [name for name in DEVICES if name != "coreml"]


@pytest.fixture(scope="module")
def bundled() -> tuple[EfficientViT, Manifest]:
    return network_of("b0-camvid")


@pytest.fixture(scope="module")
def converted_once() -> Iterator[None]:
    """LiteRT's converter takes ten seconds; it converts the same network once, whatever its weights are stored in."""
    if not can_convert("litert"):
        yield
        return
    with silenced():
        import litert_torch
    convert, known = litert_torch.convert, {}

    def once(form: torch.nn.Module, example: tuple[torch.Tensor]) -> Any:
        content = b"".join(tensor.numpy().tobytes() for tensor in form.state_dict().values())
        key = example[0].shape, digest(content)
        if key not in known:
            known[key] = convert(form, example)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert_torch, "convert", once)
        yield


@pytest.fixture(scope="module")
def model_files(
    bundled: tuple[EfficientViT, Manifest], tmp_path_factory: pytest.TempPathFactory, converted_once: None
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported models")
    chosen = filter(can_convert, DEVICES)
    return {name: export(bundled, name, FORMATS[name].name(folder / "m"), size=SIZE)[0] for name in chosen}


@pytest.fixture(scope="module")
def image(bundled: tuple[EfficientViT, Manifest]) -> NDArray[np.uint8]:
    """Two images of the exported models' size."""
    fitting = Preprocess(fixed=SIZE)
    return np.stack([fitting.apply(image) for image in example_images()[:2]])


def copied(model_file: Path, to: str, folder: Path) -> Path:
    """The exported model with its files in another folder."""
    for file in FORMATS[to].files(model_file):
        (shutil.copytree if file.is_dir() else shutil.copy)(file, folder / file.name)
    return folder / model_file.name


@pytest.mark.parametrize("to", DEVICES)
def test_every_format_is_the_same_network(
    to: str, model_files: dict[str, Path], bundled: tuple[EfficientViT, Manifest], image: NDArray[np.uint8]
) -> None:
    engine = CoreMlReader(model_files[to]) if to == "coreml" else open_engine(model_files[to], threads=2)
    expected = TorchEngine(*bundled, "float32")(image)
    actual = engine(image)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()
    manifest = read_manifest(model_files[to])
    assert manifest.preprocess.fixed == SIZE
    assert manifest.verification is not None
    assert manifest.verification.largest_difference < TOLERANCE["float32"][0]
    assert engine(image[1:])[0] == pytest.approx(actual[1])  # an earlier image leaves nothing behind


@pytest.mark.parametrize("to", RUN_HERE)
def test_the_self_check_of_every_format_agrees_here(to: str, model_files: dict[str, Path]) -> None:
    found = check_on_device(model_files[to])
    assert found.size == SIZE
    assert found.agreement.largest_difference < 1e-4
    assert found.agreement.tolerance == 1e-3
    assert found.placement.fell_back == {}


def test_ncnn_on_a_gpu_reports_the_layers_that_the_cpu_ran(model_files: dict[str, Path]) -> None:
    needs_format("ncnn")
    import ncnn

    with silenced():
        gpus = ncnn.get_gpu_count()
    if not gpus:
        with pytest.raises(EngineError, match="ncnn finds no GPU with Vulkan"):
            check_on_device(model_files["ncnn"], device="GPU")
        return
    found = check_on_device(model_files["ncnn"], device="GPU")
    assert found.agreement.agrees
    assert found.placement.fell_back is not None
    assert "MatMul" in found.placement.fell_back
    assert "Convolution" not in found.placement.fell_back


def test_the_name_of_a_file_tells_its_format() -> None:
    for form in FORMATS.values():
        assert format_of(form.name("m.v1")) is (form if form.ending else None)
    assert format_of(Path("best.safetensors")) is None


def test_litert_does_not_claim_to_run_on_an_accelerator_that_is_not_there(model_files: dict[str, Path]) -> None:
    needs_format("litert")
    try:
        found = check_on_device(model_files["litert"], device="NPU")
    except EngineError as error:
        assert "finds no NPU" in str(error)
        return
    assert found.agreement.agrees
    assert found.placement.fell_back is None or found.placement.device == "NPU"


@pytest.mark.parametrize("to", DEVICES)
def test_only_the_exported_models_own_files_are_left(to: str, model_files: dict[str, Path]) -> None:
    folder = model_files[to].parent
    expected = {file.name for name in model_files for file in FORMATS[name].files(model_files[name])}
    assert {path.name for path in folder.iterdir()} == expected


def test_xnnpack_runs_every_operator(model_files: dict[str, Path]) -> None:
    needs_format("litert", "executorch")
    assert undelegated_in_litert(model_files["litert"]) == []
    assert undelegated_in_executorch(model_files["executorch"]) == []


def test_the_lists_of_undelegated_operators_can_be_other_than_empty(
    bundled: tuple[EfficientViT, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_format("executorch")
    small = EfficientViT(CONFIGS["mbconv"]).eval()

    class Sorted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort(dim=1).values

    plain = export_model.plain

    def with_sorting(block: ConvNormAct) -> torch.nn.Module:
        return torch.nn.Sequential(plain(block), Sorted()) if hasattr(block, "act") else plain(block)

    monkeypatch.setattr(export_model, "plain", with_sorting)
    _, manifest = bundled
    manifest = replace(manifest, preprocess=Preprocess(fixed=(64, 64)))
    FORMATS["executorch"].write(small, manifest, tmp_path / "a.pte")
    assert set(undelegated_in_executorch(tmp_path / "a.pte")) == {"aten::sort"}


@pytest.mark.parametrize("to", ["litert", "ncnn", "coreml"])
def test_float16_is_half_the_size(
    to: str, bundled: tuple[EfficientViT, Manifest], tmp_path: Path, converted_once: None
) -> None:
    path, manifest = export(bundled, to, FORMATS[to].name(tmp_path / "m"), size=SIZE, weights="float16")
    files = [file for top in FORMATS[to].files(path) for file in (top, *top.rglob("*")) if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_700_000
    assert manifest.verification is not None
    assert 1e-5 < manifest.verification.largest_difference < TOLERANCE["float16 arithmetic"][0]


@pytest.mark.parametrize("to", DEVICES)
def test_a_file_with_another_weight_than_its_checkpoint_is_refused(
    to: str,
    model_files: dict[str, Path],
    bundled: tuple[EfficientViT, Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = copy.deepcopy(bundled[0])
    with torch.no_grad():
        network.head.inputs[2].conv.weight[0] *= -1  # type: ignore[index, union-attr]

    def write(_network: EfficientViT, _manifest: Manifest, path: Path) -> None:
        copied(model_files[to], to, path.parent)

    form = replace(FORMATS[to], write=write)
    monkeypatch.setitem(FORMATS, to, form)
    with pytest.raises(ExportError, match="disagrees with its checkpoint and was discarded"):
        export((network, bundled[1]), to, form.name(tmp_path / "m"), size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["ncnn", "coreml"])  # several files, a folder
def test_an_exported_model_is_replaced_and_nothing_is_printed(
    to: str, model_files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copied(model_files[to], to, tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    capfd.readouterr()
    export(network_of("b0-camvid"), to, path, size=(64, 96))
    assert capfd.readouterr() == ("", "")
    assert read_manifest(path).preprocess.fixed == (64, 96)
    assert sorted(file.name for file in tmp_path.iterdir()) == names


@pytest.mark.parametrize("to", RUN_HERE)
def test_a_file_that_is_not_its_manifests_is_refused(to: str, model_files: dict[str, Path], tmp_path: Path) -> None:
    path = copied(model_files[to], to, tmp_path)
    weights = FORMATS[to].files(path)[0] if to == "ncnn" else path
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(WeightsError, match="belongs to another file"):
        open_engine(path)
    weights.write_bytes(whole)
    manifest_file(path).unlink()
    with pytest.raises(WeightsError, match=r"is missing next to it; copy both"):
        open_engine(path)
    manifest_file(path).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        open_engine(path)


@pytest.mark.parametrize("to", RUN_HERE)
def test_a_file_that_is_no_network_is_a_sentence(to: str, model_files: dict[str, Path], tmp_path: Path) -> None:
    path = copied(model_files[to], to, tmp_path)
    *further, _, _ = FORMATS[to].files(path)
    path.write_bytes(b"7767517 nothing of the kind")
    content = json.loads(manifest_file(path).read_text())
    content["files_sha256"] = digest(path.read_bytes(), *(file.read_bytes() for file in further))
    manifest_file(path).write_text(json.dumps(content))
    with pytest.raises(EngineError, match=str(path)):
        open_engine(path)


@pytest.mark.parametrize("to", ["litert", "executorch"])  # ncnn's file would take any size
def test_another_size_than_the_manifests_is_refused(to: str, model_files: dict[str, Path], tmp_path: Path) -> None:
    path = copied(model_files[to], to, tmp_path)
    content = json.loads(manifest_file(path).read_text())
    content["preprocess"]["fixed"] = [256, 192]
    manifest_file(path).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="contradicts its manifest"):
        open_engine(path)(np.zeros((1, 256, 192, 3), np.uint8))


@pytest.mark.parametrize("to", RUN_HERE)
def test_a_segmenter_takes_images_of_any_size_all_the_same(
    to: str, model_files: dict[str, Path], photograph: NDArray[np.uint8]
) -> None:
    prediction = evitseg.load(model_files[to])(photograph)
    assert prediction.mask.shape == photograph.shape[:2]
    model, manifest = network_of("b0-camvid")
    fixed = replace(manifest, preprocess=replace(manifest.preprocess, fixed=SIZE))
    expected = Segmenter(TorchEngine(model, fixed)).mask(photograph)
    assert (prediction.mask == expected).mean() > 0.999
    with pytest.raises(ConfigError, match="128x192"):
        evitseg.load(model_files[to], size=256)
    with pytest.raises(ConfigError, match="test-time augmentation"):
        evitseg.load(model_files[to]).mask_tta(photograph)


def test_what_cannot_be_is_a_sentence(
    bundled: tuple[EfficientViT, Manifest], model_files: dict[str, Path], tmp_path: Path
) -> None:
    needs_format(*DEVICES)
    # The photograph of the tests has 135x240 pixels, which this model enlarges twice.
    with pytest.raises(ExportError, match=r"one size; give it .*such as 256x480, .* an image of 135x240"):
        export(bundled, "litert", tmp_path / "m.tflite")
    with pytest.raises(ConfigError, match="128x192 fits"):
        export(bundled, "litert", tmp_path / "m.tflite", size=(130, 190))
    with pytest.raises(ExportError, match="float32, not as float16"):
        export(bundled, "executorch", tmp_path / "m.pte", size=SIZE, weights="float16")
    with pytest.raises(ExportError, match=r"end in .ncnn.param; name it m.ncnn.param"):
        export(bundled, "ncnn", tmp_path / "m.param", size=SIZE)
    with pytest.raises(EngineError, match="Apple"):
        open_engine(model_files["coreml"])
    for to in RUN_HERE:
        with pytest.raises(EngineError, match="leave out the precision"):
            open_engine(model_files[to], precision="bfloat16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_portable_formats_can_have_one_size_too(
    to: str, bundled: tuple[EfficientViT, Manifest], image: NDArray[np.uint8], tmp_path: Path
) -> None:
    path, manifest = export(bundled, to, FORMATS[to].name(tmp_path / "m"), size=SIZE)
    assert manifest.preprocess.fixed == SIZE
    if to == "onnx":  # what TensorRT needs, and what docs/how-to/deploy-tensorrt.md promises
        operators = [node.op_type for node in onnx.load(path).graph.node]
        assert operators[:2] == ["Cast", "Transpose"]
        assert not {"Resize", "Shape", "Sqrt", "Reciprocal"} & set(operators)
    expected = TorchEngine(*bundled, "float32")(image)
    for engine in ("openvino", "onnxruntime") if to == "onnx" else ("openvino",):
        actual = open_engine(path, engine, "float32")(image)
        assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_plain_network_is_what_ncnn_gets(bundled: tuple[EfficientViT, Manifest], image: NDArray[np.uint8]) -> None:
    planes = torch.from_numpy(image[:1]).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        actual = ncnn.ChannelsFirstModel(bundled[0], bundled[1].preprocess).eval()(planes).numpy()
    assert np.abs(actual - TorchEngine(*bundled, "float32")(image[:1])).max() < 1e-4


def test_the_weights_of_an_exported_model_are_those_it_was_made_from(tmp_path: Path) -> None:
    model = EfficientViT(CONFIGS["fused"])  # with the blocks of the L series
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    manifest = replace(
        network_of("b0-camvid")[1],
        model=model.config,
        labels=numbered(model.config.num_classes),
        preprocess=Preprocess(64),  # the size at which the file is verified
    )
    path, _ = export((model.eval(), manifest), "onnx", tmp_path / "m.onnx")
    again, told = network_of(path)
    assert told.verification is not None
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-4)
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(("to", "in_the_way"), [("onnx", "m.onnx"), ("openvino", "m.bin"), ("coreml", "m.mlpackage")])
def test_a_folder_of_somebody_elses_stays(to: str, in_the_way: str, tmp_path: Path) -> None:
    (tmp_path / in_the_way).mkdir()
    (tmp_path / in_the_way / "thesis.txt").write_text("precious")
    with pytest.raises(ExportError, match=f"{in_the_way}: is a folder"):
        evitseg.export("b0-camvid", to, FORMATS[to].name(tmp_path / "m"), size=(64, 96))
    assert (tmp_path / in_the_way / "thesis.txt").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_names_and_exported_models_are_exported_from_python_as_from_the_command_line(tmp_path: Path) -> None:
    needs_format("ncnn")
    first, manifest = evitseg.export("b0-camvid", "onnx", tmp_path / "m.onnx")
    second, again = evitseg.export(first, "ncnn", size=(64, 96))
    assert second == tmp_path / "m.ncnn.param"
    assert again.checkpoint_sha256 == manifest.checkpoint_sha256
