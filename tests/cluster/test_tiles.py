from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from tests.optional import needs

needs("psutil", "ray")

import psutil

import evitseg
from evitseg import cluster
from evitseg.bundled import EXAMPLE_IMAGE, bundled_models
from evitseg.cli import app
from evitseg.cluster import session, tiles
from evitseg.errors import ConfigError, DatasetError, EngineError, ImageError, MissingPackageError
from evitseg.raster import ArraySink, ArraySource, Source, open_raster
from evitseg.runtime.segmenter import Segmenter
from evitseg.tiling.network import Network
from evitseg.tiling.progress import BandProgress
from evitseg.tiling.stream import LargeImageResult, segment_large
from tests.cli.test_json import checked

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BUNDLED = bundled_models()["b0-camvid"]
BAND = 128
TILE = 96


def children() -> list[psutil.Process]:
    """Processes below this one; multiprocessing's own, which other tests start, stay until the end."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "multiprocessing" not in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module", autouse=True)
def two_workers() -> Iterator[None]:
    """A real cluster of two workers, and nothing left of it afterwards."""
    before = children()
    with cluster.connected("local", workers=2):
        import ray

        started = [process for process in children() if process not in before]
        nodes: list[dict[str, str]] = ray.nodes()  # type: ignore[no-untyped-call]
        sockets = Path(nodes[0]["ObjectStoreSocketName"].removeprefix("unix://"))
        folder = next(parent for parent in sockets.parents if parent.name.startswith("evitseg-"))
        assert len(started) >= 2
        yield
        started += [process for process in children() if process not in before]
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert not folder.exists()


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(BUNDLED, "float32")


@pytest.fixture(scope="module")
def street(photograph: NDArray[np.uint8]) -> ArraySource:
    """An image whose sides are no multiples of 32, with a corner that has no data."""
    image = np.tile(np.asarray(Image.fromarray(photograph).resize((515, 397))), (2, 1, 1))
    valid = np.ones(image.shape[:2], np.bool_)
    valid[:100, :150] = False
    return ArraySource(image, valid)


def alone(
    source: Source, network: Network, folder: Path, context: int | None = None
) -> tuple[NDArray[np.integer], LargeImageResult]:
    sink = ArraySink(source.size)
    streamed = segment_large(
        network, source, sink, scratch=folder, context_window=context, band=BAND if context is None else None
    )
    return sink.mask, streamed


def assert_same(found: LargeImageResult, expected: LargeImageResult) -> None:
    assert (found.context is None) == (expected.context is None)
    if found.context is not None and expected.context is not None:
        for mine, theirs in zip(found.context.sums, expected.context.sums, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.plan == expected.plan
    assert found.damages == expected.damages


@pytest.mark.parametrize("context", [None, 3 * TILE])
def test_a_cluster_gives_the_mask_and_the_sums_of_one_machine_bit_for_bit(
    street: ArraySource, network: Network, tmp_path: Path, context: int | None
) -> None:
    mask, expected = alone(street, network, tmp_path, context)
    sink, seen = ArraySink(street.size), list[BandProgress]()
    band = BAND if context is None else None
    found = cluster.segment_large_on_ray(
        network, street, sink, context_window=context, band=band, scratch=tmp_path, watch=seen.append
    )
    np.testing.assert_array_equal(sink.mask, mask)
    assert (mask[:100, :150] == 255).all()
    assert_same(found, expected)
    segments = range(len(network.core.segments))
    assert [(p.segment, p.window) for p in seen] == [
        (segment, window + 1) for segment in segments for window in range(len(expected.plan.windows(segment)))
    ]


def test_interrupted_work_is_resumed_on_the_cluster_and_on_one_machine(
    street: ArraySource, network: Network, tmp_path: Path
) -> None:
    mask, expected = alone(street, network, tmp_path)

    def interrupt(progress: BandProgress) -> None:
        if progress.segment == 3:
            raise KeyboardInterrupt

    for on_cluster in (True, False):
        with pytest.raises(KeyboardInterrupt):
            cluster.segment_large_on_ray(
                network, street, ArraySink(street.size), band=BAND, scratch=tmp_path, watch=interrupt
            )
        sink = ArraySink(street.size)
        run = cluster.segment_large_on_ray if on_cluster else segment_large
        found = run(network, street, sink, band=BAND, scratch=tmp_path)
        assert found.resumed >= 3 * len(found.plan.windows(0))
        np.testing.assert_array_equal(sink.mask, mask)
        assert_same(found, expected)
    assert not list(tmp_path.iterdir())


def test_a_damaged_image_on_disk_is_read_by_the_workers_as_by_one_machine(
    street: ArraySource, network: Network, tmp_path: Path
) -> None:
    import rasterio

    path = tmp_path / "street.tif"
    pixels = street.read(0, 0, 384, 512).transpose(2, 0, 1)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 384, "width": 512, "tiled": True}
    transform = rasterio.Affine(2, 0, 0, 0, -2, 0)
    with rasterio.open(
        path,
        "w",
        blockxsize=128,
        blockysize=128,
        compress="deflate",
        interleave="pixel",
        transform=transform,
        **profile,
    ) as file:
        file.write(pixels)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(content)
    with open_raster(path) as source:
        mask, expected = alone(source, network, tmp_path)
        assert expected.damages
        sink = ArraySink(source.size)
        found = cluster.segment_large_on_ray(network, source, sink, path=path, band=BAND, scratch=tmp_path)
        np.testing.assert_array_equal(sink.mask, mask)
        assert_same(found, expected)
        with pytest.raises(ConfigError, match="path"):
            cluster.segment_large_on_ray(network, source, sink, band=BAND)
    other = tmp_path / "other.tif"  # which no worker has open
    other.write_bytes(content)
    with open_raster(other) as source:
        os.utime(other, (1, 1))
        with pytest.raises(ImageError, match="not the same file on the machine"):
            cluster.segment_large_on_ray(network, source, sink, path=other, band=BAND)
        other.unlink()
        with pytest.raises(ImageError, match=r"no such file\. That was on the machine"):
            cluster.segment_large_on_ray(network, source, sink, path=other, band=BAND)


def busy_workers(task: str) -> list[psutil.Process]:
    """Processes of our cluster that are at a task."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if task in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_one(task: str, killed: list[int], done: threading.Event | None = None) -> None:
    """Kill a worker that is at a task as soon as there is one, and note it; give up if done, or after a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not (done and done.is_set()):
        for worker in busy_workers(task)[:1]:
            worker.send_signal(signal.SIGKILL)
            worker.wait(10)
            killed.append(worker.pid)
            return


class Killer:
    """Kills a busy worker after the second window of some segments, while the others go on."""

    def __init__(self, *segments: int) -> None:
        self.segments, self.killed = segments, list[int]()
        self.thread, self.done = threading.Thread(), threading.Event()

    def __call__(self, progress: BandProgress) -> None:
        if progress.segment in self.segments and progress.window == 2:
            self.done.clear()
            self.thread = threading.Thread(target=kill_one, args=("ray::_run_window", self.killed, self.done))
            self.thread.start()
        elif progress.window == progress.windows and self.thread.ident is not None:
            self.done.set()
            self.thread.join()


def test_killed_workers_do_not_lose_the_image(street: ArraySource, network: Network, tmp_path: Path) -> None:
    mask, expected = alone(street, network, tmp_path)
    sink, killer = ArraySink(street.size), Killer(0, 1, 4)
    found = cluster.segment_large_on_ray(network, street, sink, band=BAND, scratch=tmp_path, watch=killer)
    assert killer.killed  # on a busy machine a segment may be done before its worker is found
    np.testing.assert_array_equal(sink.mask, mask)
    assert_same(found, expected)


def test_a_task_that_dies_every_time_is_told_in_a_sentence(
    street: ArraySource, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "RETRIES", 0)
    killer = Killer(0)
    with pytest.raises(EngineError, match="the cluster lost a task"):
        cluster.segment_large_on_ray(network, street, ArraySink(street.size), band=BAND, watch=killer)
    killer.thread.join()
    assert len(killer.killed) == 1


def test_the_process_survives_what_stops_it_between_two_bands(street: ArraySource, network: Network) -> None:
    """Ray 2.60 ends the process where a task that was cancelled answers late; so none is cancelled."""

    class StopError(Exception):
        pass

    def stop(at: int, progress: BandProgress) -> None:
        if progress.segment * progress.windows + progress.window == at:
            raise StopError

    for at in range(1, 21):
        with pytest.raises(StopError):
            cluster.segment_large_on_ray(network, street, ArraySink(street.size), band=BAND, watch=partial(stop, at))


def test_a_task_larger_than_every_machine_is_refused(street: ArraySource, network: Network) -> None:
    with pytest.raises(ConfigError, match="3 threads; the largest has 2"):
        cluster.segment_large_on_ray(network, street, ArraySink(street.size), threads=3)


def test_a_worker_with_another_version_is_refused() -> None:
    sent = replace(session.Model.send(BUNDLED), version="0.0.0")
    with pytest.raises(EngineError, match=r"has evitseg .*, this machine 0\.0\.0"), sent.opened():
        pass


def test_a_missing_package_is_still_named_when_a_worker_misses_it() -> None:
    import ray

    def fail() -> None:
        raise MissingPackageError("an image", "geo")

    with pytest.raises(MissingPackageError, match=r"an image needs .*rasterio.*\[geo\]"), session.translate_errors():
        ray.get(ray.remote(fail).remote())


def test_ray_reports_nothing_to_its_makers() -> None:
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()


def test_a_cluster_that_runs_keeps_its_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out scratch"), cluster.connected(scratch=tmp_path):
        pass
    with pytest.raises(ConfigError, match="leave out the address"), cluster.connected("127.0.0.1:6379"):
        pass
    with cluster.connected():
        pass
    import ray

    assert ray.is_initialized(), "it is left as it was found"


def test_predict_with_ray_writes_what_predict_exact_writes(tmp_path: Path) -> None:
    common = ["predict", str(EXAMPLE_IMAGE), "--precision", "float32", "--memory", "266MiB"]
    one = CliRunner().invoke(app, [*common, "--exact", "--out", str(tmp_path / "one.png")])
    assert one.exit_code == 0, one.output
    context = tmp_path / "context.npz"
    many = CliRunner().invoke(
        app, [*common, "--ray", "auto", "--out", str(tmp_path / "many.png"), "--save-context", str(context), "--json"]
    )
    assert many.exit_code == 0, many.output
    assert (tmp_path / "many.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert context.exists()
    (image,) = checked(many.stdout)["images"]
    assert (image["mode"], image["context"]) == ("ray", str(context))
    assert image["fractions"]["road"] > 0.1


def test_ray_takes_the_jobs_names_and_errors_of_one_machine(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/c/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(EXAMPLE_IMAGE) as image:
            image.resize((96, 64)).save(tmp_path / name)
    (tmp_path / "b/bad.png").write_bytes(b"no image")
    given = ["predict", *(str(tmp_path / name) for name in ("a/x.png", "b", "b/*.none")), "--precision", "float32"]
    told, masks = [], []
    for how, out in (("--exact",), tmp_path / "one"), (("--ray", "auto"), tmp_path / "many"):
        run = CliRunner().invoke(app, [*given, *how, "--out", str(out), "--json"])
        assert run.exit_code == 1, run.output
        content = json.loads(run.stdout)
        told.append([content["failed"], content["skipped"], [Path(p["mask"]).name for p in content["images"]]])
        masks.append({str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.png")})
    assert told[0] == told[1]
    assert masks[0] == masks[1]
    assert sorted(masks[0]) == ["c/y_mask.png", "x_png_2_mask.png", "x_png_mask.png"]
    run = CliRunner().invoke(app, [*given, "--ray", "auto", "--out", str(tmp_path / "many"), "--skip-existing"])
    assert "3 inputs have results already" in run.output
    run = CliRunner().invoke(app, [*given[:2], "--ray", "auto", "--sliding-window", "512"])
    assert run.exit_code == 2


def test_no_cluster_at_an_address_is_told_in_a_sentence(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "evitseg", "predict", "--example", "--ray", "127.0.0.1:1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture(scope="module")
def segment() -> Segmenter:
    return evitseg.load(BUNDLED, precision="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of which some are none."""
    (tmp_path / "in/sub").mkdir(parents=True)
    with Image.open(EXAMPLE_IMAGE) as image:
        for i, name in enumerate(("a.jpg", "a.png", "sub/b.jpg")):
            image.resize((240 + 40 * i, 200)).save(tmp_path / "in" / name)
        image.resize((2048, 1024)).save(tmp_path / "in/large.jpg")  # decoded at a half
    (tmp_path / "in/broken.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:5000])
    (tmp_path / "in/empty.jpg").touch()
    (tmp_path / "in/notes.txt").touch()
    return tmp_path / "in"


def test_a_folder_becomes_mask_files_and_what_is_damaged_stops_nothing(folder: Path, segment: Segmenter) -> None:
    out = folder.parent / "out"
    (out / "sub/b.jpg.png").mkdir(parents=True)  # in the way
    results = cluster.predict_dataset(folder, BUNDLED, precision="float32")
    rows = {row["name"]: row for row in cluster.write_masks(results, out).take_all()}
    assert sorted(rows) == ["a.jpg", "a.png", "broken.png", "empty.jpg", "large.jpg", "sub/b.jpg"]
    for name in ("a.jpg", "a.png", "large.jpg"):
        assert rows[name] == {"path": str(folder / name), "name": name, "error": None}
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}.png")), segment(folder / name).mask)
    assert "truncated or damaged" in rows["broken.png"]["error"]
    assert "an empty file" in rows["empty.jpg"]["error"]
    assert "cannot be written" in rows["sub/b.jpg"]["error"]
    assert sorted(p.name for p in out.rglob("*")) == ["a.jpg.png", "a.png.png", "b.jpg.png", "large.jpg.png", "sub"]


