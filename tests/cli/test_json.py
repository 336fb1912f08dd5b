"""`predict --json`: one shape for every mode, as docs/reference/json.md says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.optional import needs

Cli = Callable[..., Any]
SMALL = ("--size", "64", "--precision", "float32")
PAGE = Path(__file__).parents[2] / "docs/reference/json.md"

TOP = {
    "model": (str, None), "source": (str, None), "engine": (str, None), "images": list, "videos": list, "failed": list,
    "skipped": list, "counts": dict, "annotations": (dict, None), "error": (str, None),
}  # fmt: skip
IMAGE = {
    "image": str, "mode": str, "mask": str, "size": list, "fractions": dict, "nodata": float, "overlay": (str, None),
    "polygons": (str, None), "context": (str, None), "resumed_bands": int, "verification": (dict, None),
}  # fmt: skip
VIDEO = {
    "video": str, "mode": str, "written": dict, "frames": int, "duration_s": float, "fps": float, "size": list,
    "fractions": dict, "live": bool, "dropped": int, "latency_ms": (float, None), "p90_latency_ms": (float, None),
    "damage": (str, None), "interrupted": bool,
}  # fmt: skip


def check(content: dict[str, Any], shape: dict[str, Any]) -> None:
    """The same keys, and values of the right kind."""
    assert content.keys() == shape.keys()
    for key, kinds in shape.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        value = content[key]
        assert (value is None and None in kinds) or isinstance(value, tuple(k for k in kinds if k)), (key, value)


def checked(text: str) -> dict[str, Any]:
    """The JSON object of predict, if its shape is right."""
    content: dict[str, Any] = json.loads(text)
    check(content, TOP)
    for image in content["images"]:
        check(image, IMAGE)
    for video in content["videos"]:
        check(video, VIDEO)
    for failed in content["failed"]:
        assert failed.keys() == {"input", "error"}
    for skipped in content["skipped"]:
        assert skipped.keys() == {"input", "reason"}
    counts = content["counts"]
    assert counts.keys() == {"images", "videos", "failed", "skipped"}
    assert counts["images"] == len(content["images"])
    assert counts["videos"] == len(content["videos"])
    assert counts["failed"] == len({failed["input"] for failed in content["failed"]})
    assert counts["skipped"] == len(content["skipped"])
    return content


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (192, 256, 3), np.uint8)
    Image.fromarray(pixels).save("a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "mode", "given"),
    [
        ([], "whole", {"overlay"}),
        (["--no-overlay"], "whole", set()),
        (["--exact"], "tiles", {"overlay"}),
        (["--exact", "--no-overlay"], "tiles", set()),
        (["--save-context", "c.npz"], "tiles", {"context", "overlay"}),
        (["--sliding-window", "64"], "sliding_window", {"overlay"}),
    ],
)
def test_an_image_has_the_same_keys_in_every_mode(
    options: list[str], mode: str, given: set[str], here: Path, cli: Cli
) -> None:
    done = cli("predict", "a.png", *SMALL, *options, "--out", "o", "--json")
    assert done.status == 0, done.stderr
    content = checked(done.stdout)
    (image,) = content["images"]
    assert content["model"] == "b0-camvid"
    assert content["engine"].startswith("evitseg core")
    assert image["mode"] == mode
    assert {key for key in ("overlay", "polygons", "context") if image[key]} == given
    assert image["size"] == [192, 256]
    assert sum(image["fractions"].values()) + image["nodata"] == pytest.approx(1)
    for key in {"mask", *given}:
        assert Path(image[key]).is_file()


def test_a_region_and_a_verification(here: Path, cli: Cli) -> None:
    common = ("predict", "a.png", "--precision", "float32", "--json")
    content = checked(cli(*common, "--verify", "--save-context", "c.npz", "--out", "whole.png").stdout)
    assert content["images"][0]["verification"].keys() == {"identical", "different_pixels"}
    content = checked(cli(*common, "--context", "c.npz", "--region", "32,0,64,96", "--out", "part.png").stdout)
    (image,) = content["images"]
    assert (image["mode"], image["size"]) == ("region", [96, 64])
    assert sum(image["fractions"].values()) == pytest.approx(1)


def test_polygons(here: Path, cli: Cli) -> None:
    needs("rasterio")
    content = checked(cli("predict", "a.png", *SMALL, "--polygons", "p.geojson", "--out", "m.png", "--json").stdout)
    assert content["images"][0]["polygons"] == "p.geojson"
    assert Path("p.geojson").is_file()


def test_a_video(here: Path, cli: Cli) -> None:
    needs("av")
    import av

    with av.open("v.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 64
        for level in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    done = cli("predict", "v.mp4", *SMALL, "--json")
    assert done.status == 0, done.stderr
    (video,) = checked(done.stdout)["videos"]
    assert (video["video"], video["mode"], video["frames"]) == ("v.mp4", "video", 5)


def test_errors_and_skipped_files(here: Path, cli: Cli) -> None:
    Path("bad.png").write_bytes(b"no image")
    assert cli("predict", "a.png", *SMALL, "--out", "o").status == 0
    done = cli("predict", "a.png", "bad.png", "none.png", *SMALL, "--skip-existing", "--out", "o", "--json")
    assert done.status == 1
    content = checked(done.stdout)
    assert [failed["input"] for failed in content["failed"]] == ["none.png", "bad.png"] or len(content["failed"]) == 2
    assert [skipped["input"] for skipped in content["skipped"]] == ["a.png"]
    assert content["error"] is None  # of the inputs, not of the run


def test_nothing_matched(here: Path, cli: Cli) -> None:
    done = cli("predict", "*.jpg", "--json")
    assert done.status == 1
    content = checked(done.stdout)
    assert content["model"] is None
    assert content["counts"] == {"images": 0, "videos": 0, "failed": 1, "skipped": 0}


def test_everything_done_before(here: Path, cli: Cli) -> None:
    assert cli("predict", "a.png", *SMALL).status == 0
    content = checked(cli("predict", "a.png", *SMALL, "--skip-existing", "--json").stdout)
    assert content["counts"]["skipped"] == 1


def test_a_model_that_cannot_be_loaded(here: Path, cli: Cli) -> None:
    done = cli("predict", "a.png", "--model", "b9", "--json")
    assert done.status == 1
    assert "'b9'" in checked(done.stdout)["error"]


def test_a_wrong_command_line_prints_no_json(here: Path, cli: Cli) -> None:
    done = cli("predict", "a.png", "--exact", "--duration", "2", "--json")
    assert (done.status, done.stdout) == (2, "")


def test_the_page_about_json_describes_every_key_of_predict() -> None:
    described = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
    assert {*TOP, *IMAGE, *VIDEO, "identical", "different_pixels", "input", "reason"} <= described
