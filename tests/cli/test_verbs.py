from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg import __version__
from evitseg.bundled import bundled_models
from evitseg.runtime.evit_file import write_evit
from tests.optional import needs
from tests.runtime.programs import CONFIGS, manifest, program

Cli = Callable[..., Any]


def evitseg(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a person runs it."""
    command = [sys.executable, "-m", "evitseg", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "100"}
    )


@pytest.fixture(autouse=True)
def _inside_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def street(photograph: NDArray[np.uint8], tmp_path: Path) -> Path:
    Image.fromarray(photograph).save(tmp_path / "street.jpg")
    return tmp_path / "street.jpg"


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_one_image_gives_a_mask_an_overlay_and_fractions(street: Path, tmp_path: Path) -> None:
    run = evitseg("predict", "street.jpg", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert files(tmp_path / "predictions") == ["street_mask.png", "street_overlay.jpg"]
    assert "road" in run.stdout
    assert "%" in run.stdout
    assert "evitseg core" in run.stdout
    assert "predictions/street_mask.png" in run.stdout
    with Image.open(tmp_path / "predictions/street_mask.png") as mask:
        assert mask.size == (480, 270)


def test_json_is_for_programs(street: Path, cli: Cli, tmp_path: Path) -> None:
    run = cli("predict", street, "--json", "--no-overlay", "--out", "o")
    content = json.loads(run.stdout)
    assert content["model"] == "b0-camvid"
    (image,) = content["images"]
    assert image["mask"] == str(Path("o/street_mask.png"))
    assert sum(image["fractions"].values()) == pytest.approx(1)
    assert files(tmp_path / "o") == ["street_mask.png"]


def test_a_folder_keeps_its_shape_and_bad_files_do_not_stop_the_rest(street: Path, cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep" / "er").mkdir(parents=True)
    street.rename(data / "deep" / "er" / "a.jpg")
    Image.new("RGB", (40, 30)).save(data / "b.png")
    (data / "empty.jpg").touch()
    (data / "text.png").write_text("not an image")
    (data / "cut.jpg").write_bytes((data / "deep/er/a.jpg").read_bytes()[:4000])
    (data / "notes.txt").write_text("no image, and not called one")
    run = cli("predict", data, "--out", "o")
    assert run.status == 1
    assert files(tmp_path / "o") == ["b_mask.png", "b_overlay.jpg", "deep/er/a_mask.png", "deep/er/a_overlay.jpg"]
    errors = run.stderr.splitlines()
    assert len(errors) == 4
    for name in ("empty.jpg", "text.png", "cut.jpg"):
        assert sum(name in line for line in errors) == 1
    assert errors[-1] == "error: 3 of the inputs failed; images done: 2."


def test_results_inside_the_folder_are_not_segmented_again(street: Path, cli: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        run = cli("predict", ".", "--out", "predictions")
        assert run.status == 0
        assert files(tmp_path) == ["predictions/street_mask.png", "predictions/street_overlay.jpg", "street.jpg"]


def test_results_may_go_where_the_images_are(street: Path, cli: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        run = cli("predict", ".", "--out", ".")
        assert run.status == 0, run.stderr
        assert files(tmp_path) == ["street.jpg", "street_mask.png", "street_overlay.jpg"]


def test_hidden_files_are_left_alone_and_dangling_links_named(street: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "._street.jpg").write_bytes(b"what another system leaves beside an image")
    assert cli("predict", ".", "--no-overlay").status == 0
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    run = cli("predict", ".", "--no-overlay")
    assert run.status == 1
    assert "gone.jpg: no such file" in run.stderr
    assert "circle.jpg: " in run.stderr
    assert "Traceback" not in run.stderr


def test_a_image_too_long_for_the_network_does_not_stop_the_rest(street: Path, cli: Cli, tmp_path: Path) -> None:
    Image.new("1", (6_000_000, 1)).save(tmp_path / "long.png")
    run = cli("predict", "long.png", street, "--no-overlay")
    assert run.status == 1
    assert "long.png: an image of 6000000×1 pixels" in run.stderr
    assert files(tmp_path / "predictions") == ["street_mask.png"]


def test_a_very_wide_image_gets_its_overlay_as_png(cli: Cli, tmp_path: Path) -> None:
    Image.new("RGB", (70_000, 40)).save(tmp_path / "wide.png")
    run = cli("predict", "wide.png", "--size", "32")
    assert run.status == 0, run.stderr
    assert files(tmp_path / "predictions") == ["wide_mask.png", "wide_overlay.png"]


@pytest.mark.parametrize("name", ["street[old].jpg", "x[b].jpg", "漢字.jpg"])
def test_names_are_shown_as_they_are(name: str, street: Path, cli: Cli, tmp_path: Path) -> None:
    try:
        street.rename(tmp_path / name)
    except OSError as error:
        if error.errno not in (errno.EILSEQ, errno.EINVAL):
            raise
        pytest.skip(f"this file system has no name {name}")
    run = cli("predict", tmp_path / name, "--no-overlay")
    assert run.status == 0, run.stderr
    assert Path(name).name in run.stdout


def test_a_console_that_cannot_show_everything_shows_what_it_can(street: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evitseg", "predict", "street.jpg"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, env=environment)
    assert run.returncode == 0
    assert b"road" in run.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "evitseg", "info"]
        run = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert run.returncode == 1
    assert "No space left" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_same_name_twice_gives_two_results(photograph: NDArray[np.uint8], cli: Cli, tmp_path: Path) -> None:
    for name in ("one/a.jpg", "two/a.jpg", "two/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photograph[:64, :64]).save(tmp_path / name)
    run = cli("predict", "one/a.jpg", "two/a.jpg", "two/a.png", "--no-overlay", "--out", "o")
    assert run.status == 0
    assert len(files(tmp_path / "o")) == 3


def test_a_quoted_pattern_is_understood(street: Path, cli: Cli, tmp_path: Path) -> None:
    run = cli("predict", "*.jpg", "--no-overlay", "--out", "o")
    assert run.status == 0
    assert files(tmp_path / "o") == ["street_mask.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.jpg"], "absent.jpg: no such file"),
        (["empty"], "empty: contains no image or video; supported are JPEG, "),
        (["*.nothing"], "no file matches this pattern"),
        (["street.jpg", "--model", "b0-camvit"], "did you mean 'b0-camvid'"),
        (["street.jpg", "--model", "absent.onnx"], "absent.onnx: no such file"),
        (["street.jpg", "--out", "street.jpg"], "is a file, not a folder"),
        (["street.jpg", "--out", "mask.JPG"], "mask.JPG: masks cannot be written as .jpg"),
        (["street.jpg", "--out", "mask.svs", "--exact"], "mask.svs: masks cannot be written as .svs"),
        (["x" * 300 + ".jpg"], "error: "),
        (["street.jpg", "--engine", "onnxruntime"], "for onnxruntime, export it first"),
        (["street.jpg", "--model", "anna/fields"], "a model on the hub is written hf://anna/fields"),
        (["street.jpg", "--model", "HF:anna/fields"], "a model on the hub is written hf://anna/fields"),
        (["street.jpg", "--model", "https://huggingface.co/anna/fields"], "is written hf://anna/fields"),
        (["street.jpg", "--polygons", "x.shp"], "use the ending .geojson, .gpkg or .parquet"),
    ],
)
def test_what_fails_is_one_sentence_and_status_1(
    arguments: list[str], sentence: str, street: Path, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    run = cli("predict", *arguments)
    assert run.status == 1
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", ""],
        ["predict", "a.jpg", "--size", "big"],
        ["predict", "a.jpg", "--size", "7"],
        ["predict", "a.jpg", "--threads", "0"],
        ["predict", "a.jpg", "--engine", "abacus"],
        ["predict", "a.jpg", "--sise", "64"],
        ["predict", "a.jpg", "--simplify", "nan"],
        ["clean", "--older-than", "inf"],
        ["export", "b0-camvid", "--to", "onnx", "--max-drop", "nan"],
        ["foretell"],
    ],
)
def test_a_wrong_command_line_is_status_2(arguments: list[str], cli: Cli, tmp_path: Path) -> None:
    run = cli(*arguments)
    assert run.status == 2
    assert "Traceback" not in run.stderr


def test_size_changes_what_goes_through_the_network(street: Path, cli: Cli, tmp_path: Path) -> None:
    masks = []
    for size in ("64", "native", "720"):
        run = cli("predict", street, "--size", size, "--no-overlay", "--out", size)
        assert run.status == 0, run.stderr
        with Image.open(tmp_path / size / "street_mask.png") as image:
            masks.append(np.asarray(image))
    assert all(mask.shape == (270, 480) for mask in masks)
    assert (masks[0] != masks[1]).any()
    assert (masks[1] != masks[2]).any()


def test_an_interrupt_leaves_whole_files_only(photograph: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(100):
        Image.fromarray(photograph).save(tmp_path / "data" / f"{i:03}.jpg")
    command = [sys.executable, "-m", "evitseg", "predict", "data", "--out", "o"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("o/*_mask.png")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted; to resume, run the same command with --skip-existing."
    results = list((tmp_path / "o").iterdir())
    assert 0 < len(results) < 200
    assert not [p for p in results if p.name.startswith(".")]
    for path in results:
        with Image.open(path) as image:
            image.load()
    done = {path: path.stat().st_mtime_ns for path in results if path.name.endswith("_mask.png")}
    run = evitseg("predict", "data", "--out", "o", "--size", "64", "--skip-existing", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert f"{len(done)} inputs have results already; skipped." in run.stdout
    assert f"of {100 - len(done)} images to o" in run.stdout
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list((tmp_path / "o").iterdir())) == 200


def test_info_lists_what_there_is(cli: Cli, tmp_path: Path) -> None:
    content = json.loads(cli("info", "--json").stdout)
    assert content["version"] == __version__
    assert content["variants"]["b0"]["parameters"] == 706_691


def test_models_lists_every_name_with_its_cost(cli: Cli) -> None:
    models = {each["name"]: each for each in json.loads(cli("models", "--json").stdout)["models"]}
    assert models["b0-camvid"]["origin"] == "bundled"
    assert models["b0-camvid"]["is_default"] is True
    assert round(models["l2-cityscapes"]["macs_1024x2048"] / 1e9) == 396
    assert "b3-ade20k" in cli("models").stdout


def test_info_says_what_a_model_is(cli: Cli, tmp_path: Path) -> None:
    content = json.loads(cli("info", "b0-camvid", "--json").stdout)
    assert content["variant"] == "b0"
    assert content["classes"][3] == "road"
    assert content["accuracy"][0]["images"] == 233
    assert "sky" in cli("info", "b0-camvid").stdout
    published = json.loads(cli("info", "b3-ade20k", "--json").stdout)
    assert published["classes"] == 150
    run = cli("info", "b9")
    assert run.status == 1
    assert "unknown model 'b9'" in run.stderr
    assert "runs/b9: no such file; a model on the hub is written hf://runs/b9." in cli("info", "runs/b9").stderr
    (tmp_path / "runs").mkdir()
    assert "runs/b9: no such file." in cli("info", "runs/b9").stderr


def test_the_folder_of_a_run_as_a_model_names_its_checkpoint(street: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best.safetensors").touch()
    run = cli("predict", street, "--model", tmp_path / "run")
    assert run.status == 1
    assert f"give {tmp_path / 'run' / 'best.safetensors'}." in run.stderr


@pytest.mark.usefixtures("small_examples")
def test_an_incomplete_exported_model_is_named(street: Path, cli: Cli, tmp_path: Path) -> None:
    network = CONFIGS["mbconv"]
    write_evit(tmp_path / "m.evit", manifest(network), program(network)[:-400])
    (tmp_path / "m.xml").write_text("<net/>")
    run = cli("predict", street, "--model", tmp_path / "m.evit")
    assert run.status == 1
    sentence = (
        "m.evit: damaged or incomplete, or made by another version of evitseg; copy it again, or export it again."
    )
    assert sentence in run.stderr
    run = cli("info", tmp_path / "m.evit")
    assert run.status == 1
    assert sentence in run.stderr
    run = cli("predict", street, "--model", tmp_path / "m.xml", "--engine", "openvino")
    assert run.status == 1


def test_an_average_takes_checkpoints_and_replaces_none(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="averaging needs PyTorch")
    bundled = bundled_models()["b0-camvid"]
    (tmp_path / "run").mkdir()
    mine = Path(shutil.copy(bundled, tmp_path / "run" / "best.safetensors"))
    run = cli("average", mine, "b0-camvid", "--out", mine)
    assert run.status == 1
    assert f"{mine}: is also the input, which would be lost" in run.stderr
    assert mine.read_bytes() == bundled.read_bytes()
    for wrong, sentence in (
        (mine.parent, f"the folder of a run, not a model; give {mine}"),
        ("a.evit", "an exported model"),
    ):
        run = cli("average", mine, wrong, "--out", tmp_path / "out.safetensors")
        assert run.status == 1
        assert sentence in run.stderr
    run = cli("average", mine, "b0-camvid", "--out", tmp_path / "out.safetensors")
    assert run.status == 0, run.stderr


def test_export_to_the_best_format_does_not_replace_its_input(cli: Cli, tmp_path: Path) -> None:
    needs("torch", "onnx")
    own = tmp_path / "a.onnx"
    assert cli("export", "b0-camvid", "--to", "onnx", "--out", own).status == 0
    before = own.read_bytes()
    for out in ([], ["--out", own], ["--out", tmp_path / "a"]):
        run = cli("export", own, "--to", "best", *out)
        assert run.status == 1
        assert f"{own}: is also the input, which would be lost" in run.stderr
    assert own.read_bytes() == before


def test_export_writes_a_verified_exported_model_that_predict_uses(
    b0_checkpoint: Path, street: Path, cli: Cli, tmp_path: Path
) -> None:
    needs("torch", "onnx")
    run = cli("export", b0_checkpoint, "--out", "b0.onnx", "--weights", "float16", "--size", "512")
    assert run.status == 0, run.stderr
    assert "verified on 3 images" in run.stdout
    assert (tmp_path / "b0.onnx").stat().st_size < 1_600_000
    run = cli("predict", street, "--model", "b0.onnx")
    assert run.status == 0, run.stderr
    assert "vegetation" in run.stdout
    content = json.loads(cli("info", "b0.onnx", "--json").stdout)
    assert content["preprocess"]["short_side"] == 512
    assert content["checkpoint_sha256"].startswith("923d6fdd")


def test_export_says_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    needs("torch", "onnx")
    (tmp_path / "a.pt").write_bytes(b"no weights")
    for arguments, sentence in (
        (["a.pt"], "a.pt: "),
        (["absent.pt"], "absent.pt: no such file"),
        (["a.pt", "--labels", "citiscapes"], "did you mean 'cityscapes'"),
        (["m.tflite"], "an exported model; this needs a checkpoint"),
        (
            ["b0-camvid", "--to", "litert"],
            "take images of one size; give it (--size HEIGHTxWIDTH), such as 704x1280",
        ),
    ):
        run = cli("export", *arguments)
        assert run.status == 1, arguments
        assert sentence in run.stderr
        assert "Traceback" not in run.stderr
    assert cli("export", "a.pt", "--to", "tflight").status == 2
    assert files(tmp_path) == ["a.pt"]


@pytest.mark.converters
@pytest.mark.usefixtures("small_examples")
def test_export_for_a_device_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    needs("torch", "onnx", "ncnn", "pnnx")
    run = cli("export", "b0-camvid", "--to", "ncnn", "--size", "96x160", "--fp16")
    assert run.status == 0, run.stderr
    assert "keep next to it: b0-camvid.ncnn.bin, b0-camvid.ncnn.param.json" in run.stdout
    assert files(tmp_path) == ["b0-camvid.ncnn.bin", "b0-camvid.ncnn.param", "b0-camvid.ncnn.param.json"]
    run = cli("predict", "--example", "--model", "b0-camvid.ncnn.param", "--out", "out")
    assert run.status == 0, run.stderr
    assert "road" in run.stdout
    content = json.loads(cli("info", "b0-camvid.ncnn.param", "--json").stdout)
    assert content["preprocess"]["fixed"] == [96, 160]
    assert content["weights"] == "float16"
    for arguments, sentence in (
        (["--size", "100x160"], "96x160 fits"),
        (["--fp16", "--int8", "data"], "--int8"),
        (["--size", "96x", "--to", "ncnn"], "is not HEIGHTxWIDTH"),
    ):
        run = cli("export", "b0-camvid", *arguments)
        assert run.status == 2
        assert sentence in " ".join(run.stderr.replace("│", " ").split())


def test_version(cli: Cli, tmp_path: Path) -> None:
    assert cli("--version").stdout == f"evitseg {__version__}\n"


def test_check_says_what_is_wrong_and_whether_training_would_run(
    photograph: NDArray[np.uint8], cli: Cli, tmp_path: Path
) -> None:
    for i in range(10):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[i:]).save(tmp_path / f"data/images/{i:07}.jpg")
        Image.fromarray(photograph[i:, :, 0] // 100).save(tmp_path / f"data/masks/{i:07}_mask.png")
    (tmp_path / "data/images/0000004.jpg").write_bytes(b"broken")
    run = cli("check", "data", "--sheet", "sheet.png")
    assert run.status == 0, run.stderr
    assert "ready to train; 1 pair will be skipped" in run.stdout
    assert "0000004.jpg: not in a supported image format" in run.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500
    content = json.loads(cli("check", "data", "--json").stdout)
    assert content["splits"]["all"]["usable"] == 9
    assert content["trains"]

    run = cli("check", "data", "--labels", "b.json")
    assert run.status == 1
    (tmp_path / "b.json").write_text('{"name": "b", "classes": [{"name": "x"}, {"name": "y"}]}')
    run = cli("check", "data", "--labels", "b.json")
    assert run.status == 1
    assert "id 2 is not in label space 'b'" in run.stderr
    assert "training would fail" in run.stderr


def test_eval_of_a_model_and_of_its_masks_agree(b0_checkpoint: Path, cli: Cli, tmp_path: Path) -> None:
    camvid = b0_checkpoint.parents[1] / "data/camvid"
    (tmp_path / "few").mkdir()
    for split, folder in (("images", "val"), ("masks", "valannot")):
        (tmp_path / "few" / split).mkdir()
        for path in sorted((camvid / folder).iterdir())[::20]:
            (tmp_path / "few" / split / path.name).write_bytes(path.read_bytes())
    run = cli("eval", "few", "--labels", "camvid", "--json", "--report", "report.html")
    assert run.status == 0, run.stderr
    model = json.loads(run.stdout)
    assert model["images"] == 6
    assert 0.5 < model["miou"] < 1
    assert set(model["iou"]) == {*model["accuracy"]}
    assert model["settings"]["model"] == "b0-camvid"
    assert (tmp_path / "report.html").stat().st_size > 50_000

    assert cli("predict", "few/images", "--no-overlay", "--out", "out").status == 0
    run = cli("eval", "few", "--labels", "camvid", "--masks", "out", "--json", "--workers", "2")
    assert run.status == 0, run.stderr
    assert json.loads(run.stdout)["confusion"] == model["confusion"]

    run = cli("eval", "few", "--labels", "camvid", "--tta", "--json")
    assert run.status == 0, run.stderr
    looked = json.loads(run.stdout)
    assert looked["settings"]["tta"] != "no"
    assert abs(looked["miou"] - model["miou"]) < 0.1
    assert looked["confusion"] != model["confusion"]


def test_eval_refuses_classes_that_are_not_the_models(photograph: NDArray[np.uint8], cli: Cli, tmp_path: Path) -> None:
    for kind, values in (("images", photograph), ("masks", photograph[..., 0] // 100)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "data" / kind / "a.png")
    (tmp_path / "data/classes.txt").write_text("wheat\nmaize\nsoil\n")
    run = cli("eval", "data")
    assert run.status == 1
    assert "the data's classes (data) are not the model's (camvid)" in run.stderr
    assert "use a model with the data's classes" in run.stderr


def test_exactly_in_bands_gives_the_mask_of_the_whole_and_a_region_of_it(
    street: Path, cli: Cli, tmp_path: Path
) -> None:
    common = ("--precision", "float32", "--size", "native")
    assert cli("predict", street, *common, "--no-overlay", "--out", "o").status == 0
    run = cli(
        "predict", street, *common, "--exact", "--memory", "226MiB", "--out", "exact/mask.png", "--verify",
        "--save-context", "street.npz", "--json",
    )  # fmt: skip
    assert run.status == 0, run.stderr
    (image,) = json.loads(run.stdout)["images"]
    assert image["verification"] == {"identical": True, "different_pixels": 0}
    assert sum(image["fractions"].values()) == pytest.approx(1)
    assert files(tmp_path / "exact") == ["mask.png", "mask_overlay.jpg"]
    masks = []
    for name in ("o/street_mask.png", "exact/mask.png"):
        with Image.open(tmp_path / name) as mask:
            masks.append(np.asarray(mask))
    assert (masks[0] != masks[1]).mean() < 1e-4
    region = ("--context", "street.npz", "--region", "100,50,200,120", "--out", "region.png")
    run = cli("predict", street, *common, *region)
    assert run.status == 0, run.stderr
    with Image.open(tmp_path / "region.png") as mask:
        assert (np.asarray(mask) != masks[1][50:170, 100:300]).mean() < 1e-3


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("--memory", "1MiB"), 1, "1 MiB of memory is not enough"),
        (("--memory", "much"), 2, "is not a size in bytes"),
        (("--region", "1,2,3,4"), 2, "given together"),
        (("--context", "street.jpg", "--region", "1,2,3"), 2, "is not X,Y,WIDTH,HEIGHT"),
        (("--context", "street.jpg", "--region", "1,2,3,4"), 1, "not a context file"),
        (("--exact", "--engine", "onnxruntime"), 2, "needs the native engine"),
        (("--context-window", "5"), 1, "give at least 96"),
        (("--exact", "--model", "run.pt"), 1, "give one of these"),
    ],
)
def test_what_cannot_be_done_exactly_is_said(
    arguments: tuple[str, ...], status: int, sentence: str, street: Path, cli: Cli, tmp_path: Path
) -> None:
    if "1MiB" in arguments:
        needs("rasterio")
    run = cli("predict", street, *arguments, "--out", "o")
    assert run.status == status
    assert sentence in " ".join(run.stderr.replace("│", " ").split())
    assert not [name for name in files(tmp_path) if "evitseg-" in name or name.endswith("mask.png")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--int8", "data", "--data", "other"), "--data: cannot be combined with --int8 or --w8a8"),
        (("--w8a8", "data", "--data", "other"), "--data: cannot be combined with --int8 or --w8a8"),
        (("--max-drop", "0.1"), "--max-drop: needs --data, --int8 or --w8a8"),
    ],
)
def test_data_that_an_export_would_not_use_is_refused(options: tuple[str, ...], message: str, cli: Cli) -> None:
    run = cli("export", "b0-camvid", *options)
    assert run.status == 2
    assert message in run.stderr
