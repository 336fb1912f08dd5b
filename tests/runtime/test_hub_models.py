"""Models from a hub on this machine, with the real client."""

from __future__ import annotations

import json
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("huggingface_hub")

import evitseg
from evitseg.bundled import DEFAULT_MODEL, EXAMPLE_IMAGE, bundled_models
from evitseg.errors import ConfigError, EvitsegError, EvitsegWarning, MissingPackageError
from evitseg.loading import located, model_stem
from evitseg.profiling import contestants, worker
from evitseg.system.hub import HubName, parse_hub_name
from tests.exported import bundled_onnx
from tests.hub_server import TOKEN, HubServer, running_hub

WEIGHTS = bundled_models()[DEFAULT_MODEL].read_bytes()
NAME = "hf://anna/streets"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        yield hub


def refused(model: str) -> str:
    """The sentence with which a model is refused."""
    with pytest.raises(EvitsegError) as error:
        evitseg.load(model)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.startswith(model)
    assert TOKEN not in sentence
    return sentence


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://a/b", HubName("a/b")),
        ("hf://a/b@v1.2", HubName("a/b", "v1.2")),
        ("hf://a/b@refs%2Fpr%2F3/c.onnx", HubName("a/b", "refs/pr/3", "c.onnx")),
        ("hf://a/b/sub/c@2.onnx", HubName("a/b", None, "sub/c@2.onnx")),
    ],
)
def test_a_name_has_a_repository_and_may_have_a_revision_and_a_file(text: str, name: HubName) -> None:
    assert parse_hub_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf://", "hf://a", "hf://a/", "hf:///b", "hf://a/b@", "hf://a/b/", "hf://a/b//c.onnx", "hf://a/b/../c.onnx",
        "hf://a/b/./c.onnx", "hf://a/b\\c.onnx", "hf://a/b/c\\d.onnx", "hf://a/b/c\n.onnx", "hf://a/b@../c", "hf://a/b@-x",
        "hf://a/b@..%2F..%2Fx", "hf://../b", "hf://a/..", "hf://a/b--c", "hf://-a/b", "hf://a b/c", "hf://a/b.git",
        "hf://a/b@x%0ay", "hf://a/b/C:/d.onnx",
    ],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused_before_any_request(text: str, hub: HubServer) -> None:
    with pytest.raises(ConfigError):
        parse_hub_name(text)
    with pytest.raises(ConfigError):
        evitseg.load(text)
    assert hub.requests == []


def test_a_model_is_the_one_in_the_repository_and_knows_its_commit(hub: HubServer, tmp_path: Path) -> None:
    repository = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS})
    segment = evitseg.load(NAME, size=64, precision="float32")
    commit = repository.commits[0][0]
    assert segment.source == f"{NAME}@{commit}/model.safetensors"
    expected = evitseg.load(size=64, precision="float32")(EXAMPLE_IMAGE).mask
    np.testing.assert_array_equal(segment(EXAMPLE_IMAGE).mask, expected)


def test_a_new_revision_is_fetched_and_an_old_one_can_be_named(hub: HubServer, tmp_path: Path) -> None:
    repository = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS})
    _, first = located(NAME)
    repository.commit({"model.safetensors": bundled_with(name="second")})
    model, second = located(NAME)
    assert second == f"{NAME}@{repository.commits[1][0]}/model.safetensors"
    assert evitseg.load(model).manifest.name == "second"
    old, source = located(f"{NAME}@{repository.commits[0][0]}")
    assert source == first
    assert evitseg.load(old).manifest.name == DEFAULT_MODEL


def bundled_with(**changes: Any) -> bytes:
    """The bundled model with another manifest."""
    from dataclasses import replace

    from safetensors.numpy import load, save

    from evitseg.manifest import METADATA_KEY
    from evitseg.runtime.checkpoint import read_checkpoint_manifest

    manifest = replace(read_checkpoint_manifest(bundled_models()[DEFAULT_MODEL]), **changes)
    return save(load(WEIGHTS), {METADATA_KEY: manifest.to_json()})


def test_a_commit_in_the_cache_needs_no_request(hub: HubServer) -> None:
    commit = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS}).commits[0][0]
    _, source = located(NAME)
    hub.requests.clear()
    assert located(f"{NAME}@{commit}")[1] == source
    assert hub.requests == []


