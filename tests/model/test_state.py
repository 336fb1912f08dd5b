from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.optional import needs

needs("torch", "safetensors")

import torch
from safetensors.torch import save_file
from torch import Tensor

import evitseg
from evitseg.architecture import BACKBONES, ModelConfig, model_config
from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import numbered
from evitseg.manifest import METADATA_KEY, Manifest, Training
from evitseg.model import checkpoints as weights
from evitseg.model.checkpoints import load_checkpoint
from evitseg.model.key_names import Naming
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Weights under the authors' names."""
    torch.manual_seed(0)
    model = evitseg.build("b0", 19)
    return {Naming.AUTHORS.key(key, model.config): tensor for key, tensor in model.state_dict().items()}


LAST = "head.output_ops.0.op_list.1.conv.weight"
COUNTER = "backbone.input_stem.op_list.0.norm.num_batches_tracked"
FIRST = "backbone.input_stem.op_list.0.conv.weight"


def before(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: tensor for key, tensor in state.items()}


def compiled_inside(state: State) -> State:
    return {
        key.replace("backbone.", "backbone._orig_mod.").replace("head.", "head.module."): t for key, t in state.items()
    }


WRAPPED: dict[str, Callable[[State], Any]] = {
    "data parallel": before("module."),
    "compiled": before("_orig_mod."),
    "compiled data parallel": before("module._orig_mod."),
    "Lightning": before("model."),
    "Lightning, compiled": before("model._orig_mod."),
    "a name of their own": before("my_network."),
    "compiled parts": compiled_inside,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": [1.0]}},
    "model": lambda state: {"epoch": 3, "model": state, "args": {"lr": 1e-3, "name": "x"}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.25, "step": torch.tensor(4)},
    "ema alone": lambda state: {"ema": {"module": before("module.")(state), "decay": 0.999}, "epoch": 1},
    "twice": lambda state: {"model": {"state_dict": before("module.")(state)}},
    "a key of their own": lambda state: {"segmentation": OrderedDict(state), "epoch": 3},
    "beside numbers": lambda state: state | {"epoch": 3, "date": "today"},
    "without counters": lambda state: {k: t for k, t in state.items() if not k.endswith("num_batches_tracked")},
    "one counter missing": lambda state: {k: t for k, t in state.items() if k != COUNTER},
    "a counter more": lambda state: state | {"head.other.num_batches_tracked": torch.tensor(7)},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_weights_are_found_wherever_training_programs_put_them(how: str, state: State, tmp_path: Path) -> None:
    torch.save(WRAPPED[how](state), tmp_path / "wrapped.pt")
    model, _ = load_checkpoint(tmp_path / "wrapped.pt")
    assert model.config == model_config("b0", 19)
    torch.testing.assert_close(model.state_dict()["head.outputs.classify.conv.weight"], state[LAST])
    torch.testing.assert_close(model.state_dict()["backbone.stem.0.conv.conv.weight"], state[FIRST])


def test_weights_of_a_name_are_the_first_of_those_that_programs_keep(state: State, tmp_path: Path) -> None:
    other = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    torch.save({"ema": other, "model": state}, tmp_path / "both.pt")
    model, _ = load_checkpoint(tmp_path / "both.pt")
    torch.testing.assert_close(model.state_dict()["head.outputs.classify.conv.weight"], state[LAST])


def test_of_several_state_dicts_under_strange_keys_none_is_guessed(state: State, tmp_path: Path) -> None:
    torch.save({"student": state, "teacher": state}, tmp_path / "two.pt")
    with pytest.raises(WeightsError, match=r"two\.pt: .*several hold tensors \('student', 'teacher'\)"):
        load_checkpoint(tmp_path / "two.pt")
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "none.pt")
    with pytest.raises(WeightsError, match=r"none\.pt: holds no state dict .* it has 'epoch', 'loss'"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_first_name_that_is_missing_or_left_over_is_told_for_the_nearest_network(
    prefix: str, state: State, tmp_path: Path
) -> None:
    changed = before(prefix)({key: tensor for key, tensor in state.items() if key != LAST})
    changed |= {"loss.weight": torch.zeros(19), f"{prefix}{FIRST}": torch.zeros(8, 4, 3, 3)}
    torch.save(changed, tmp_path / "near.pt")
    with pytest.raises(WeightsError) as error:
        load_checkpoint(tmp_path / "near.pt")
    assert "the nearest is the b0 segmentation network with 19 classes" in str(error.value)
    assert f"missing: {LAST}" in str(error.value)
    assert "unexpected: loss.weight" in str(error.value)
    assert f"{FIRST} has shape (8, 4, 3, 3), the network's has (8, 3, 3, 3)" in str(error.value)


def test_a_backbone_without_a_head_says_that_the_head_is_missing(state: State, tmp_path: Path) -> None:
    torch.save({key: tensor for key, tensor in state.items() if key.startswith("backbone.")}, tmp_path / "part.pt")
    with pytest.raises(WeightsError, match=r"nearest is the b0 segmentation network .* missing: head\."):
        load_checkpoint(tmp_path / "part.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_that_are_not_finite_are_refused(value: float, ending: str, state: State, tmp_path: Path) -> None:
    broken = {key: tensor.clone() for key, tensor in state.items()}
    broken[LAST] = broken[LAST].double()
    broken[LAST][0, 0] = value  # 1e39 is more than float32 holds
    path = tmp_path / f"broken.{ending}"
    if ending == "pt":
        torch.save(broken, path)
    else:
        save_file(broken, path)
    with pytest.raises(WeightsError, match=rf"broken\.{ending}: {LAST} holds numbers that are not finite"):
        load_checkpoint(path)


def test_statistics_that_no_training_gives_are_refused(state: State, tmp_path: Path) -> None:
    key = next(key for key in state if key.endswith("running_var"))
    torch.save(state | {key: -torch.ones_like(state[key])}, tmp_path / "negative.pt")
    with pytest.raises(WeightsError, match="negative variances"):
        load_checkpoint(tmp_path / "negative.pt")


def test_an_archive_that_inflates_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(2**22)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as stored, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for part in stored.namelist():
            bomb.writestr(part, stored.read(part), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(WeightsError, match=r"bomb\.pt: \d+ bytes would inflate to 1677\d+"):
        load_checkpoint(tmp_path / "bomb.pt")


def manifest_of(config: ModelConfig) -> dict[str, Any]:
    small = model_config("b0", config.num_classes)
    manifest = Manifest("m", small, numbered(small.num_classes), Preprocess(), Training("d", "l"))
    content: dict[str, Any] = json.loads(manifest.to_json())
    content["model"] = json.loads(json.dumps(config, default=vars))
    return content


def test_no_network_is_made_for_a_manifest_that_its_weights_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_on_meta(config: ModelConfig) -> EfficientViT:
        assert torch.get_default_device().type == "meta"
        return EfficientViT(config)

    monkeypatch.setattr(weights, "EfficientViT", only_on_meta)
    row = BACKBONES["b0"]
    head = model_config("b0", 3).head
    wide = replace(row.stages[3], width=4096, depth=2, expand=16)
    large = ModelConfig(replace(row, stages=(*row.stages[:3], wide)), head)
    deep = ModelConfig(replace(row, stages=(*row.stages[:3], replace(row.stages[3], depth=1000))), head)
    for config, sentence in (
        (large, "missing: "),
        (
            deep,
            r"it has 70\d\d convolutions, the file 100 tensors",  # seven to each of the thousand blocks
        ),
    ):
        save_file(
            {f"a{i}": torch.zeros(1) for i in range(100)},
            tmp_path / "evil.safetensors",
            {METADATA_KEY: json.dumps(manifest_of(config))},
        )
        with pytest.raises(WeightsError, match=sentence):
            load_checkpoint(tmp_path / "evil.safetensors")


def test_a_network_larger_than_any_machine_is_refused(tmp_path: Path) -> None:
    row = BACKBONES["b0"]
    stages = tuple(replace(stage, width=16_384, depth=1000, expand=256) for stage in row.stages)
    config = ModelConfig(replace(row, stages=stages), model_config("b0", 3).head)  # type: ignore[arg-type]
    save_file({"a": torch.zeros(1)}, tmp_path / "evil.safetensors", {METADATA_KEY: json.dumps(manifest_of(config))})
    with pytest.raises(ConfigError, match=r"evil\.safetensors: .* parameters"):
        load_checkpoint(tmp_path / "evil.safetensors")
