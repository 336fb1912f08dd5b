"""Downloads against a hub of our own on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.optional import needs

needs("torch", "safetensors", "huggingface_hub")

import torch

import evitseg
from evitseg.architecture import model_config
from evitseg.errors import WeightsError
from evitseg.model import published as published_table
from evitseg.model.key_names import Naming
from evitseg.model.network import EfficientViT
from evitseg.model.published import PUBLISHED, download
from tests.hub_server import HubServer, running_hub

NAME = "efficientvit-seg-b0-cityscapes"
REPOSITORY, FILE = PUBLISHED[NAME].repository, PUBLISHED[NAME].file
PATH = f"/{REPOSITORY}/resolve/main/{FILE}"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file like the published one, with weights of our own."""
    torch.manual_seed(0)
    config = model_config("b0", 19)
    state = {Naming.AUTHORS.key(key, config): tensor for key, tensor in EfficientViT(config).state_dict().items()}
    path = tmp_path_factory.mktemp("published") / "b0.pt"
    torch.save({"state_dict": state}, path)
    return path.read_bytes()


@pytest.fixture
def known(published: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sha256 in the place of the real file's."""
    from dataclasses import replace

    sha256 = hashlib.sha256(published).hexdigest()
    monkeypatch.setitem(published_table.PUBLISHED, NAME, replace(PUBLISHED[NAME], sha256=sha256))


@pytest.mark.usefixtures("known")
def test_a_file_is_downloaded_once_and_found_offline_afterwards(
    hub: HubServer, published: bytes, tmp_path: Path
) -> None:
    hub.repository(REPOSITORY, **{FILE: published})
    path = download("b0-cityscapes", endpoint=hub.url, cache=tmp_path)
    assert path.read_bytes() == published
    assert hub.requests == [f"HEAD {PATH}", f"GET {PATH}"]
    hub.repositories.clear()
    assert download("b0-cityscapes", endpoint=hub.url, cache=tmp_path) == path
    assert len(hub.requests) == 2
    assert evitseg.load_official("b0-cityscapes", path).config.num_classes == 19


def test_a_file_that_is_not_the_published_one_is_refused(hub: HubServer, published: bytes, tmp_path: Path) -> None:
    hub.repository(REPOSITORY, **{FILE: published})
    with pytest.raises(WeightsError, match="its sha256 is .* delete it and try again"):
        download("b0-cityscapes", endpoint=hub.url, cache=tmp_path)


def test_a_connection_that_breaks_is_one_sentence(hub: HubServer, published: bytes, tmp_path: Path) -> None:
    hub.repository(REPOSITORY, **{FILE: published})
    hub.hangs_up = True
    with pytest.raises(WeightsError, match="could not be downloaded") as error:
        download("b0-cityscapes", endpoint=hub.url, cache=tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(WeightsError, match="could not be downloaded"):
        download("b0-cityscapes", endpoint="nonsense://", cache=tmp_path / "other")


def test_a_file_that_the_hub_lacks_is_one_sentence(hub: HubServer, tmp_path: Path) -> None:
    hub.repository(REPOSITORY)
    with pytest.raises(WeightsError, match="b0-cityscapes: han-cai/efficientvit-seg has no file") as error:
        download("b0-cityscapes", endpoint=hub.url, cache=tmp_path)
    assert "\n" not in str(error.value)


def test_offline_the_command_says_what_to_do(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "evitseg", "predict", "--example", "--model", "b0-cityscapes", "--out", str(tmp_path)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: b0-cityscapes: ")
    assert "HF_HUB_OFFLINE forbids downloading it" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_command_downloads_and_converts_once_and_needs_neither_hub_nor_pytorch_again(
    hub: HubServer, b0_checkpoint: Path, tmp_path: Path
) -> None:
    hub.repository(REPOSITORY, **{FILE: b0_checkpoint.read_bytes()})
    out = tmp_path / "out"
    arguments = ["predict", "--example", "-m", "b0-cityscapes", "--size", "256", "--out", str(out)]
    without = "import sys; sys.modules.update(torch=None, huggingface_hub=None); "
    code = "from evitseg.cli import app; sys.exit(app.main(sys.argv[1:]))"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    masks = []
    for before in ("import sys; ", without):
        run = subprocess.run(
            [sys.executable, "-c", before + code, *arguments], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert "vegetation" in run.stdout
        masks.append((out / "street_mask.png").read_bytes())
        hub.repositories.clear()
    assert masks[0] == masks[1]
