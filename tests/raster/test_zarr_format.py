"""Zarr arrays as people and attackers write them."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("zarr", "numcodecs")

import numcodecs
import zarr

from evitseg.errors import EvitsegWarning, FileError, ImageError
from evitseg.image import ReadOptions
from evitseg.labels import load_labels
from evitseg.raster import open_mask_writer, open_raster

CAMVID = load_labels("camvid")
SIZE = (70, 90)
GIB = 2**30


def numbers(bands: int = 3, dtype: str = "uint8", top: int | None = None) -> NDArray[Any]:
    highest = np.iinfo(dtype).max if top is None else top
    return np.random.default_rng(0).integers(0, highest, (*SIZE, bands), dtype=dtype, endpoint=True)


def read(path: Path, options: ReadOptions = ReadOptions()) -> NDArray[np.uint8]:  # noqa: B008
    with open_raster(path, options=options) as source:
        whole = source.read(0, 0, *source.size)
        np.testing.assert_array_equal(source.read(11, 17, 40, 50), whole[11:51, 17:67])
        return whole


def ome(path: Path, values: NDArray[Any], omero: object = None, version: Any = 2, **entry: Any) -> Path:
    """An OME-Zarr of (C, Y, X), or of tczyx."""
    axes = [{"name": n, "type": "space"} for n in ("cyx" if values.ndim == 3 else "tczyx")]
    scale = [{"type": "scale", "scale": [1.0] * values.ndim}]
    multiscale = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}], "version": "0.4"}
    about: dict[str, Any] = {"multiscales": [multiscale | entry]} | ({"omero": omero} if omero is not None else {})
    attributes = about if version == 2 else {"ome": about | {"version": "0.5"}}
    group = zarr.create_group(path, zarr_format=version, attributes=attributes)
    group.create_array("0", data=values, chunks=(*(1,) * (values.ndim - 2), 40, 40))
    return path


def channels(names: str, window: dict[str, Any] | None = None, color: str = "FFFFFF") -> dict[str, Any]:
    return {"channels": [{"label": name, "color": color, "window": window or {}} for name in names.split()]}


# What the file says


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("how", ["labels", "colours"])
def test_omero_says_which_band_is_red(how: str, version: int, tmp_path: Path) -> None:
    values = numbers()
    if how == "labels":
        omero = channels("blue green red")
    else:
        omero = channels("a b c")
        for channel, color in zip(omero["channels"], ("0000FF", "00FF00", "#ff0000"), strict=True):
            channel["color"] = color
    path = ome(tmp_path / "a.zarr", np.moveaxis(values, 2, 0), omero, version)
    np.testing.assert_array_equal(read(path), values[..., ::-1])
    np.testing.assert_array_equal(read(path, ReadOptions(bands=(1, 2, 3))), values)
    np.testing.assert_array_equal(read(path, ReadOptions(bands=(2,))), np.repeat(values[..., 1:2], 3, axis=2))
    with pytest.raises(ImageError, match=r"asks for band 4, but the file has 3"):
        read(path, ReadOptions(bands=(4,)))


def test_an_infrared_band_is_left_out_by_name(tmp_path: Path) -> None:
    values = numbers(4)
    path = ome(tmp_path / "a.zarr", np.moveaxis(values, 2, 0), channels("nir blue green red"))
    np.testing.assert_array_equal(read(path), values[..., [3, 2, 1]])
    unnamed = ome(tmp_path / "b.zarr", np.moveaxis(values, 2, 0))
    with pytest.warns(EvitsegWarning, match="bands 1, 2 and 3 of 4"):
        image = read(unnamed)
    np.testing.assert_array_equal(image, values[..., :3])


@pytest.mark.parametrize(
    "window",
    [
        {"min": 0, "max": 4095, "start": 0, "end": 4095},
        {"min": 0, "max": 4095, "start": 90, "end": 2500},
        {"min": 0, "max": 65535, "start": 0, "end": 4095},
        {"start": 0.0, "end": 4095.0},
    ],
)
def test_an_omero_window_of_twelve_bits_gives_the_upper_eight_of_them(window: dict[str, Any], tmp_path: Path) -> None:
    values = numbers(3, "uint16", 4095)
    path = ome(tmp_path / "a.zarr", np.moveaxis(values, 2, 0), channels("red green blue", window))
    np.testing.assert_array_equal(read(path), (values >> 4).astype(np.uint8))


@pytest.mark.parametrize("window", [{"min": 0, "max": 65535, "start": 7, "end": 300}, {"min": "0", "max": None}, {}])
def test_a_window_that_states_no_bits_warns_of_a_dark_image(window: dict[str, Any], tmp_path: Path) -> None:
    values = numbers(3, "uint16", 4095)
    path = ome(tmp_path / "a.zarr", np.moveaxis(values, 2, 0), channels("red green blue", window))
    if window.get("max") == 65535:
        np.testing.assert_array_equal(read(path), (values >> 8).astype(np.uint8))  # all 16 bits, as it says
    else:
        with pytest.warns(EvitsegWarning, match="value is 4095 of 65535"):
            image = read(path)
        np.testing.assert_array_equal(image, (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int64", "float32", "float64", "<i2", ">f4"])
def test_numbers_without_an_agreed_range_need_one(dtype: str, tmp_path: Path) -> None:
    values = np.linspace(-10, 120, SIZE[0] * SIZE[1] * 3).reshape(*SIZE, 3).astype(dtype)
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(32, 32, 3), zarr_format=2)
    with pytest.raises(ImageError, match=r"a\.zarr: .* pixels have no agreed range; choose one with --range"):
        read(tmp_path / "a.zarr")
    expected = np.clip((values.astype(np.float64) - 0) / 100, 0, 1) * 255
    image = read(tmp_path / "a.zarr", ReadOptions(value_range=(0, 100)))
    assert np.abs(image - expected).max() <= 0.5 + 1e-9


def test_a_plane_of_a_stack_is_chosen_by_its_page(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (2, 3, 4, *SIZE), dtype=np.uint8)
    path = ome(tmp_path / "a.zarr", values)
    with pytest.raises(ImageError, match=r"a stack \(2 along t, 4 along z\).*--page 1 to 8"):
        read(path)
    np.testing.assert_array_equal(read(path, ReadOptions(page=6)), np.moveaxis(values[1, :, 1], 0, 2))
    with pytest.raises(ImageError, match="--page 9 does not exist"):
        read(path, ReadOptions(page=9))


@pytest.mark.parametrize(
    ("transformations", "sentence"),
    [
        ([{"type": "scale", "scale": [1, 2]}], r"scale of its OME metadata is \[1, 2\], but it needs 3 numbers"),
        ([{"type": "scale", "scale": [1] * 900}], r"scale of its OME metadata is .*\.\.\., but it needs 3 numbers"),
        ([{"type": "scale", "scale": "abc"}], 'is "abc", but it needs 3'),
        ([{"type": "scale", "scale": [1, None, 2]}], "needs 3 numbers"),
        ([{"type": "scale"}], "is null, but it needs 3"),
        ([{"type": "scale", "scale": [1, 1, 1]}, {"type": "translation", "translation": {}}], "translation of its OME"),
        ({"type": "scale"}, "not a list of objects"),
        ([7], "not a list of objects"),
        ("scale", "not a list of objects"),
    ],
)
def test_damaged_ome_metadata_are_one_sentence(transformations: object, sentence: str, tmp_path: Path) -> None:
    datasets = [{"path": "0", "coordinateTransformations": transformations}]
    path = ome(tmp_path / "a.zarr", np.moveaxis(numbers(), 2, 0), datasets=datasets)
    with pytest.raises(ImageError, match=sentence) as error:
        read(path)
    assert "a.zarr: " in str(error.value)
    assert len(str(error.value)) < 400


def test_thousands_of_levels_give_no_more_than_the_size_has(tmp_path: Path) -> None:
    datasets = [{"path": "0"}] * 5000
    path = ome(tmp_path / "a.zarr", np.moveaxis(numbers(), 2, 0), datasets=datasets)
    with open_raster(path) as source, open_mask_writer(tmp_path / "m.zarr", source, CAMVID):
        pass
    levels = sorted(int(p.name) for p in (tmp_path / "m.zarr").iterdir() if p.is_dir())
    assert levels == list(range(7))  # 90 pixels are 1 after six halvings


# Hostile files


@pytest.fixture
def little_memory() -> Iterator[None]:
    """1 GiB beyond what the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def deflated_zeros(size: int) -> bytes:
    """A raw deflate stream without an end, of one piece again and again."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = compressor.compress(bytes(2**22)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return piece * (size // 2**22)


def zstd_of_zeros(size: int) -> bytes:
    """A frame that does not state its size, of blocks that repeat a byte."""
    blocks = size // 2**17
    body = b"".join(struct.pack("<I", (2**17 << 3) | (1 << 1) | (i == blocks - 1))[:3] + b"\0" for i in range(blocks))
    return struct.pack("<IBB", 0xFD2FB528, 0, 0x38) + body


def bomb(codec: str) -> bytes:
    """A small chunk that inflates to 2 GiB."""
    size = 2 * GIB
    if codec in ("gzip", "zlib"):
        head = gzip.compress(b"")[:10] if codec == "gzip" else zlib.compress(b"", 9)[:2]
        return head + deflated_zeros(size)
    if codec == "gzip of parts":
        return gzip.compress(bytes(2**24)) * 128
    if codec == "bz2":
        return bz2.compress(bytes(2**26), 9) * 32
    if codec == "zstd":
        return zstd_of_zeros(size)
    if codec == "blosc":
        return struct.pack("<BBBBIII", 2, 1, 0x21, 1, 2**31 - 32, 2**20, 40) + bytes(24)
    return struct.pack("<I", 2**31 - 1) + bytes(30)


CODECS: dict[str, Any] = {
    "gzip": {"id": "gzip", "level": 1}, "gzip of parts": {"id": "gzip", "level": 1}, "zlib": {"id": "zlib", "level": 1},
    "bz2": {"id": "bz2", "level": 1}, "zstd": {"id": "zstd", "level": 1}, "lz4": {"id": "lz4", "acceleration": 1},
    "blosc": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
}  # fmt: skip


def version_2(path: Path, chunk: bytes, **about: Any) -> Path:
    """Two chunks side by side, the second one good if there is no compressor."""
    path.mkdir()
    content: dict[str, Any] = {
        "zarr_format": 2, "shape": [64, 128], "chunks": [64, 64], "dtype": "|u1", "fill_value": 0, "order": "C",
        "compressor": None, "filters": None, "dimension_separator": ".",
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(content | about))
    (path / "0.0").write_bytes(chunk)
    return path


def version_3(path: Path, codecs: list[Any], chunk: bytes, shape: tuple[int, int] = (64, 64)) -> Path:
    path.mkdir()
    about = {
        "zarr_format": 3, "node_type": "array", "shape": [128, 128], "data_type": "uint8", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}}, "attributes": {},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "codecs": codecs,
    }  # fmt: skip
    (path / "zarr.json").write_text(json.dumps(about))
    (path / "c/0").mkdir(parents=True)
    (path / "c/0/0").write_bytes(chunk)
    return path


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.usefixtures("little_memory")
def test_a_chunk_that_inflates_is_refused_before_it_takes_memory(codec: str, tmp_path: Path) -> None:
    content = bomb(codec)
    assert len(content) < 3 * 2**20
    path = version_2(tmp_path / "a.zarr", content, compressor=CODECS[codec])
    with open_raster(path) as source:
        with pytest.raises(ImageError, match="a chunk inflates to more than"):
            source.read(0, 0, 64, 64)
        assert not source.read(0, 64, 64, 64).any()  # a chunk that is not there is empty


@pytest.mark.parametrize("codec", ["gzip", "zstd", "blosc"])
@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.usefixtures("little_memory")
def test_a_chunk_of_version_3_that_inflates_is_refused(codec: str, is_sharded: bool, tmp_path: Path) -> None:
    settings = {
        "gzip": {"level": 1}, "zstd": {"level": 1, "checksum": False},
        "blosc": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0},
    }  # fmt: skip
    raw: dict[str, Any] = {"name": "bytes"}
    codecs: list[Any] = [raw, {"name": codec, "configuration": settings[codec]}]
    content = bomb(codec)
    if is_sharded:
        inside = {"chunk_shape": [64, 64], "codecs": codecs, "index_codecs": [raw], "index_location": "end"}
        raw["configuration"] = {"endian": "little"}
        none = 2**64 - 1
        index = struct.pack("<8Q", 0, len(content), none, none, none, none, none, none)
        path = version_3(
            tmp_path / "a.zarr", [{"name": "sharding_indexed", "configuration": inside}], content + index, (128, 128)
        )
    else:
        path = version_3(tmp_path / "a.zarr", codecs, content)
    with open_raster(path) as source:
        for window in ((0, 0, 10, 10), (0, 0, 128, 128)):
            with pytest.raises(ImageError, match="a chunk inflates to more than"):
                source.read(*window)


@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "zstd", "lz4", "blosc", "lzma", "zstd of parts"])
def test_chunks_that_declare_what_they_hold_are_read(codec: str, tmp_path: Path) -> None:
    values = np.ascontiguousarray(numbers()[:64, :64, 0])
    made: dict[str, Any] = {
        "gzip": numcodecs.GZip, "zlib": numcodecs.Zlib, "bz2": numcodecs.BZ2, "zstd": numcodecs.Zstd,
        "lz4": numcodecs.LZ4, "blosc": numcodecs.Blosc, "lzma": numcodecs.LZMA,
    }  # fmt: skip
    compressor = made.get(codec, numcodecs.Zstd)()
    content = values.tobytes()
    chunk = gzip.compress(content[:999]) + gzip.compress(content[999:]) if codec == "gzip" else None
    if codec == "zstd of parts":  # as a stream is written: no size in the frame, a raw block in the middle
        parts = [content[:2000], content[2000:]]
        blocks = [struct.pack("<I", len(p) << 3 | (i == 1))[:3] + p for i, p in enumerate(parts)]
        chunk = struct.pack("<IBB", 0xFD2FB528, 0, 0x38) + b"".join(blocks)
    path = version_2(tmp_path / "a.zarr", bytes(chunk or compressor.encode(values)), compressor=compressor.get_config())
    with open_raster(path) as source:
        np.testing.assert_array_equal(source.read(0, 0, 64, 64)[..., 0], values)


def test_bounds_hold_at_the_byte() -> None:
    from evitseg.raster.zarr_codecs import check_inflated

    data = np.random.default_rng(0).bytes(10**6)
    for codec in ("gzip", "zlib", "bz2", "zstd", "lz4", "blosc", "lzma"):
        encoded = numcodecs.get_codec({"id": codec}).encode(data)
        check_inflated(codec, bytes(encoded), 10**6)
        with pytest.raises(ValueError, match="more than it declares"):
            check_inflated(codec, bytes(encoded), 900_000)
        for cut in range(0, 30):
            with contextlib.suppress(ValueError, OSError, EOFError, zlib.error):
                check_inflated(codec, bytes(encoded)[:cut], 10**6)


class Exploit:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVITSEG_EXPLOIT"],)


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_no_chunk_is_unpickled(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVITSEG_EXPLOIT", str(tmp_path / "exploited"))
    config = {"id": "pickle", "protocol": 4}
    about: dict[str, Any] = {place: config if place == "compressor" else [config]}
    path = version_2(tmp_path / "a.zarr", pickle.dumps(Exploit()), **about)
    with pytest.raises(ImageError, match="pickle"), open_raster(path) as source:
        source.read(0, 0, 64, 64)
    assert not (tmp_path / "exploited").exists()


HOSTILE: dict[str, dict[str, Any]] = {
    "negative shape": {"shape": [-1, 5]}, "no shape": {"shape": []}, "zero": {"shape": [0, 128]},
    "rank 40": {"shape": [1] * 40, "chunks": [1] * 40}, "rank 1": {"shape": [5], "chunks": [5]},
    "bands": {"shape": [8, 8, 2**40], "chunks": [8, 8, 3]},
    "bands first": {"shape": [2**40, 8, 8], "chunks": [1, 8, 8]},
    "huge": {"shape": [2**62, 2**62]}, "huge chunk": {"shape": [10**6] * 2, "chunks": [10**6] * 2},
    "negative chunk": {"chunks": [-64, 64]}, "zero chunk": {"chunks": [0, 64]}, "chunks of text": {"chunks": ["a", 1]},
    "float shape": {"shape": [1.5, 2]}, "null shape": {"shape": None}, "text shape": {"shape": "ab"},
    "objects": {"dtype": "|O"}, "text": {"dtype": "<U4"}, "complex": {"dtype": "<c8"}, "time": {"dtype": "<M8[ns]"},
    "records": {"dtype": [["a", "|u1"], ["b", "|u1"]]}, "no dtype": {"dtype": "xyz"}, "null dtype": {"dtype": None},
    "long dtype": {"dtype": "|S999999999"}, "order": {"order": "Q"}, "format": {"zarr_format": 7},
    "fill": {"fill_value": "x"}, "big fill": {"fill_value": 10**30}, "nan fill": {"fill_value": float("nan")},
    "codec": {"compressor": {"id": "none"}}, "codec of text": {"compressor": "gzip"}, "no id": {"compressor": {}},
    "filter": {"filters": [{"id": "vlen-utf8"}]}, "filters of text": {"filters": "abc"},
    "separator": {"dimension_separator": "/../../"},
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.usefixtures("little_memory")
def test_hostile_metadata_are_one_sentence(what: str, tmp_path: Path) -> None:
    path = version_2(tmp_path / "a.zarr", bytes(64 * 64), **HOSTILE[what])
    with pytest.raises(ImageError) as error, open_raster(path) as source:
        source.read(0, 0, 1, 1)
        pytest.fail(f"read as {source.size}")
    assert "a.zarr: " in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"", b"[", b"[" * 10**5, b"null", b"[]", b"7", b'{"zarr_format": 2}', b"\xff" * 9])
def test_metadata_that_are_none_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    for name in (".zarray", ".zgroup", "zarr.json"):
        path = tmp_path / name.strip(".")
        path.mkdir()
        (path / name).write_bytes(content)
        with pytest.raises(ImageError, match=path.name) as error, open_raster(path):
            pass
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse", "folder", "short", "link to nothing"])
def test_chunks_that_are_no_chunks_neither_hang_nor_take_memory(kind: str, tmp_path: Path) -> None:
    path = version_2(tmp_path / "a.zarr", bytes(64 * 64))
    chunk = path / "0.0"
    chunk.unlink()
    if kind == "pipe":
        os.mkfifo(chunk)
    elif kind == "device":
        chunk.symlink_to("/dev/zero")
    elif kind == "sparse":
        with open(chunk, "wb") as file:
            file.truncate(20 * GIB)
    elif kind == "folder":
        chunk.mkdir()
    elif kind == "short":
        chunk.write_bytes(b"abc")
    else:
        chunk.symlink_to("nowhere")
    with open_raster(path) as source:
        if kind in ("folder", "link to nothing"):
            assert not source.read(0, 0, 64, 64).any()
        else:
            with pytest.raises(ImageError, match=r"a\.zarr: the window of 64×64 pixels at x 0, y 0 cannot be read"):
                source.read(0, 0, 64, 64)
        assert not source.read(0, 64, 64, 64).any()


def test_a_shard_of_countless_chunks_is_refused(tmp_path: Path) -> None:
    raw = {"name": "bytes", "configuration": {"endian": "little"}}
    inside = {"chunk_shape": [1, 1], "codecs": [raw], "index_codecs": [raw], "index_location": "end"}
    codecs = [{"name": "sharding_indexed", "configuration": inside}]
    path = version_3(tmp_path / "a.zarr", codecs, b"", (2**20, 2**20))
    with pytest.raises(ImageError, match="shards have 1,099,511,627,776 chunks"), open_raster(path):
        pass


# A full disk


@pytest.mark.parametrize("where", ["array", "levels"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(where: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root, to mount a file system of 1 MB")
    try:
        values = np.moveaxis(np.random.default_rng(0).integers(0, 11, (1, 2048, 2048), dtype=np.uint8), 0, 0)
        path = ome(tmp_path / "a.zarr", values, datasets=[{"path": "0"}] * (4 if where == "levels" else 1))
        mask = values[0] if where == "array" else np.kron(values[0, ::4, ::4] % 2, np.ones((4, 4), np.uint8))
        with (
            open_raster(path) as source,
            pytest.raises(FileError, match=r"m\.zarr: cannot be written \(No space left on device\)"),
            open_mask_writer(small / "m.zarr", source, CAMVID) as sink,
        ):
            if where == "levels":
                (small / "filler").write_bytes(bytes(40 * 2**10))
            for y in range(0, 2048, 1024):
                for x in range(0, 2048, 1024):
                    sink.write(y, x, mask[y : y + 1024, x : x + 1024])
            if where == "levels":
                free = shutil.disk_usage(small).free
                (small / "more").write_bytes(bytes(max(0, free - 2**14)))
        assert not [p.name for p in small.iterdir() if p.name not in ("filler", "more")]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_reading_an_ordinary_zarr_needs_no_private_import_at_start() -> None:
    program = "import sys, evitseg.raster; sys.exit('zarr' in sys.modules or 'numcodecs' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