def test_no_image_is_predicted_once_only_to_know_the_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data

    results = cluster.predict_dataset(folder / "sub", BUNDLED)
    monkeypatch.setattr(ray.data.Dataset, "columns", lambda *_, **__: pytest.fail("asked"))
    assert cluster.write_masks(results, folder / "once").count() == 1


def test_parquet_goes_in_and_out(folder: Path, segment: Segmenter) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet
    import ray.data

    names = ["a.jpg", "broken.png", "large.jpg"]
    encoded = [(folder / name).read_bytes() for name in names]
    table = pa.table({"id": [1, 2, 3, 4], "photo": pa.array([*encoded, None], pa.binary())})
    parquet.write_table(table, folder / "photos.parquet")
    photos = ray.data.read_parquet(str(folder / "photos.parquet"))
    results = cluster.predict_dataset(photos, BUNDLED, column="photo", precision="float32")
    results.write_parquet(str(folder / "masks"))
    rows = {row["id"]: row for row in parquet.read_table(folder / "masks").to_pylist()}
    assert sorted(rows) == [1, 2, 3, 4]
    assert set(rows[1]) == {"id", "mask", "error"}
    for number, name in ((1, "a.jpg"), (3, "large.jpg")):
        mask = np.asarray(Image.open(io.BytesIO(rows[number]["mask"])))
        np.testing.assert_array_equal(mask, segment(folder / name).mask)
        assert rows[number]["error"] is None
    assert rows[2]["mask"] is None
    assert "truncated or damaged" in rows[2]["error"]
    assert "expected the bytes" in rows[4]["error"]
    with pytest.raises(DatasetError, match="no column 'bytes', only 'id', 'photo'"):
        cluster.predict_dataset(photos, BUNDLED)
    with pytest.raises(DatasetError, match="to name the files"):
        cluster.write_masks(results, folder / "out")


