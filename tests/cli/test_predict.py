"""`evitseg predict`: which options it honours, what it never replaces, what it leaves out, and what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from evitseg.cli import app, inputs, signals
from evitseg.cli.names import name_outputs
from evitseg.cli.outcome import ImageEntry, Outcome
from evitseg.cli.output import Output
from evitseg.cli.request import HONOURED, Mode, method_of
from evitseg.system.authorship import is_ours
from tests.exported import bundled_onnx
from tests.optional import needs
from tests.work_done import lines_run

SMALL = ("--size", "64", "--precision", "float32")
VALUES = {
    "--model": "b0-camvid",
    "--out": "o",
    "--size": "64",
    "--video": "overlay",
    "--duration": "1",
    "--engine": "native",
    "--device": "cpu",
    "--precision": "float32",
    "--threads": "1",
    "--memory": "1GiB",
    "--scratch": "s",
    "--polygons": "p.geojson",
    "--as": "coco",
    "--simplify": "2",
    "--minimum-pixels": "5",
    "--save-context": "c.npz",
    "--context": "c.npz",
    "--region": "0,0,9,9",
    "--context-window": "960",
    "--sliding-window": "64",
    "--ray": "auto",
    "--bands": "1,2,3",
    "--range": "auto",
    "--page": "1",
    "--mask-format": "gray",
}
CHOOSES = {
    Mode.whole: (),
    Mode.bands: ("--exact",),
    Mode.sliding_window: ("--sliding-window", "64"),
    Mode.region: ("--context", "c.npz", "--region", "0,0,9,9"),
    Mode.ray: ("--ray", "auto"),
}
"""Options that choose a mode for images."""


def street(path: Path, size: tuple[int, int] = (96, 64)) -> Path:
    """An image file; the content is of no matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "400"})


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def options() -> set[str]:
    command = app.get_command(click.Context(app, **app.context_settings), "predict")
    assert command is not None
    shown = [
        p for p in command.params if not getattr(p, "hidden", False) and getattr(p, "panel", "General") != "General"
    ]
    names = {name for p in shown for name in (*p.opts, *p.secondary_opts)}
    return {name for name in names if name.startswith("--")}


def test_the_table_of_options_has_every_option_of_predict_and_no_other() -> None:
    assert set(HONOURED) == options()


@pytest.mark.parametrize("mode", CHOOSES, ids=lambda mode: str(mode.value))
@pytest.mark.parametrize("option", sorted(HONOURED))
def test_an_option_that_a_mode_does_not_honour_is_a_usage_error(option: str, mode: Mode, here: Path) -> None:
    street(here / "a.png")
    names = frozenset(name for name in (*CHOOSES[mode], option) if name.startswith("--"))
    if all(method_of("--exact" in names, names) in HONOURED[name] for name in names):
        return  # one mode honours them all; tested where the option is
    given = [option, *([VALUES[option]] if option in VALUES else [])]
    run = predict("a.png", *CHOOSES[mode], *given)
    assert run.exit_code == 2, run.output
    assert "leave" in run.output
    assert files(here) == ["a.png"]


@pytest.mark.parametrize("how", [("--exact",), ("--sliding-window", "64"), ("--ray", "auto")])
def test_a_video_among_images_in_bands_is_a_usage_error_that_names_it(how: tuple[str, ...], here: Path) -> None:
    (here / "clip.mp4").write_bytes(b"video")
    run = predict("clip.mp4", *how)
    assert run.exit_code == 2
    assert "clip.mp4 is a video" in run.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.png", "--out", "o.mp4"), "a.png is an image, whose mask cannot be written as .mp4"),
        (("clip.mp4", "--out", "o.png"), "clip.mp4 is a video, which cannot be written as .png"),
        (("clip.mp4", "--out", "o.mp4", "--video", "mask"), ".mov"),
        (("clip.mp4", "--out", "o.mp4", "--video", "frames"), "give a folder"),
        (("clip.mp4", "--out", "o.mp4", "--video", "mask", "--video", "overlay"), "several files"),
        (("clip.mp4", "--no-overlay", "--video", "overlay"), "--video overlay"),
        (("clip.mp4", "--overlay", "--video", "mask"), "requires --video overlay"),
        (("clip.mp4", "--memory", "1GiB"), "none of the inputs is an image"),
        (("a.png", "b.png", "--out", "m.png"), "give one image"),
        (("a.png", "b.png", "--polygons", "p.geojson"), "give one image"),
        (("a.png", "--model", ""), "is empty"),
        (("a.png", "--memory", "0"), "0 bytes"),
        (("a.png", "--memory", "9" * 5000), "not a size in bytes"),
        (("a.png", "--memory", "1²MiB"), "not a size in bytes"),
        (("a.png", "--size", "9" * 5000), "neither a number"),
        (("a.png", "--size", "6⁴"), "neither a number"),
        (("a.png", "--context", "c", "--region", f"0,0,{'9' * 5000},1"), "not X,Y,WIDTH,HEIGHT"),
        (("a.png", "--context", "c", "--region", "0,0,²,1"), "not X,Y,WIDTH,HEIGHT"),
        (("a.png", "--context", "c", "--region", "0,0,0,1"), "has no pixels"),
        (("clip.mp4", "--duration", "nan"), "nan is not a finite number"),
        (("clip.mp4", "--duration", "inf"), "inf is not a finite number"),
        (("clip.mp4", "--duration", "-1"), "above 0"),
        (("rtsp://[bad",), "not a valid address"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: tuple[str, ...], sentence: str, here: Path) -> None:
    for name in ("a.png", "b.png"):
        street(here / name)
    (here / "clip.mp4").write_bytes(b"video")
    before = files(here)
    run = predict(*arguments)
    assert run.exit_code == 2, run.output
    assert sentence in run.output
    assert "Traceback" not in run.output
    assert files(here) == before