def test_offline_the_cache_is_used_and_what_it_lacks_is_one_sentence(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("anna/streets", **{"model.safetensors": WEIGHTS})
    _, source = located(NAME)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert located(NAME)[1] == source
    assert "not in the cache" in refused("hf://anna/other")
    assert "HF_HUB_OFFLINE" in refused(f"{NAME}@v2")
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_a_warning_if_the_cache_has_the_model_else_an_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("anna/streets", **{"model.safetensors": WEIGHTS})
    _, source = located(NAME)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@127.0.0.1:{free.getsockname()[1]}")
        with pytest.warns(EvitsegWarning, match="could not be reached .* from the cache") as warned:
            assert located(NAME)[1] == source
        sentences = [str(warned[0].message)]
        monkeypatch.setenv("HF_HOME", "/nowhere")
        sentences.append(refused(NAME))
    assert "; check the network" in sentences[1]
    assert not any("secret" in sentence for sentence in sentences)


def test_the_only_model_of_a_repository_is_found_whatever_its_name(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("anna/streets", **{"onnx/b0.onnx": bundled_onnx().read_bytes(), "README.md": b"---\n{}\n---\n"})
    _, source = located(NAME)
    assert source is not None
    assert source.endswith("/onnx/b0.onnx")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert located(NAME)[1] == source
    assert evitseg.load(NAME).manifest.name == DEFAULT_MODEL


def test_what_else_the_cache_holds_does_not_change_which_model_a_name_means(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"model.safetensors": WEIGHTS, "b0.onnx": bundled_onnx().read_bytes()}
    commit = hub.repository("anna/streets", **files).commits[0][0]
    located(f"{NAME}@{commit}/b0.onnx")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "model.safetensors is not in the cache" in refused(NAME + f"@{commit}")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert located(f"{NAME}@{commit}")[1] == f"{NAME}@{commit}/model.safetensors"


def test_of_several_models_one_must_be_named(hub: HubServer) -> None:
    repository = hub.repository("anna/streets", **{"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS})
    assert "hf://anna/streets/a.safetensors, hf://anna/streets/b.safetensors" in refused(NAME)
    assert located(f"{NAME}/b.safetensors")[1] == f"{NAME}@{repository.commits[0][0]}/b.safetensors"


def test_what_evitseg_did_not_write_is_refused(hub: HubServer) -> None:
    from safetensors.numpy import save

    foreign = save({"x": np.zeros(3, np.float32)})
    hub.repository("anna/streets", **{"model.safetensors": foreign, "model.pt": b"pickle", "bad.onnx": b"\0" * 99})
    assert "has no manifest" in refused(NAME)
    assert "not a model of evitseg" in refused(f"{NAME}/bad.onnx")
    hub.requests.clear()
    assert "only .safetensors, .onnx, .evit files" in refused(f"{NAME}/model.pt")
    assert hub.requests == []
    hub.repository("anna/empty", **{"README.md": b"---\n{}\n---\n"})
    assert "has no model of evitseg" in refused("hf://anna/empty")


def test_what_the_hub_refuses_is_one_sentence(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository("anna/secret", **{"model.safetensors": WEIGHTS}).private = True
    hub.repository("anna/gated", **{"model.safetensors": WEIGHTS}).gated = True
    hub.repository("anna/streets", **{"model.safetensors": WEIGHTS})
    assert "has no repository anna/none, or it is private; to read a private one, log in" in refused("hf://anna/none")
    assert "or it is private; to read a private one, log in" in refused("hf://anna/secret")
    assert "ask for access at" in refused("hf://anna/gated")
    assert "has no revision 'v2'" in refused(f"{NAME}@v2")
    assert "has no file b.onnx" in refused(f"{NAME}/b.onnx")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert "your token (HF_TOKEN, `hf auth`) gives no access" in refused("hf://anna/secret")


def test_a_private_model_loads_with_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository("anna/secret", **{"model.safetensors": WEIGHTS}).private = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert evitseg.load("hf://anna/secret").manifest.name == DEFAULT_MODEL
    hub.requests.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evitseg.load("hf://anna/secret")  # also the question whether the cache is current carries the token
    assert hub.requests


def test_published_weights_are_loaded_by_their_names(hub: HubServer) -> None:
    assert located("hf://han-cai/efficientvit-seg/efficientvit_seg_b0_cityscapes.pt") == ("b0-cityscapes", None)
    assert "give one of b0-cityscapes, b1-ade20k" in refused("hf://han-cai/efficientvit-seg")


def test_a_run_of_predict_says_and_records_the_commit(
    hub: HubServer, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), (90, 90, 90)).save("a.png")
    commit = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS}).commits[0][0]
    source = f"{NAME}@{commit}/model.safetensors"
    done = cli("predict", "a.png", "--model", NAME, "--size", "64")
    assert done.status == 0, done.stderr
    assert f"{NAME} is {source}" in done.stdout
    done = cli("predict", "a.png", "--model", NAME, "--size", "64", "--exact", "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["source"] == source
    done = cli("info", NAME, "--json")
    assert json.loads(done.stdout)["source"] == source


def test_compare_and_verify_say_the_commit(
    hub: HubServer, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(contestants, "ROUNDS", 1)
    monkeypatch.setattr(worker, "PAUSE_S", 0.0)
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for name in ("a", "b"):
            Image.new(mode, (64, 48)).save(f"data/{kind}/{name}.png")
    commit = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS}).commits[0][0]
    source = f"{NAME}@{commit}/model.safetensors"
    arguments = ("compare", "b0-camvid", NAME, "--data", "data", "--size", "64", "--resamples", "100")
    done = cli(*arguments)
    assert done.status == 0, done.stderr
    assert f"{NAME} is {source}" in done.stdout
    assert [run["source"] for run in json.loads(cli(*arguments, "--json").stdout)["runs"]] == [None, source]
    done = cli("verify", NAME)
    assert done.status == 0, done.stderr
    assert done.stdout.startswith(f"{NAME} is {source}\n{NAME}: agrees")


def test_a_page_of_a_model_on_the_hub_says_the_commit(
    hub: HubServer, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS}).commits[0][0]

    class Interrupted:
        def wait(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("evitseg.cli.web_command.threading", SimpleNamespace(Event=Interrupted))
    done = cli("web", NAME, "--no-browser")
    assert done.status == 0, done.stderr
    assert f"{NAME} is {NAME}@{commit}/model.safetensors" in done.stdout


def test_a_model_that_is_pickled_stays_at_its_commit(hub: HubServer) -> None:
    import pickle

    repository = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS})
    segment = evitseg.load(NAME)
    stored = pickle.dumps(segment)
    repository.commit({"model.safetensors": bundled_with(name="second")})
    again = pickle.loads(stored)
    assert (again.source, again.manifest.name) == (segment.source, DEFAULT_MODEL)


