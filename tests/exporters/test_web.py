"""The static web page: its files, what it verifies itself with, and what an export may replace."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.optional import needs

needs("torch")

import evitseg
from evitseg.errors import ConfigError, ExportError
from evitseg.exporters.export import export
from evitseg.exporters.web import write_web
from evitseg.loading import network_of
from evitseg.model.network import EfficientViT
from evitseg.runtime.core import Core
from evitseg.runtime.evit_file import read_evit
from evitseg.web.page_files import NOT_LOADED, PAGE
from tests.runtime.programs import CLASSIFIER


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("b0-camvid", "web", tmp_path_factory.mktemp("web") / "site")[0]


def test_the_page_contains_all_that_it_needs(site: Path) -> None:
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    ours = {path.relative_to(PAGE / "site").as_posix() for path in (PAGE / "site").rglob("*") if path.is_file()}
    library = {f"evitseg/{path.name}" for path in (PAGE / "library").iterdir()}
    further = {"model.evit", "model.check", "example.jpg", "LICENSE", "NOTICE", "README.md", "_headers"}
    assert files == ours | library | further


def test_the_service_worker_keeps_every_file_that_the_page_loads(site: Path) -> None:
    script = (site / "service-worker.js").read_text()
    listed = re.search(r"^const FILES = (.*);$", script, re.MULTILINE)
    assert listed is not None
    kept = json.loads(listed[1])
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert set(kept) == {name for name in files if Path(name).name not in NOT_LOADED}
    assert "model.evit" in kept
    assert len(kept) == len(set(kept))
    assert re.search(r'^const VERSION = "[0-9a-f]{16}";$', script, re.MULTILINE)


def test_the_stored_check_has_the_logits_of_the_model(site: Path) -> None:
    check = json.loads((site / "model.check").read_text())
    size = check["height"], check["width"]
    pixels = np.frombuffer(base64.b64decode(check["pixels"]), np.uint8).reshape(*size, 3)
    logits = np.frombuffer(base64.b64decode(check["logits"]), "<f4")
    np.testing.assert_array_equal(logits, Core(read_evit(site / "model.evit")[1])(pixels).ravel())
    assert pixels.std() > 10  # a photograph, not one colour


def test_the_readme_is_a_card_for_a_static_space(site: Path) -> None:
    text = (site / "README.md").read_text()
    card = yaml.safe_load(text.split("---")[1])
    assert card["sdk"] == "static"
    assert card["title"] == "b0-camvid"
    headers = card["custom_headers"]
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"
    sent = (site / "_headers").read_text().lower()
    assert all(f"{name}: {value}" in sent for name, value in headers.items())
    assert network_of("b0-camvid")[1].training.licence in text


def test_an_export_replaces_an_earlier_one_and_no_other_folder(site: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path, _ = export("b0-camvid", "web", tmp_path / "empty")
    (path / ".git").mkdir()
    (path / ".git" / "HEAD").touch()
    (path / "evitseg" / "mine.js").touch()
    again, manifest = export("b0-camvid", "web", path, size=(64, 96))
    assert again == path
    assert (path / ".git" / "HEAD").is_file()  # not ours to remove
    assert (path / "evitseg" / "mine.js").is_file()
    assert read_evit(path / "model.evit")[0] == manifest
    (tmp_path / "models").mkdir()
    export("b0-camvid", "native", tmp_path / "models" / "model.evit")
    with pytest.raises(ExportError, match="models: is a folder with other files"):
        export("b0-camvid", "web", tmp_path / "models")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ExportError, match="other: is a folder with other files"):
        export("b0-camvid", "web", tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_another_model_is_another_version_for_the_service_worker(site: Path, tmp_path: Path) -> None:
    other, _ = export("b0-camvid", "web", tmp_path / "site", size=(64, 96))
    assert (other / "service-worker.js").read_text() != (site / "service-worker.js").read_text()


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    manifest = network_of("b0-camvid")[1]
    with pytest.raises(ConfigError, match="only segmentation"):
        write_web(EfficientViT(CLASSIFIER), manifest, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_the_library_has_the_version_and_the_licence_of_the_package() -> None:
    library = PAGE / "library"
    assert json.loads((library / "package.json").read_text())["version"] == evitseg.__version__
    assert (library / "LICENSE").read_text() == (Path(__file__).parents[2] / "LICENSE").read_text()