def test_the_name_of_the_mask_changes_nothing_but_the_format(here: Path) -> None:
    needs("rasterio")
    street(here / "a.png", (300, 200))
    assert predict("a.png", *SMALL, "--out", "o").exit_code == 0
    for name in ("m.png", "m2_mask.png", "m.tif"):
        run = predict("a.png", *SMALL, "--out", name)
        assert run.exit_code == 0, run.output
    assert {"m_overlay.jpg", "m2_overlay.jpg"} < set(files(here))
    assert (here / "m.png").read_bytes() == (here / "o/a_mask.png").read_bytes()
    assert (here / "m_overlay.jpg").read_bytes() == (here / "o/a_overlay.jpg").read_bytes()
    with Image.open(here / "m.tif") as tif, Image.open(here / "m.png") as png:
        np.testing.assert_array_equal(np.asarray(tif), np.asarray(png))


def test_another_engine_writes_a_mask_file_too(here: Path) -> None:
    needs("onnxruntime")
    street(here / "a.png")
    run = predict("a.png", *SMALL, "-m", bundled_onnx(), "--engine", "onnxruntime", "--out", "m.png", "--json")
    assert run.exit_code == 0, run.output
    assert "ONNX Runtime" in json.loads(run.stdout)["engine"]


def test_polygons_take_the_ordinary_path_too(here: Path) -> None:
    needs("rasterio")
    street(here / "a.png", (300, 200))
    run = predict("a.png", *SMALL, "--out", "o", "--polygons", "p.geojson", "--json")
    assert run.exit_code == 0, run.output
    (told,) = json.loads(run.stdout)["images"]
    assert told["polygons"] == "p.geojson"
    pixels = sum(f["properties"]["pixels"] for f in json.loads((here / "p.geojson").read_text())["features"])
    assert pixels == 300 * 200
    assert "overlay" in told


def test_gray_masks_have_no_palette(here: Path) -> None:
    street(here / "a.png")
    assert predict("a.png", *SMALL, "--out", "m.png").exit_code == 0
    assert predict("a.png", *SMALL, "--out", "g.png", "--mask-format", "gray").exit_code == 0
    with Image.open(here / "m.png") as palette, Image.open(here / "g.png") as gray:
        assert (palette.mode, gray.mode) == ("P", "L")
        np.testing.assert_array_equal(np.asarray(palette), np.asarray(gray))


# Nothing of the user's is replaced, nothing is left out silently.


@pytest.mark.parametrize("name", ["a_mask.png", "a_overlay.jpg"])
@pytest.mark.parametrize("how", [(), ("--exact",)])
def test_a_file_that_evitseg_did_not_write_is_not_replaced(name: str, how: tuple[str, ...], here: Path) -> None:
    street(here / "a.png")
    if how and name == "a_overlay.jpg":
        return  # of images in tiles there is none
    theirs = street(here / "o" / name, (5, 5)).read_bytes()
    run = predict("a.png", *SMALL, *how, "--out", "o")
    assert run.exit_code == 1
    assert f"o/{name}: exists and was not written by evitseg" in run.output
    assert (here / "o" / name).read_bytes() == theirs
    assert files(here) == ["a.png", f"o/{name}"]
    assert predict("a.png", *SMALL, *how, "--out", "o", "--overwrite").exit_code == 0
    assert is_ours(here / "o" / name)
    assert predict("a.png", *SMALL, *how, "--out", "o").exit_code == 0


