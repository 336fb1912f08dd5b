"""`evitseg push` to a hub on this machine, with the real client; what it uploads loads again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

needs("huggingface_hub")

import huggingface_hub
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

import evitseg
from evitseg.bundled import DEFAULT_MODEL, bundled_models
from evitseg.labels import LabelSpace
from evitseg.manifest import METADATA_KEY, Manifest, Training
from evitseg.runtime.checkpoint import read_checkpoint_manifest
from evitseg.web.page_files import PAGE
from tests.hub_server import TOKEN, HubServer, running_hub

Cli = Callable[..., Any]
BUNDLED = bundled_models()[DEFAULT_MODEL]
REPOSITORY = "anna/fields"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(variable, raising=False)
        # Files then go through the older of the hub's two protocols, which is plain HTTP.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield hub


def run_of(folder: Path, **changes: Any) -> Path:
    """The folder of a run, with the bundled weights and another manifest."""
    manifest = replace(read_checkpoint_manifest(BUNDLED), **changes)
    folder.mkdir()
    save_file(load_file(BUNDLED), folder / "best.safetensors", {METADATA_KEY: manifest.to_json()})
    return folder


def plants() -> dict[str, Any]:
    """A manifest of a run on somebody's own data, whose texts are hostile to Markdown."""
    own = read_checkpoint_manifest(BUNDLED).labels
    classes = (replace(own.classes[0], name="a|b<script>*"), *own.classes[1:])
    return {
        "name": "b0-plants",
        "labels": LabelSpace("plants", classes, own.ignored_ids),
        "training": Training(
            "plants: 12 images", "set by whoever owns the data", "evitseg 1, step 9 of 9, start b0-cityscapes"
        ),
        "accuracy": (),
    }


def card_in(hub: HubServer, repository: str = REPOSITORY) -> Any:
    return ModelCard(hub.repositories[repository].files["README.md"].decode())


