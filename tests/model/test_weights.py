from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.optional import needs

needs("torch", "safetensors")

import torch
from safetensors.torch import save_file

import evitseg
from evitseg.architecture import ClassificationHead, model_config
from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.checkpoints import average_checkpoints, load_checkpoint, load_official, save_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.model.published import PUBLISHED
from evitseg.model.state import read_state
from evitseg.preprocess import Preprocess
from evitseg.system.files import file_sha256

Table = dict[str, dict[str, list[int]]]


def test_every_name_in_the_kit_is_known(architectures: Table) -> None:
    assert set(PUBLISHED) == set(architectures)


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_every_published_network_load(name: str, architectures: Table) -> None:
    # Shapes decide whether weights fit; memory for the numbers is not needed.
    state = {key: torch.zeros(shape) for key, shape in architectures[name].items()}
    model = load_official(name, state)
    assert not model.training
    assert len(model.state_dict()) == len(state)


def expected_logits(shared: Callable[[str], Path]) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = {}
    for file in ("expected.npz", "expected_timm.npz"):
        with np.load(shared(f"fidelity/{file}")) as archive:
            found |= {key: archive[key] for key in archive.files}
    return found


def test_logits_are_those_of_the_published_networks(
    shared: Callable[[str], Path], fidelity: ModuleType, architectures: Table
) -> None:
    expected = expected_logits(shared)
    assert len(expected) >= 8
    for entry, logits in expected.items():
        name, size = entry.split("@")
        model = load_official(name, fidelity.state_dict(architectures[name]))
        batch, height, width = map(int, size.split("x"))
        with torch.inference_mode():
            actual = model(torch.from_numpy(fidelity.image(batch, height, width, seed=0))).numpy()
        assert actual.shape == logits.shape
        assert np.abs(actual - logits).max() / np.abs(logits).max() <= 1e-5, entry


def test_the_published_file_loads_by_its_short_name(b0_checkpoint: Path) -> None:
    model = load_official("b0-cityscapes", b0_checkpoint)
    assert model.config.num_classes == 19
    assert file_sha256(b0_checkpoint) == PUBLISHED["efficientvit-seg-b0-cityscapes"].sha256


@pytest.fixture
def state(architectures: Table, fidelity: ModuleType) -> dict[str, torch.Tensor]:
    arrays = fidelity.state_dict(architectures["efficientvit-seg-b0-cityscapes"])
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}


LAST = "head.output_ops.0.op_list.1.conv"


def test_the_number_of_classes_follows_the_last_layer(state: dict[str, torch.Tensor]) -> None:
    state[f"{LAST}.weight"], state[f"{LAST}.bias"] = torch.zeros(3, 128, 1, 1), torch.zeros(3)
    assert load_official("b0-cityscapes", state).config.num_classes == 3


def test_pt_and_safetensors_give_the_same(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "raw.pt")
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    save_file(state, tmp_path / "model.safetensors")
    for file in ("raw.pt", "wrapped.pth", "model.safetensors"):
        model = load_official("b0-cityscapes", tmp_path / file)
        torch.testing.assert_close(model.state_dict()["head.outputs.classify.conv.bias"], state[f"{LAST}.bias"])


def test_a_key_missing_left_over_or_misshapen_is_named(state: dict[str, torch.Tensor]) -> None:
    del state["backbone.input_stem.op_list.0.conv.weight"]
    state["backbone.extra"] = torch.zeros(1)
    state["head.input_ops.2.conv.weight"] = torch.zeros(32, 31, 1, 1)
    with pytest.raises(WeightsError) as error:
        load_official("b0-cityscapes", state)
    assert "missing: backbone.input_stem.op_list.0.conv.weight" in str(error.value)
    assert "unexpected: backbone.extra" in str(error.value)
    assert "head.input_ops.2.conv.weight has shape (32, 31, 1, 1)" in str(error.value)


def test_tensors_that_are_no_plain_numbers_are_refused(state: dict[str, torch.Tensor]) -> None:
    key = f"{LAST}.weight"
    for odd in (state[key].to(torch.complex64), state[key].to_sparse(), state[key].to("meta")):
        with pytest.raises(WeightsError, match="not a plain tensor"):
            load_official("b0-cityscapes", state | {key: odd})