def test_an_edited_mask_is_its_editors(here: Path) -> None:
    street(here / "a.png")
    assert predict("a.png", *SMALL, "--out", "o").exit_code == 0
    with Image.open(here / "o/a_mask.png") as mask:
        mask.load()
        edited = mask.copy()
    edited.info.clear()
    edited.save(here / "o/a_mask.png")
    assert predict("a.png", *SMALL, "--out", "o").exit_code == 1


def test_the_input_itself_is_never_replaced(here: Path) -> None:
    content = street(here / "a.png").read_bytes()
    run = predict("a.png", *SMALL, "--out", "a.png", "--overwrite")
    assert run.exit_code == 1
    assert "is the input itself" in run.output
    assert (here / "a.png").read_bytes() == content


def test_a_world_file_of_others_is_not_replaced(here: Path) -> None:
    needs("rasterio")  # which writes .aux.xml
    street(here / "a.png")
    (here / "a.pgw").write_text("1\n0\n0\n-1\n10\n20\n")
    (here / "o").mkdir()
    (here / "o/a_mask.pgw").write_text("theirs")
    run = predict("a.png", *SMALL, "--out", "o")
    assert run.exit_code == 1
    assert "o/a_mask.pgw: would georeference a_mask.png" in run.output
    assert files(here / "o") == ["a_mask.pgw"]
    assert predict("a.png", *SMALL, "--no-overlay", "--out", "o", "--overwrite").exit_code == 0
    assert predict("a.png", *SMALL, "--no-overlay", "--out", "o").exit_code == 0  # now they are ours
    assert files(here / "o") == ["a_mask.pgw", "a_mask.png", "a_mask.png.aux.xml"]


def test_a_photograph_called_mask_is_segmented_and_a_truth_mask_is_kept(here: Path) -> None:
    street(here / "data/surgical_mask.png")
    street(here / "data/s1.png")
    run = predict("data", *SMALL, "--no-overlay", "--out", "o")
    assert run.exit_code == 0, run.output
    assert files(here / "o") == ["s1_mask.png", "surgical_mask_mask.png"]
    truth = street(here / "data/s1_mask.png", (7, 7)).read_bytes()
    run = predict("data", *SMALL, "--no-overlay", "--out", "data", "--json")
    assert run.exit_code == 1
    assert (here / "data/s1_mask.png").read_bytes() == truth
    told = json.loads(run.stdout)
    assert [Path(each["input"]).name for each in told["failed"]] == ["s1.png"]
    assert [Path(each["image"]).name for each in told["images"]] == ["s1_mask.png", "surgical_mask.png"]


@pytest.mark.parametrize("out", ["data", "data/results", "o"])
def test_results_are_left_out_and_counted_wherever_they_lie(out: str, here: Path) -> None:
    street(here / "data/a.png")
    street(here / "data/b.jpg")
    assert predict("data", *SMALL, "--out", out).exit_code == 0
    before = files(here)
    run = predict("data", *SMALL, "--out", out)
    assert run.exit_code == 0
    assert files(here) == before
    assert ("4 files are skipped: evitseg wrote them." in run.output) == (out != "o")


def test_a_mask_that_is_given_by_name_is_segmented_with_a_note(here: Path) -> None:
    street(here / "a.png")
    assert predict("a.png", *SMALL).exit_code == 0
    run = predict("predictions/a_mask.png", *SMALL)
    assert run.exit_code == 0
    assert "predictions/a_mask.png: evitseg wrote this file; it is segmented like a photograph." in run.output