def test_without_the_client_the_cache_still_works_and_the_extra_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS}).commits[0][0]
    _, source = located(NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert located(f"{NAME}@{commit}")[1] == source
    with pytest.raises(MissingPackageError, match=r"'\.\[hub\]'"):
        evitseg.load(NAME)  # whether the cache is current, only the hub knows
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert evitseg.load(NAME).source == source


def test_a_run_starts_from_a_model_on_the_hub_and_records_its_commit(hub: HubServer) -> None:
    needs("torch", "accelerate")
    import torch

    from evitseg.loading import network_of
    from evitseg.train import TrainConfig
    from evitseg.train.initialize import initialize, with_pinned_start

    commit = hub.repository("anna/streets", **{"model.safetensors": WEIGHTS}).commits[0][0]
    config = with_pinned_start(TrainConfig(start=NAME))
    assert config.start == f"{NAME}@{commit}/model.safetensors"
    network, manifest = network_of(DEFAULT_MODEL)
    start = initialize(config, manifest.labels)
    assert (start.known, start.short_side) == (1.0, manifest.preprocess.short_side)
    for key, value in network.state_dict().items():
        assert torch.equal(start.network.state_dict()[key], value), key


def test_files_made_from_a_model_on_the_hub_are_named_after_its_repository() -> None:
    assert model_stem("hf://anna/fields@v2/small.onnx") == Path("fields")
    assert model_stem("hf://anna/fields-v1.5") == Path("fields-v1.5")
    assert model_stem("runs/mine/best.safetensors") == Path("runs/mine/best")
    assert model_stem("b0-camvid") == Path("b0-camvid")