def test_an_unknown_name_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'b1-cityscapes'"):
        load_official("b1-cityscape", {})


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran-code"),))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Malice()}, "evil.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Malice()))
    for file in ("evil.pt", "plain.pt"):
        with pytest.raises(WeightsError, match="can run code"):
            read_state(file)
    assert not Path("ran-code").exists()


@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors", "empty.pt", "empty.safetensors"])
def test_a_damaged_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"" if "empty" in name else b"these are not weights" * 9)
    with pytest.raises(WeightsError, match=name):
        read_state(tmp_path / name)
    with pytest.raises(WeightsError, match="no such file"):
        read_state(tmp_path / "absent.pt")


def own_manifest(model: EfficientViT) -> Manifest:
    classes = model.config.num_classes
    return Manifest("mine", model.config, numbered(classes), Preprocess(256), Training("generated", "CC0"))


def test_our_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    model = evitseg.build("b0", num_classes=4).eval()
    path = tmp_path / "mine.safetensors"
    save_checkpoint(model, own_manifest(model), path)
    again, manifest = load_checkpoint(path)
    assert manifest == replace(own_manifest(model), checkpoint_sha256=file_sha256(path))
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], tensor, rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("name", [n for n in PUBLISHED if "seg" in n])
def test_a_file_with_the_authors_names_is_recognised(name: str, architectures: Table, tmp_path: Path) -> None:
    expected = PUBLISHED[name].config
    torch.save({key: torch.zeros(shape) for key, shape in architectures[name].items()}, tmp_path / "found.pt")
    model, manifest = load_checkpoint(tmp_path / "found.pt")
    assert model.config == expected
    assert manifest.labels.name == name.rsplit("-", 1)[-1]


def test_a_classifier_is_told_from_a_segmentation_network(architectures: Table, tmp_path: Path) -> None:
    assert isinstance(PUBLISHED["efficientvit-b1"].config.head, ClassificationHead)
    shapes = architectures["efficientvit-b1"]
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "classifier.pt")
    with pytest.raises(WeightsError, match="looks like a classifier"):
        load_checkpoint(tmp_path / "classifier.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="match no network"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_manifest_that_disagrees_with_its_weights_is_refused(tmp_path: Path) -> None:
    model = evitseg.build("b0", num_classes=4)
    lying = replace(own_manifest(model), model=model_config("b1", 4))
    save_checkpoint(model, lying, tmp_path / "lying.safetensors")
    with pytest.raises(WeightsError, match="do not fit the b1 segmentation network"):
        load_checkpoint(tmp_path / "lying.safetensors")


def test_an_average_is_the_mean_of_weights_of_one_kind(tmp_path: Path) -> None:
    paths = []
    for seed, classes in ((0, 3), (1, 3), (2, 4)):
        torch.manual_seed(seed)
        model = evitseg.build("b0", classes)
        manifest = Manifest(
            name="a", model=model.config, labels=numbered(classes), preprocess=Preprocess(),
            training=Training(data="d", licence="l", recipe=f"run {seed}"),
        )  # fmt: skip
        paths.append(tmp_path / f"{seed}.safetensors")
        save_checkpoint(model, manifest, paths[-1])
    network, manifest = average_checkpoints(paths[:2], [3, 1])
    first, second = (load_checkpoint(path)[0].state_dict() for path in paths[:2])
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * first[key] + 0.25 * second[key])
    assert manifest.training.recipe == "mean of 2: 0.75 of (run 0); 0.25 of (run 1)"
    with pytest.raises(WeightsError, match=r"2\.safetensors: its model differs from"):
        average_checkpoints([paths[0], paths[2]])
    for weights in ([1.0], [1, -1], [0, 0], [math.nan, 1], [math.inf, 1], [1e308, 1e308]):
        with pytest.raises(ConfigError, match="one number for each of the 2"):
            average_checkpoints(paths[:2], weights)
    with pytest.raises(WeightsError, match="at least two checkpoints"):
        average_checkpoints(paths[:1])
    command = [sys.executable, "-m", "evitseg", "average", *map(str, paths[:2]), "--out"]
    run = subprocess.run([*command, str(tmp_path / "mean.safetensors")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    torch.testing.assert_close(
        load_checkpoint(tmp_path / "mean.safetensors")[0].state_dict()["backbone.stem.0.conv.conv.weight"],
        (first["backbone.stem.0.conv.conv.weight"] + second["backbone.stem.0.conv.conv.weight"]) / 2,
    )
    wrong = subprocess.run([*command, "mean.onnx"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