def test_other_formats_pipes_and_sockets_in_a_folder_are_counted(here: Path) -> None:
    street(here / "f/a.png")
    (here / "f/b.psd").write_bytes(b"8BPS")
    (here / "f/c.dcm").write_bytes(b"DICM")
    (here / "f/notes.txt").write_text("not an image, and not called one")
    os.mkfifo(here / "f/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("f/socket.jpg")
        run = predict("f", *SMALL, "--no-overlay", "--out", "o", "--json")
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert {(Path(each["input"]).name, each["reason"]) for each in told["skipped"]} == {
        ("b.psd", ".psd is not read"),
        ("c.dcm", ".dcm is not read"),
        ("pipe.png", inputs.NOT_REGULAR),
        ("socket.jpg", inputs.NOT_REGULAR),
    }
    assert len(told["images"]) == 1


def test_linked_folders_are_followed_once_and_hidden_ones_never(here: Path) -> None:
    street(here / "elsewhere/x.png")
    street(here / "f/a/y.png")
    street(here / "f/.cache/z.png")
    (here / "f/link").symlink_to(here / "elsewhere")
    (here / "f/loop").symlink_to(here / "f")
    (here / "elsewhere/back").symlink_to(here / "f/a")
    (here / "f/0first").symlink_to(here / "f/a")
    run = predict("f", *SMALL, "--no-overlay", "--out", "o")
    assert run.exit_code == 0, run.output
    assert files(here / "o") == ["a/y_mask.png", "link/x_mask.png"]


def test_a_folder_that_is_a_link_is_a_folder(here: Path) -> None:
    street(here / "photos/a.png")
    (here / "f").mkdir()
    (here / "f/a").symlink_to(here / "photos")
    assert predict("f", *SMALL, "--no-overlay", "--out", "o").exit_code == 0
    assert files(here / "o") == ["a/a_mask.png"]


def test_a_folder_that_cannot_be_read_is_said_and_the_others_are_done(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    street(here / "f/a.png")
    street(here / "f/closed/b.png")
    real = os.scandir

    def scandir(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    stat_ = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if Path(str(path)).parent.name == "closed":  # nothing in it may be looked at either
            raise PermissionError(13, "Permission denied", str(path))
        return stat_(path, *arguments, **options)

    monkeypatch.setattr("os.stat", stat)
    run = predict("f", *SMALL, "--no-overlay", "--out", "o")
    assert run.exit_code == 1
    assert "f/closed: the folder cannot be read (Permission denied)." in run.output
    assert files(here / "o") == ["a_mask.png"]


def test_a_pattern_takes_a_file_once_whatever_links_lead_to_it(here: Path) -> None:
    street(here / "f/a.png")
    (here / "f/loop").symlink_to(here / "f")
    run = predict("f/**/*.png", *SMALL, "--no-overlay", "--out", "o")
    assert run.exit_code == 0, run.output
    assert files(here / "o") == ["a_mask.png"]


@pytest.mark.parametrize("how", [(), ("--exact",)])
def test_names_that_differ_in_case_and_ending_get_results_of_their_own(how: tuple[str, ...], here: Path) -> None:
    street(here / "a/x.png")
    street(here / "b/X.PNG")
    street(here / "b/x.jpg")
    run = predict("a/x.png", "b/X.PNG", "b/x.jpg", *SMALL, *how, "--no-overlay", "--out", "o")
    assert run.exit_code == 0, run.output
    names = [name.casefold() for name in files(here / "o")]
    assert len(names) == len(set(names)) == 3


def test_existing_results_are_skipped_in_every_mode(here: Path) -> None:
    street(here / "a.png")
    for how in ((), ("--exact",), ("--sliding-window", "64")):
        out = f"o{len(how)}"
        assert predict("a.png", *SMALL, *how, "--out", out).exit_code == 0
        before = {p: p.stat().st_mtime_ns for p in (here / out).iterdir()}
        run = predict("a.png", *SMALL, *how, "--out", out, "--skip-existing")
        assert run.exit_code == 0
        assert "1 input has results already" in run.output
        assert {p: p.stat().st_mtime_ns for p in (here / out).iterdir()} == before


def test_a_name_that_leaves_no_room_for_a_results_name_does_not_stop_the_others(here: Path) -> None:
    street(here / "f/a.png")
    street(here / "f" / f"{'x' * 250}.png")
    for more in ((), ("--skip-existing",)):
        run = predict("f", *SMALL, "--no-overlay", "--out", "o", "--json", *more)
        assert run.exit_code == 1
        (failed,) = json.loads(run.stdout)["failed"]
        assert failed["input"].startswith("f/xxx")
        assert "File name too long" in failed["error"]
        assert files(here / "o") == ["a_mask.png"]
    assert predict(f"f/{'x' * 250}.png", *SMALL, "--no-overlay", "--out", "short.png").exit_code == 0
    assert is_ours(here / "short.png")


def test_links_in_a_circle_are_not_called_damaged(here: Path) -> None:
    (here / "a.jpg").symlink_to("b.jpg")
    (here / "b.jpg").symlink_to("a.jpg")
    run = predict("a.jpg", *SMALL)
    assert run.exit_code == 1
    assert re.search(r"error: a.jpg: cannot be read \(Too many (levels of )?symbolic links", run.output)


def test_a_resumed_folder_runs_in_as_many_streams_as_a_whole_one(here: Path) -> None:
    # Threads per stream change the last bits of float32 logits, and so, rarely, a pixel of a mask.
    for name in ("a.png", "b.png"):
        street(here / "f" / name)
    run = predict("f", *SMALL, "--threads", 2, "--out", "o", "--json")
    assert "2 threads in 2 streams" in (whole := json.loads(run.stdout)["engine"])
    (here / "o" / "b_mask.png").unlink()
    run = predict("f", *SMALL, "--threads", 2, "--out", "o", "--json", "--skip-existing")
    assert json.loads(run.stdout)["engine"] == whole


@pytest.mark.parametrize("how", [(), ("--exact",), ("--sliding-window", "64")])
def test_a_name_that_is_no_utf_8_does_not_stop_the_others(how: tuple[str, ...], here: Path) -> None:
    street(here / "good.png")
    strange = os.fsencode(here) + b"/b\xff\xfe.png"
    with open(strange, "wb") as file:
        file.write((here / "good.png").read_bytes())
    (here / "good.png").rename(here / "z.png")
    run = predict(".", *SMALL, *how, "--no-overlay", "--out", "o")
    assert "Traceback" not in run.output
    assert (here / "o/z_mask.png").exists()


@pytest.mark.parametrize("how", [(), ("--exact",)])
def test_a_bug_in_one_image_is_a_sentence_and_the_others_are_done(
    how: tuple[str, ...], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    street(here / "f/a.png")
    street(here / "f/b.png")
    import evitseg.image as image
    import evitseg.raster.whole as whole

    real = whole.read_whole

    def broken(source: object, *rest: object, **more: object) -> object:
        if str(source).endswith("a.png"):
            raise ZeroDivisionError("EXIF")
        return real(source, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(whole, "read_whole", broken)
    assert image is not None
    run = predict("f", *SMALL, *how, "--no-overlay", "--out", "o")
    assert run.exit_code == 1
    assert "f/a.png: unexpected error (ZeroDivisionError: EXIF)" in run.output
    assert "Traceback" not in run.output
    assert files(here / "o") == ["b_mask.png"]


def test_an_input_that_cannot_be_read_is_named_not_the_output(here: Path) -> None:
    run = predict("x" * 300 + ".jpg")
    assert run.exit_code == 1
    assert "xxx" in run.output
    assert "cannot be written" not in run.output


def test_failures_name_every_input_in_json(here: Path) -> None:
    (here / "bad.jpg").write_bytes(b"\xff\xd8\xff not a JPEG")
    street(here / "a.png")
    run = predict("bad.jpg", "absent.png", "a.png", *SMALL, "--json")
    told = json.loads(run.stdout)
    assert run.exit_code == 1
    assert [each["input"] for each in told["failed"]] == ["bad.jpg", "absent.png"]
    assert len(told["images"]) == 1


def test_the_summary_counts_an_image_that_was_done_in_part_once(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(Output())
    outcome.fail("a.tif", "a.tif: damaged")
    outcome.image(ImageEntry("a.tif", "tiles", "a_mask.tif", (4, 4)))
    with pytest.raises(click.exceptions.Exit):
        outcome.finish()
    assert "of the inputs failed" not in capsys.readouterr().err


# Interrupts.


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "evitseg", *map(str, arguments)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_folder_with_a_sentence_and_leaves_nothing_hidden(
    number: signal.Signals, status: int, here: Path
) -> None:
    for i in range(60):
        street(here / f"f/{i}.png", (640, 480))
    process = subprocess.Popen(
        command("predict", "f", "--out", "o"), cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not list(here.glob("o/*_mask.png")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.strip() == "interrupted; to resume, run the same command with --skip-existing."
    assert not [name for name in files(here) if "/." in name]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_an_interrupt_in_the_first_moments_is_a_sentence(here: Path) -> None:
    script = (
        "import os, signal, sys, builtins\n"
        "real = builtins.__import__\n"
        "def late(name, *rest):\n"
        "    if name == 'evitseg.cli' and not done:\n"
        "        done.append(1)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest)\n"
        "done = []\n"
        "from evitseg.__main__ import main\n"
        "builtins.__import__ = late\n"
        "sys.argv = ['evitseg', 'info']\n"
        "main()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 130
    assert run.stderr == "interrupted.\n"


def test_a_second_interrupt_ends_at_once_and_two_in_one_moment_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[int]()
    monkeypatch.setattr("os._exit", ended.append)
    with pytest.raises(KeyboardInterrupt), signals.as_interrupts():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            assert ended == []
            monkeypatch.setattr(signals, "_PAUSE_S", -1.0)
            signal.raise_signal(signal.SIGINT)
            assert ended == [143]
    assert signals.received() == signal.SIGTERM


def test_handlers_are_what_they_were_after_a_verb(here: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    street(here / "a.png")
    assert predict("a.png", *SMALL).exit_code == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_debug_shows_the_traceback(here: Path) -> None:
    run = CliRunner().invoke(app, ["--debug", "predict", "absent.png"])
    assert run.exit_code == 1
    assert re.search(r"Traceback .*no such file", run.output, re.DOTALL)
    run = CliRunner().invoke(app, ["predict", "absent.png"])
    assert "Traceback" not in run.output


def test_naming_thousands_of_files_of_one_name_takes_work_in_proportion_to_them() -> None:
    found: list[tuple[Path | str, Path]] = [(Path(f"{i}/a.jpg"), Path("a.jpg")) for i in range(2000)]
    stems = [stem.name for _, stem in name_outputs(found, Path("o"))]
    assert stems[:3] == ["a_jpg", "a_jpg_2", "a_jpg_3"]
    assert len(set(stems)) == 2000
    few, many = (lines_run(name_outputs, found[:count], Path("o")) for count in (200, 2000))
    assert many < 11 * few  # trying every number for every file runs a hundred times as many lines


def test_what_is_told_of_a_folder_counts_an_image_that_was_done_in_part_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = Outcome(Output())
    outcome.fail("a.tif", "a.tif: one tile is damaged.")
    for name in ("a.tif", "b.tif"):
        outcome.image(ImageEntry(name, "tiles", f"{name}.png", (4, 4)))
    with pytest.raises(click.exceptions.Exit):
        outcome.finish()
    assert "1 of the inputs failed; images done: 2." in capsys.readouterr().err


def test_no_result_takes_the_place_of_an_input_or_of_another_result(here: Path) -> None:
    content = street(here / "z/x_mask.png").read_bytes()
    street(here / "z/x.png")
    run = predict("z", *SMALL, "--no-overlay", "--out", "z", "--overwrite")
    assert run.exit_code == 1
    assert "z/x_mask.png: is an input, and the name of the result of z/x.png" in run.output
    assert (here / "z/x_mask.png").read_bytes() == content
    run = predict("z/x.png", "--exact", "--no-overlay", "--out", "x.tif", "--save-context", "x.tif")
    assert run.exit_code == 1
    assert "x.tif: would be written for two options" in run.output
    assert not (here / "x.tif").exists()
    run = predict("z/x.png", *SMALL, "--out", "o", "--skip-existing", "--verify")
    assert run.exit_code == 2


def test_polygons_that_are_missing_are_made_up_for(here: Path) -> None:
    needs("rasterio")
    street(here / "a.png")
    assert predict("a.png", *SMALL, "--out", "o").exit_code == 0
    assert predict("a.png", *SMALL, "--out", "o", "--polygons", "a.geojson", "--skip-existing").exit_code == 0
    assert (here / "a.geojson").is_file()


def test_a_mask_without_a_georeference_loses_that_of_the_mask_before(here: Path) -> None:
    needs("rasterio")
    street(here / "a/t.png")
    street(here / "b/t.png")
    (here / "a/t.pgw").write_text("1\n0\n0\n-1\n10\n20\n")
    assert predict("a/t.png", *SMALL, "--no-overlay", "--out", "o").exit_code == 0
    assert files(here / "o") == ["t_mask.pgw", "t_mask.png", "t_mask.png.aux.xml"]
    assert predict("b/t.png", *SMALL, "--no-overlay", "--out", "o").exit_code == 0
    assert files(here / "o") == ["t_mask.png"]


@pytest.mark.parametrize("size", [(1, 90), (1, 1), (70, 1)])
def test_images_of_a_few_pixels_are_the_same_in_bands(size: tuple[int, int], here: Path) -> None:
    street(here / "a.png", size)
    run = predict("a.png", "--exact", "--precision", "float32", "--verify", "--no-overlay", "--out", "o")
    assert run.exit_code == 0, run.output
    assert "identical" in run.output
    run = predict("a.png", "--sliding-window", "64", "--precision", "float32", "--size", "256", "--out", "w")
    assert run.exit_code == 0, run.output