def test_names_that_lead_out_of_the_folder_are_refused_in_their_rows(folder: Path) -> None:
    import ray.data

    names = ["../evil.jpg", "good/x.jpg", "s3://bucket/y.jpg", "/home/z.jpg", "c:\\d\\w.jpg", "a/../../b", ""]
    results = ray.data.from_items([{"path": name, "mask": b"mask", "error": None} for name in names])
    rows = {row["path"]: row["error"] for row in cluster.write_masks(results, folder / "out").take_all()}
    refused = {name for name, error in rows.items() if error is not None}
    assert refused == {"../evil.jpg", "a/../../b", ""}
    written = sorted(str(p.relative_to(folder)) for p in (folder / "out").rglob("*.png"))
    assert written == ["out/bucket/y.jpg.png", "out/d/w.jpg.png", "out/good/x.jpg.png", "out/home/z.jpg.png"]
    assert not list(folder.parent.glob("evil*"))


def test_uris_and_several_places_are_named_below_what_they_share(folder: Path) -> None:
    results = cluster.predict_dataset([f"file://{folder}/sub", folder / "a.jpg"], BUNDLED)
    rows = sorted((row["name"], row["path"], row["error"]) for row in results.take_all())
    assert rows == [("a.jpg", str(folder / "a.jpg"), None), ("sub/b.jpg", f"file://{folder}/sub/b.jpg", None)]


@pytest.mark.parametrize(
    ("place", "says"),
    [("nothing", "no such file"), ("nowhere://x", "cannot be opened"), ("empty", "contains no images")],
)
def test_a_place_without_images_is_told_at_once(folder: Path, place: str, says: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises((ImageError, ConfigError), match=says):
        cluster.predict_dataset(place if ":" in place else folder / place, BUNDLED)


def test_a_worker_killed_during_many_images_loses_none(folder: Path) -> None:
    images = [folder / "a.jpg"] * 128
    killed = list[int]()
    killer = threading.Thread(target=kill_one, args=("ray::Map", killed))
    killer.start()
    rows = cluster.predict_dataset(images, BUNDLED, precision="float32").take_all()
    killer.join()
    assert len(killed) == 1
    assert len(rows) == 128
    assert all(row["error"] is None and row["mask"] == rows[0]["mask"] for row in rows)
