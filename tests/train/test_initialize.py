from __future__ import annotations

from tests.optional import needs

needs("torch", "accelerate")

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evitseg.errors import ConfigError, WeightsError
from evitseg.labels import load_labels, numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.checkpoints import load_checkpoint, save_checkpoint
from evitseg.model.key_names import Naming
from evitseg.model.network import EfficientViT
from evitseg.model.published import PUBLISHED
from evitseg.preprocess import Preprocess
from evitseg.train import TrainConfig
from evitseg.train.distill import Teachers
from evitseg.train.initialize import LAST_LAYER, check_classes_from, class_matrix, initialize, load_source

B0 = TrainConfig()


def test_a_start_gives_all_but_the_last_layer(b0_checkpoint: Path) -> None:
    model = initialize(B0.updated({"start": str(b0_checkpoint)}), numbered(4)).network.state_dict()
    given = load_checkpoint(b0_checkpoint)[0].state_dict()
    differ = [key for key in model if model[key].shape != given[key].shape or not torch.equal(model[key], given[key])]
    assert differ == ["head.outputs.classify.conv.weight", "head.outputs.classify.conv.bias"]
    with pytest.raises(WeightsError, match="its backbone is b0, the run's is b1; train with --variant b0"):
        initialize(B0.updated({"variant": "b1", "start": str(b0_checkpoint)}), numbered(4))


def test_a_network_with_relu_starts_from_weights_for_hard_swish_but_not_the_reverse(
    b0_checkpoint: Path, tmp_path: Path
) -> None:
    relu = initialize(B0.updated({"variant": "b0-relu", "start": str(b0_checkpoint)}), numbered(4)).network
    assert relu.config.variant == "b0-relu"
    given = load_checkpoint(b0_checkpoint)[0].state_dict()
    assert all(torch.equal(t, given[key]) for key, t in relu.state_dict().items() if key not in LAST_LAYER)
    about = Manifest("relu", relu.config, numbered(4), Preprocess(), Training("none", "CC0"))
    save_checkpoint(relu, about, tmp_path / "relu.safetensors")
    assert load_checkpoint(tmp_path / "relu.safetensors")[1].model == relu.config
    with pytest.raises(WeightsError, match="its backbone is b0-relu, the run's is b0; train with --variant b0-relu"):
        initialize(B0.updated({"start": str(tmp_path / "relu.safetensors")}), numbered(4))


def test_classes_of_the_start_give_their_rows(b0_checkpoint: Path) -> None:
    labels = load_labels("camvid")
    config = B0.updated({"start": str(b0_checkpoint), "classes_from": {"bicyclist": ("rider", "bicycle")}})
    weight, bias = (initialize(config, labels).network.state_dict()[key] for key in LAST_LAYER)
    given = load_checkpoint(b0_checkpoint)[0].state_dict()
    theirs = load_labels("cityscapes").names
    for name, parts in (("sky", ["sky"]), ("car", ["car"]), ("bicyclist", ["rider", "bicycle"])):
        rows = [theirs.index(part) for part in parts]
        at = labels.names.index(name)
        torch.testing.assert_close(weight[at], given[LAST_LAYER[0]][rows].mean(0))
        torch.testing.assert_close(bias[at], given[LAST_LAYER[1]][rows].mean(0))
    with pytest.raises(ConfigError, match="'cyclist' is not a class of the data"):
        initialize(config.updated({"classes_from": {"cyclist": ("rider",)}}), labels)
    with pytest.raises(ConfigError, match="'cyclist' is not a class of the start"):
        check_classes_from(config.updated({"classes_from": {"bicyclist": ("cyclist",)}}))
    # A source that has the class itself does not need to be told; one that has none of the names is left alone.
    assert torch.equal(class_matrix(labels, labels, config.classes_from), torch.eye(11))
    loose = class_matrix(replace(labels, classes=(replace(labels.classes[0], name="Sky"),)), labels, {})
    assert loose[0].tolist() == [1.0] + 10 * [0.0]


@pytest.mark.parametrize(("name", "naming"), [("efficientvit-b0", Naming.AUTHORS), ("efficientvit_b0", Naming.TIMM)])
def test_classifiers_give_their_backbone(tmp_path: Path, name: str, naming: Naming) -> None:
    classifier = EfficientViT(PUBLISHED[name].config)
    state = {naming.key(key, classifier.config): tensor for key, tensor in classifier.state_dict().items()}
    torch.save(state, tmp_path / "classifier.pt")
    network = initialize(B0.updated({"start": str(tmp_path / "classifier.pt")}), numbered(4)).network
    assert network.config.backbone.attention_eps == classifier.config.backbone.attention_eps
    for key, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[key], tensor)
    with pytest.raises(WeightsError, match="a classifier cannot teach masks"):
        Teachers([str(tmp_path / "classifier.pt")], numbered(4), {}, torch.device("cpu"))


def test_the_bundled_model_is_a_start() -> None:

    from evitseg.labels import load_labels
    from evitseg.loading import network_of

    labels = load_labels("camvid")
    taken, given = initialize(TrainConfig(start="b0-camvid"), labels).network, network_of("b0-camvid")[0]
    for key, tensor in given.state_dict().items():
        torch.testing.assert_close(taken.state_dict()[key], tensor)


def test_a_misspelt_start_suggests_bundled_and_published_models() -> None:
    for name, meant in (("b0-camvit", "b0-camvid"), ("b0-cityscape", "b0-cityscapes"), ("efficientvit_c1", "_b1")):
        with pytest.raises(ConfigError, match=f"unknown model '{name}'; did you mean .*{meant}'"):
            load_source(name)
