"""Where output goes: --json, --quiet, --verbose, --debug, former option names, standard input and output."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evitseg.cli.output import Output
from evitseg.labels import LabelClass, LabelSpace, numbered
from evitseg.runtime.evit_file import write_evit
from tests.runtime.programs import CONFIGS, manifest, program

SMALL = ("--size", "64", "--precision", "float32")
Cli = Callable[..., Any]


@pytest.fixture
def png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small image, which is also the file a.png of the current folder."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save("a.png")
    return Path("a.png").read_bytes()


def test_an_image_from_standard_input_gives_its_mask_on_standard_output(png: bytes, cli: Cli) -> None:
    assert cli("predict", "a.png", *SMALL, "--out", "m.png", "--no-overlay").status == 0
    done = cli("predict", "-", *SMALL, stdin=png)
    assert done.status == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout_bytes)) as mask, Image.open("m.png") as expected:
        assert np.array_equal(np.asarray(mask), np.asarray(expected))
    assert "standard output" in done.stderr  # the remarks for a person
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "m.png"]


def test_a_name_in_a_model_cannot_write_to_the_terminal(png: bytes, cli: Cli) -> None:
    network = CONFIGS["mbconv"]
    write_evit(Path("m.evit"), replace(manifest(network), name="\x1b]0;own\x07\x9b31m"), program(network))
    done = cli("info", "m.evit")
    assert done.status == 0, done.stderr
    assert r"\x1b]0;own\x07\x9b31m" in done.stdout
    refused = cli("predict", "a.png", "--model", "hf://a/\x1b[31m")
    assert refused.status == 1
    for text in (done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_out_sends_the_results_of_standard_input_to_files(png: bytes, cli: Cli) -> None:
    done = cli("predict", "-", *SMALL, "--out", "o", "--json", stdin=png)
    (image,) = json.loads(done.stdout)["images"]
    assert image["image"] == "-"
    assert Path(image["mask"]).is_file()
    assert Path(image["overlay"]).is_file()


def test_a_file_can_go_to_standard_output(png: bytes, cli: Cli) -> None:
    done = cli("predict", "a.png", *SMALL, "--out", "-")
    assert done.status == 0, done.stderr
    assert done.stdout_bytes.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("stdin", "arguments", "status", "word"),
    [
        (b"", [], 1, "standard input is empty"),
        (b"no image", [], 1, "-: "),
        (b"x", ["a.png"], 2, "one image"),
        (b"x", ["--json"], 2, "--json"),
        (b"x", ["--overlay"], 2, "--overlay"),
    ],
)
def test_standard_input_that_cannot_be_segmented_is_an_error(
    stdin: bytes, arguments: list[str], status: int, word: str, png: bytes, cli: Cli
) -> None:
    done = cli("predict", "-", *arguments, stdin=stdin)
    assert done.status == status
    assert word in done.stderr
    assert "evitseg-" not in done.stderr  # the temporary folder
    assert done.stdout_bytes == b""


@pytest.mark.parametrize(("stream", "word"), [("stdin", "standard input is a terminal"), ("stdout", "to the terminal")])
def test_a_terminal_is_refused_where_bytes_would_flow(
    stream: str, word: str, png: bytes, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click import testing

    kind: Any = testing._NamedTextIOWrapper
    monkeypatch.setattr(kind, "isatty", lambda self: self.name == f"<{stream}>", raising=False)
    done = cli("predict", "-", *SMALL, stdin=png)
    assert done.status == 2
    assert word in done.stderr


def test_the_table_of_classes_is_the_same_with_colours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = LabelSpace("two", (LabelClass("道路", (0,), (200, 0, 0)), LabelClass("sidewalk", (1,), (0, 200, 0))))
    Output().fractions("a.png", {"sidewalk": 0.75, "道路": 0.25}, labels)
    plain = capsys.readouterr().out
    assert plain.splitlines() == [
        "a.png",
        " class     pixels",
        " sidewalk   75.0%  " + 30 * "█",
        " 道路       25.0%  " + 10 * "█",
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    Output().fractions("a.png", {"sidewalk": 0.75, "道路": 0.25}, labels)
    coloured = capsys.readouterr().out
    assert f"\x1b[38;2;200;0;0m{10 * '█'}\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


@pytest.mark.parametrize(
    ("fractions", "nodata", "shown"),
    [
        ([1 / 3, 1 / 3, 1 / 3], 0.0, ["33.4", "33.3", "33.3"]),
        ([1 / 6, 1 / 6, 1 / 6], 0.5, ["16.7", "16.7", "16.6", "50.0"]),
        ([0.9996, 0.0004], 0.0, ["100.0", "0.0"]),
        ([], 1.0, ["100.0"]),
    ],
)
def test_the_table_of_classes_adds_up_to_all_pixels(
    fractions: list[float], nodata: float, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    labels = numbered(3)
    names = dict(zip(labels.names[: len(fractions)], fractions, strict=True))
    Output().fractions("a.png", names, labels, nodata)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("%")[0].split()[-1] for row in rows] == shown
    assert sum(round(10 * float(each)) for each in shown) == 1000
    assert [row.startswith(" no data ") for row in rows] == [False] * len(names) + [True] * bool(nodata)


def test_quiet_prints_nothing_but_errors(png: bytes, cli: Cli) -> None:
    for arguments in (("-q", "predict", "a.png"), ("predict", "a.png", "--quiet")):
        done = cli(*arguments, *SMALL)
        assert (done.status, done.stdout, done.stderr) == (0, "", "")
    done = cli("predict", "absent.png", "-q")
    assert done.stdout == ""
    assert done.stderr == "error: absent.png: no such file.\n"


def test_quiet_leaves_the_json(png: bytes, cli: Cli) -> None:
    assert json.loads(cli("predict", "a.png", *SMALL, "-q", "--json").stdout)["counts"]["images"] == 1


def test_verbose_logs_decisions_and_leaves_logging_as_it_was(png: bytes, cli: Cli) -> None:
    done = cli("predict", "a.png", *SMALL)
    assert "evitseg." not in done.stderr
    done = cli("predict", "a.png", *SMALL, "-v")
    assert re.search(r"^evitseg\.[\w.]+: .*evitseg core", done.stderr, re.MULTILINE)
    logger = logging.getLogger("evitseg")
    assert not logger.isEnabledFor(logging.INFO)
    assert all(isinstance(handler, logging.NullHandler) for handler in logger.handlers)


@pytest.mark.parametrize("arguments", [("--debug", "predict", "no.png"), ("predict", "no.png", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(arguments: tuple[str, ...], png: bytes, cli: Cli) -> None:
    done = cli(*arguments)
    assert done.status == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: no.png: no such file.\n")
    assert "Traceback" not in cli("predict", "no.png").stderr


def test_a_former_name_of_an_option_works_and_warns_once(png: bytes, cli: Cli) -> None:
    done = cli("predict", "a.png", "--blend", "64", *SMALL, "--json")
    assert done.stderr == "warning: --blend is deprecated and ends in evitseg 0.3; use --sliding-window.\n"
    (image,) = json.loads(done.stdout)["images"]
    assert image["mode"] == "sliding_window"
    done = cli("predict", "a.png", "--blend", "64", "--sliding-window", "64")
    assert done.status == 2
    assert "former name" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "former", "new"),
    [
        (["bench", "--picture", "absent.png", "--size", "64x64", "--rounds", "1"], "--picture", "--image"),
        (["bench", "--turns", "0"], None, "0"),
        (["average", "a.pt", "--shares", "x", "--out", "b.safetensors"], None, "numbers"),
        (["export", "absent.pt", "--pictures", "a.png"], "--pictures", "--images"),
    ],
)
def test_former_names_are_read_like_the_new_ones(
    arguments: list[str], former: str | None, new: str, png: bytes, cli: Cli
) -> None:
    done = cli(*arguments)
    assert done.status in (1, 2)
    if former:
        assert re.search(rf"warning: {former} is deprecated and ends in .*; use {new}\.", done.stderr)
    else:
        assert new in done.stderr


@pytest.mark.parametrize("arguments", [["check", "absent"], ["eval", "absent"], ["info", "absent.onnx"]])
def test_json_is_one_object_also_when_the_verb_fails(arguments: list[str], png: bytes, cli: Cli) -> None:
    done = cli(*arguments, "--json")
    assert done.status == 1
    assert json.loads(done.stdout)["error"] in done.stderr


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps"])
def test_a_device_for_an_engine_that_runs_on_the_cpu_is_an_error(device: str, png: bytes, cli: Cli) -> None:
    done = cli("predict", "a.png", "--engine", "native", "--device", device)
    assert done.status == 1
    assert f"only the torch engine runs on {device}" in done.stderr
    assert cli("predict", "a.png", "--device", "gpu").status == 2
