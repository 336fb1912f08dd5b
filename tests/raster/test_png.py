"""PNG masks by the core's encoder, read by other programs' decoders."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evitseg.errors import EngineError
from evitseg.labels import numbered
from evitseg.raster.png import mask_png, png_writer
from evitseg.raster.window import TILE

Mask = NDArray[np.uint8] | NDArray[np.uint16]


def regions(height: int, width: int, classes: int, seed: int = 0) -> Mask:
    """A mask like those of photographs: regions with smooth borders."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.normal(size=(4, 6)).astype(np.float32))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    dtype = np.uint8 if classes <= 255 else np.uint16
    return np.asarray(np.clip((smooth + 2) / 4 * classes, 0, classes - 1).astype(dtype))


RNG = np.random.default_rng(1)
MASKS: dict[str, Any] = {
    "one pixel": np.array([[3]], np.uint8),
    "one row": np.zeros((1, 70_000), np.uint8),
    "one column": regions(3000, 1, 9),
    "flat": np.full((600, 900), 7, np.uint8),
    "regions": regions(1100, 700, 19),
    "every class": np.arange(255, dtype=np.uint8)[None].repeat(20, 0),
    "noise": RNG.integers(0, 255, (300, 400), np.uint8),
    "two classes of noise": RNG.integers(0, 2, (300, 301), np.uint8),
    "many classes": regions(700, 300, 5000),
    "noise of many classes": RNG.integers(0, 65536, (120, 301), np.uint16),
}
LABELS = {np.uint8: numbered(255), np.uint16: numbered(65_535)}


def parts(content: bytes) -> tuple[bytes, bytes]:
    """IHDR and the content of all IDAT chunks, whose checksums must be right."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, header, data, last = 8, b"", b"", b""
    while at < len(content):
        length, last = struct.unpack_from(">I4s", content, at)
        chunk = content[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length) == (zlib.crc32(last + chunk),)
        header, data = header or chunk, data + (chunk if last == b"IDAT" else b"")
        at += 12 + length
    assert last == b"IEND"
    return header, data


@pytest.mark.parametrize("name", MASKS)
def test_decoders_read_the_mask(name: str, tmp_path: Path) -> None:
    mask = MASKS[name]
    labels = LABELS[mask.dtype.type]
    content = mask_png(mask, labels)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == ("P" if mask.dtype == np.uint8 else "I;16")
        np.testing.assert_array_equal(np.asarray(image), mask)
    # zlib is stricter than Pillow: it checks the checksum, and that the data ends where it should.
    inflater = zlib.decompressobj()
    raw = inflater.decompress(parts(content)[1])
    assert inflater.eof
    assert not inflater.unused_data
    assert len(raw) == mask.shape[0] * (1 + mask.shape[1] * mask.itemsize)


@pytest.mark.parametrize("name", ["regions", "many classes"])
def test_a_mask_in_windows_has_the_bytes_of_the_whole(name: str, tmp_path: Path) -> None:
    mask = MASKS[name]
    labels = LABELS[mask.dtype.type]
    with png_writer(tmp_path / "a.png", mask.shape, labels) as sink:
        for top in range(0, mask.shape[0], TILE):
            for left in range(0, mask.shape[1], TILE):
                sink.write(top, left, mask[top : top + TILE, left : left + TILE])
    assert (tmp_path / "a.png").read_bytes() == mask_png(mask, labels)


def test_a_mask_is_smaller_than_with_zlibs_runs_and_noise_hardly_grows() -> None:
    mask = MASKS["regions"]
    rows = np.pad(mask, ((0, 0), (1, 0)))  # filter 0 before every row
    runs = zlib.compressobj(1, strategy=zlib.Z_RLE)
    usual = runs.compress(rows.tobytes()) + runs.flush()
    assert len(parts(mask_png(mask, LABELS[np.uint8]))[1]) < 0.8 * len(usual)
    for name in ("noise", "noise of many classes"):
        mask = MASKS[name]
        assert len(parts(mask_png(mask, LABELS[mask.dtype.type]))[1]) < 1.02 * mask.nbytes + 1000


def test_a_mask_that_is_no_array_in_c_order_is_written() -> None:
    mask = regions(40, 60, 9)
    turned: Any = np.asfortranarray(mask)[::-1, ::2]
    with Image.open(io.BytesIO(mask_png(turned, LABELS[np.uint8]))) as image:
        np.testing.assert_array_equal(np.asarray(image), mask[::-1, ::2])


def test_the_core_refuses_pixels_of_other_sizes() -> None:
    with pytest.raises(EngineError, match="an argument is missing or out of range"):
        mask_png(np.zeros((4, 4), np.uint32), LABELS[np.uint8])