def test_what_is_pushed_loads_again_and_gives_the_same_masks(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    done = cli("push", run_of(tmp_path / "run"), REPOSITORY, "--licence", "apache-2.0", "--json")
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    files = hub.repositories[REPOSITORY].files
    assert set(told["files"]) == set(files) - {".gitattributes"}
    assert told["url"] == f"{hub.url}/{REPOSITORY}"
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    again = evitseg.load(f"hf://{REPOSITORY}")
    assert again.source == f"{told['model']}/model.safetensors"
    np.testing.assert_array_equal(again(image).mask, evitseg.load()(image).mask)


def test_the_card_says_what_the_manifest_says(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    assert cli("push", run_of(tmp_path / "run"), REPOSITORY, "--licence", "Apache-2.0").status == 0
    card, manifest = card_in(hub), read_checkpoint_manifest(BUNDLED)
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
        "evitseg",
        "image-segmentation",
        "apache-2.0",
    )
    assert "image-segmentation" in data["tags"]
    assert [result.metric_value for result in card.data.eval_results] == [each.miou for each in manifest.accuracy]
    for name, value in manifest.accuracy[0].iou.items():
        assert re.search(rf"^\| {name} \| {value:.1f} \|", card.text, re.M), name
    assert manifest.training.data in card.text
    assert f'evitseg.load("hf://{REPOSITORY}")' in card.text
    assert "CamVid and Cityscapes were published for research" in card.text  # the conditions of the data's owners
    beside = re.findall(r"\]\((sample[\w.]*)\)", card.text)
    assert beside == ["sample.jpg", "sample_overlay.jpg", "sample_licence.txt"]
    assert set(beside) <= set(hub.repositories[REPOSITORY].files)
    assert b"Adrien Pavie" in hub.repositories[REPOSITORY].files["sample_licence.txt"]


def test_a_licence_that_is_not_named_is_unknown_and_that_is_said(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    done = cli("push", run_of(tmp_path / "run", **plants()), REPOSITORY)
    assert done.status == 0, done.stderr
    assert "the licence is unknown; name it with --licence" in done.stdout
    assert card_in(hub).data.license == "unknown"
    assert "named no licence" in card_in(hub).text
    assert evitseg.load(f"hf://{REPOSITORY}").manifest.training.licence == "unknown"


def test_a_licence_of_ones_own_is_other_with_its_name(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    done = cli("push", run_of(tmp_path / "run", **plants()), REPOSITORY, "--licence", "Field Data Licence 1")
    assert done.status == 0, done.stderr
    data = card_in(hub).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "field-data-licence-1")
    assert evitseg.load(f"hf://{REPOSITORY}").manifest.training.licence == "Field Data Licence 1"


def test_names_from_data_are_text_in_the_card_and_the_base_model_is_linked(
    hub: HubServer, tmp_path: Path, cli: Cli
) -> None:
    assert cli("push", run_of(tmp_path / "run", **plants()), REPOSITORY, "--licence", "mit").status == 0
    text = card_in(hub).text
    assert r"a\|b\<script\>\*" in text
    assert card_in(hub).data.base_model == "han-cai/efficientvit-seg"
    assert "Not measured." in text
    assert "sample.jpg" not in text  # a street would be no sample of plants


def test_a_sample_is_reduced_and_loses_where_it_was_taken(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret garden"
    exif.get_ifd(0x8825)[1] = "N"
    Image.new("RGB", (1600, 1200), (30, 90, 30)).save(tmp_path / "field.jpg", exif=exif)
    run = run_of(tmp_path / "run", **plants())
    done = cli("push", run, REPOSITORY, "--sample", tmp_path / "field.jpg", "--dry-run", tmp_path / "out")
    assert done.status == 0, done.stderr
    with Image.open(tmp_path / "out/sample.jpg") as sample:
        assert sample.size == (1024, 768)
        assert not sample.getexif()
    assert b"secret" not in (tmp_path / "out/sample.jpg").read_bytes()
    assert hub.requests == []


def test_a_dry_run_writes_what_would_be_uploaded_and_needs_neither_hub_nor_token(
    hub: HubServer, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run")
    assert cli("push", run, REPOSITORY, "--licence", "mit").status == 0
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    done = cli("push", run, REPOSITORY, "--licence", "mit", "--dry-run", tmp_path / "out")
    assert done.status == 0, done.stderr
    assert "nothing was uploaded" in done.stdout
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == {name: data for name, data in hub.repositories[REPOSITORY].files.items() if name[0] != "."}
    assert hub.requests == []
    done = cli("push", run, REPOSITORY, "--dry-run", tmp_path / "out")
    assert done.status == 1
    assert "is not empty" in done.stderr


def test_a_refused_sample_leaves_the_folder_new_for_the_next_try(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    done = cli("push", BUNDLED, REPOSITORY, "--sample", tmp_path / "bad.jpg", "--dry-run", out)
    assert done.status == 1
    assert "bad.jpg" in done.stderr
    assert not out.exists()


def test_a_private_model_is_private_from_the_start(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    run = run_of(tmp_path / "run")
    done = cli("push", run, REPOSITORY, "--private")
    assert done.status == 0, done.stderr
    assert hub.repositories[REPOSITORY].private
    assert "(private)" in done.stdout
    hub.repositories[REPOSITORY].private = False
    done = cli("push", run, REPOSITORY, "--private")
    assert done.status == 1
    assert "exists and is public" in done.stderr
    assert len(hub.repositories[REPOSITORY].commits) == 2


def test_a_second_push_is_a_new_revision_but_a_strangers_files_stay(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    first, second = run_of(tmp_path / "run"), run_of(tmp_path / "again", name="again")
    for run in (first, second):
        assert cli("push", run, REPOSITORY).status == 0
    assert len(hub.repositories[REPOSITORY].commits) == 3
    hub.repository("anna/other", **{"README.md": b"---\nlibrary_name: timm\n---\n", "model.safetensors": b"x"})
    done = cli("push", first, "anna/other")
    assert done.status == 1
    assert "was not written by evitseg" in done.stderr
    assert hub.repositories["anna/other"].files["model.safetensors"] == b"x"
    assert cli("push", first, "anna/other", "--overwrite").status == 0


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"HF_TOKEN": ""}, "uploading needs a token that may write; log in with `hf auth login`"),
        ({"HF_TOKEN": "hf_" + "x" * 34}, "does not accept your token|no repository anna/fields"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids uploading it"),
        ({"HF_ENDPOINT": "http://user:secret@127.0.0.1:9"}, "could not be uploaded to http://127.0.0.1:9"),
    ],
)
def test_an_upload_that_is_not_possible_is_one_sentence(
    environment: dict[str, str],
    sentence: str,
    hub: HubServer,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = cli("push", BUNDLED, REPOSITORY)
    assert done.status == 1
    assert re.search(sentence, done.stderr)
    assert done.stderr.startswith(f"error: {REPOSITORY}: ")
    assert done.stderr.count("\n") == 1
    for secret in ("hf_", "secret"):
        assert secret not in done.stdout + done.stderr


def test_a_token_that_may_only_read_is_one_sentence(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    hub.may_write = False
    done = cli("push", BUNDLED, REPOSITORY)
    assert done.status == 1
    assert "your token may not do this" in done.stderr


@pytest.mark.parametrize(
    ("run", "repository", "options", "status", "sentence"),
    [
        ("b0-camvid", "fields", (), 2, "not owner/name"),
        ("b0-camvid", "../fields", (), 2, "not owner/name"),
        ("b0-camvid", "a/b/c", (), 2, "not owner/name"),
        ("b0-camvid", REPOSITORY, ("--base-model", "x"), 1, "not owner/name"),
        ("b0-camvid", REPOSITORY, ("--licence", ""), 1, "not the name of a licence"),
        ("b0-camvid", REPOSITORY, ("--licence", "a\nb: c"), 1, "not the name of a licence"),
        ("b0-camvid", REPOSITORY, ("--private", "--dry-run", "x"), 2, "has no effect with --dry-run"),
        ("b0-cityscapes", REPOSITORY, (), 1, "not a checkpoint of evitseg"),
        ("missing.safetensors", REPOSITORY, (), 1, "no such file"),
        (".", REPOSITORY, (), 1, "has no best.safetensors"),
    ],
)
def test_what_cannot_be_shared_is_said_before_any_request(
    run: str, repository: str, options: tuple[str, ...], status: int, sentence: str, hub: HubServer, tmp_path: Path,
    cli: Cli, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = cli("push", run, repository, *options)
    assert done.status == status
    assert sentence in done.stderr
    assert hub.requests == []


def test_the_manifest_is_the_only_thing_that_changes(tmp_path: Path, cli: Cli) -> None:
    assert cli("push", BUNDLED, REPOSITORY, "--licence", "mit", "--dry-run", tmp_path / "out").status == 0
    before, after = load_file(BUNDLED), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    manifest: Manifest = read_checkpoint_manifest(tmp_path / "out/model.safetensors")
    assert manifest.training.licence.startswith("mit; Apache-2.0; CamVid")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["library_name"] == "evitseg"
    assert config["manifest"]["labels"]["name"] == "camvid"


def test_a_dry_run_of_a_space_writes_all_that_it_serves(tmp_path: Path, cli: Cli) -> None:
    needs("torch")
    out = tmp_path / "out"
    done = cli("push", BUNDLED, REPOSITORY, "--licence", "mit", "--space", "--dry-run", out, "--json")
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    for folder, key in (("model", "files"), ("space", "space_files")):
        written = {path.relative_to(out / folder).as_posix() for path in (out / folder).rglob("*") if path.is_file()}
        assert set(told[key]) == written
    space = out / "space"
    readme: Any = ModelCard((space / "README.md").read_text())
    card = readme.data.to_dict()
    assert (card["sdk"], card["models"], card["license"]) == ("static", [REPOSITORY], "mit")
    page = space / card["app_file"]
    named = {page.parent / each for each in re.findall(r'(?:src|href)="([^"#:?]+)"', page.read_text())}
    modules = [path for path in space.rglob("*.js") if path.name != "service-worker.js"]
    for path in modules:
        loads = re.findall(r'(?:from |new URL\()"(\./[^"]+)"', path.read_text())
        named |= {path.parent / each for each in loads}
    assert {"app.js", "style.css", "worker.js", "thread.js", "core.js"} <= {path.name for path in named}
    named |= {space / "evitseg" / path.name for path in (PAGE / "library").glob("*.wasm")} | {space / "model.evit"}
    assert [str(path) for path in named if not path.resolve().is_file()] == []


@pytest.mark.parametrize("folder", ["model", "space"])
def test_a_folder_with_other_files_is_refused_before_the_work(folder: str, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "thesis.tex").touch()
    done = cli("push", BUNDLED, REPOSITORY, "--space", "--dry-run", tmp_path)
    assert done.status == 1
    assert done.stderr == f"error: {tmp_path / folder}: is not empty; give a new folder.\n"
    assert [path.name for path in tmp_path.rglob("*")] == [folder, "thesis.tex"]


def test_a_space_runs_the_model_and_links_to_it(hub: HubServer, tmp_path: Path, cli: Cli) -> None:
    needs("torch")
    done = cli("push", BUNDLED, REPOSITORY, "--licence", "mit", "--space", "--json")
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["space"] == f"{hub.url}/spaces/{REPOSITORY}"
    files = hub.repositories[f"spaces/{REPOSITORY}"].files
    assert set(told["space_files"]) == set(files) - {".gitattributes"}
    data = card_in(hub, f"spaces/{REPOSITORY}").data.to_dict()
    assert (data["sdk"], data["app_file"], data["models"], data["license"]) == (
        "static",
        "index.html",
        [REPOSITORY],
        "mit",
    )
    assert (
        data["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    )  # without it, a page gets no threads
    (tmp_path / "page.evit").write_bytes(files["model.evit"])
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    pages, own = evitseg.load(tmp_path / "page.evit", precision="float32"), evitseg.load(precision="float32")
    np.testing.assert_array_equal(pages(image).mask, own(image).mask)
    assert cli("push", BUNDLED, REPOSITORY, "--space").status == 0  # the page of an earlier push is ours to replace
    hub.repository("spaces/anna/other", **{"README.md": b"---\nsdk: gradio\n---\n"})
    done = cli("push", BUNDLED, "anna/other", "--space")
    assert done.status == 1
    assert "the space exists, and its README.md was not written by evitseg" in done.stderr
    assert "anna/other" not in hub.repositories  # neither of the two is written
