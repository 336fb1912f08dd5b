from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg import __version__


def evitseg(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it."""
    command = [sys.executable, "-m", "evitseg", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "100"}
    )


@pytest.fixture
def street(photograph: NDArray[np.uint8], tmp_path: Path) -> Path:
    Image.fromarray(photograph).save(tmp_path / "street.jpg")
    return tmp_path / "street.jpg"


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_one_picture_gives_a_mask_an_overlay_and_fractions(street: Path, tmp_path: Path) -> None:
    run = evitseg("predict", "street.jpg", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert files(tmp_path / "predictions") == ["street_mask.png", "street_overlay.jpg"]
    assert "road" in run.stdout
    assert "%" in run.stdout
    assert "OpenVINO" in run.stdout
    assert "predictions/street_mask.png" in run.stdout
    with Image.open(tmp_path / "predictions/street_mask.png") as mask:
        assert mask.size == (480, 270)


def test_json_is_for_programs(street: Path, tmp_path: Path) -> None:
    run = evitseg("predict", street, "--json", "--no-overlay", "--out", "o", cwd=tmp_path)
    content = json.loads(run.stdout)
    assert content["model"] == "b0-camvid"
    (picture,) = content["pictures"]
    assert picture["mask"] == str(Path("o/street_mask.png"))
    assert sum(picture["fractions"].values()) == pytest.approx(1)
    assert files(tmp_path / "o") == ["street_mask.png"]


def test_a_folder_keeps_its_shape_and_bad_files_do_not_stop_the_rest(street: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep" / "er").mkdir(parents=True)
    street.rename(data / "deep" / "er" / "a.jpg")
    Image.new("RGB", (40, 30)).save(data / "b.png")
    (data / "empty.jpg").touch()
    (data / "text.png").write_text("not a picture")
    (data / "cut.jpg").write_bytes((data / "deep/er/a.jpg").read_bytes()[:4000])
    (data / "notes.txt").write_text("no picture, and not called one")
    run = evitseg("predict", data, "--out", "o", cwd=tmp_path)
    assert run.returncode == 1
    assert files(tmp_path / "o") == ["b_mask.png", "b_overlay.jpg", "deep/er/a_mask.png", "deep/er/a_overlay.jpg"]
    errors = run.stderr.splitlines()
    assert len(errors) == 4
    for name in ("empty.jpg", "text.png", "cut.jpg"):
        assert sum(name in line for line in errors) == 1
    assert errors[-1] == "error: 3 of the inputs could not be done, 2 pictures were."


def test_results_inside_the_folder_are_not_segmented_again(street: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run = evitseg("predict", ".", "--out", "predictions", cwd=tmp_path)
        assert run.returncode == 0
        assert files(tmp_path) == ["predictions/street_mask.png", "predictions/street_overlay.jpg", "street.jpg"]


def test_the_same_name_twice_gives_two_results(photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    for name in ("one/a.jpg", "two/a.jpg", "two/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photograph[:64, :64]).save(tmp_path / name)
    run = evitseg("predict", "one/a.jpg", "two/a.jpg", "two/a.png", "--no-overlay", "--out", "o", cwd=tmp_path)
    assert run.returncode == 0
    assert len(files(tmp_path / "o")) == 3


def test_a_quoted_pattern_is_understood(street: Path, tmp_path: Path) -> None:
    run = evitseg("predict", "*.jpg", "--no-overlay", "--out", "o", cwd=tmp_path)
    assert run.returncode == 0
    assert files(tmp_path / "o") == ["street_mask.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.jpg"], "absent.jpg: no such file"),
        (["empty"], "empty: a folder without pictures"),
        (["*.nothing"], "no file matches this pattern"),
        (["street.jpg", "--model", "b0-camvit"], "did you mean 'b0-camvid'"),
        (["street.jpg", "--model", "absent.onnx"], "absent.onnx: no such file"),
        (["street.jpg", "--out", "street.jpg"], "cannot be written"),
        (["street.jpg", "--engine", "onnxruntime", "--precision", "float16"], "not in float16"),
    ],
)
def test_what_fails_is_one_sentence_and_status_1(
    arguments: list[str], sentence: str, street: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    run = evitseg("predict", *arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "a.jpg", "--size", "big"],
        ["predict", "a.jpg", "--size", "7"],
        ["predict", "a.jpg", "--threads", "0"],
        ["predict", "a.jpg", "--engine", "abacus"],
        ["predict", "a.jpg", "--sise", "64"],
        ["foretell"],
    ],
)
def test_a_wrong_command_line_is_status_2(arguments: list[str], tmp_path: Path) -> None:
    run = evitseg(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


def test_size_changes_what_goes_through_the_network(street: Path, tmp_path: Path) -> None:
    masks = []
    for size in ("64", "native", "720"):
        run = evitseg("predict", street, "--size", size, "--no-overlay", "--out", size, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        with Image.open(tmp_path / size / "street_mask.png") as image:
            masks.append(np.asarray(image))
    assert all(mask.shape == (270, 480) for mask in masks)
    assert (masks[0] != masks[1]).any()
    assert (masks[1] != masks[2]).any()


def test_an_interrupt_leaves_whole_files_only(photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(400):
        Image.fromarray(photograph).save(tmp_path / "data" / f"{i:03}.jpg")
    command = [sys.executable, "-m", "evitseg", "predict", "data", "--out", "o"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("o/*_mask.png")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted."
    results = list((tmp_path / "o").iterdir())
    assert 0 < len(results) < 800
    assert not [p for p in results if p.name.startswith(".")]
    for path in results:
        with Image.open(path) as image:
            image.load()


def test_info_lists_what_there_is(tmp_path: Path) -> None:
    content = json.loads(evitseg("info", "--json", cwd=tmp_path).stdout)
    assert content["version"] == __version__
    assert "b0-camvid" in content["bundled models"]
    assert content["variants"]["b0"]["parameters"] == 706_691
    assert round(content["published models"]["l2-cityscapes"]["MACs at 1024×2048"] / 1e9) == 396
    assert "b3-ade20k" in evitseg("info", cwd=tmp_path).stdout


def test_info_says_what_a_model_is(tmp_path: Path) -> None:
    content = json.loads(evitseg("info", "b0-camvid", "--json", cwd=tmp_path).stdout)
    assert content["variant"] == "b0"
    assert content["classes"][3] == "road"
    assert content["accuracy"][0]["pictures"] == 233
    assert "sky" in evitseg("info", "b0-camvid", cwd=tmp_path).stdout
    published = json.loads(evitseg("info", "b3-ade20k", "--json", cwd=tmp_path).stdout)
    assert published["classes"] == 150
    run = evitseg("info", "b9", cwd=tmp_path)
    assert run.returncode == 1
    assert "unknown model 'b9'" in run.stderr


def test_export_writes_a_verified_artefact_that_predict_uses(b0_checkpoint: Path, street: Path, tmp_path: Path) -> None:
    run = evitseg("export", b0_checkpoint, "--out", "b0.onnx", "--weights", "float16", "--size", "512", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "verified on 3 pictures" in run.stdout
    assert (tmp_path / "b0.onnx").stat().st_size < 1_600_000
    run = evitseg("predict", street, "--model", "b0.onnx", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "vegetation" in run.stdout
    content = json.loads(evitseg("info", "b0.onnx", "--json", cwd=tmp_path).stdout)
    assert content["preprocess"]["short_side"] == 512
    assert content["checkpoint sha256"].startswith("923d6fdd")


def test_export_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no weights")
    for arguments, sentence in (
        (["a.pt"], "a.pt: "),
        (["absent.pt"], "absent.pt: no such file"),
        (["a.pt", "--labels", "citiscapes"], "did you mean 'cityscapes'"),
        (["b0-camvid"], "unknown model"),
    ):
        run = evitseg("export", *arguments, cwd=tmp_path)
        assert run.returncode == 1, arguments
        assert sentence in run.stderr
        assert "Traceback" not in run.stderr
    assert evitseg("export", "a.pt", "--to", "tflight", cwd=tmp_path).returncode == 2
    assert files(tmp_path) == ["a.pt"]


def test_version(tmp_path: Path) -> None:
    assert evitseg("--version", cwd=tmp_path).stdout == f"evitseg {__version__}\n"
