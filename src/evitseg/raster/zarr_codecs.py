"""Read Zarr files of unknown origin safely: regular files only, and no chunk that decodes to more than its size.

Zarr decodes a chunk before it checks the size, so a small file could inflate to any size, and numcodecs has codecs that
unpickle. Only the codecs in the tables below are allowed. The decoded size of a chunk is checked before it is decoded:
from the size in its header, or by inflating it in parts that are discarded.
"""

from __future__ import annotations

import bz2
import lzma
import math
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evitseg.errors import ImageError

_METADATA_BYTES = 64 * 2**20
"""Size of the largest metadata file that is read."""
_SLACK = 64 * 2**10
"""Bytes that a chunk may have beyond its declared size, for checksums and incompressible data."""
_MOST_IN_SHARD = 2**20
"""Maximum number of chunks in a shard, whose index has 16 bytes for each."""
_PART_BYTES = 2**20
_FILTERS = frozenset({"adler32", "bitround", "crc32", "crc32c", "delta", "fixedscaleoffset", "fletcher32", "shuffle"})
"""Codecs that do not change the number of values."""


def _gzip(data: bytes, limit: int, wbits: int = 31) -> int:
    count, rest = 0, data
    while rest and count <= limit:  # a gzip file may have several members
        inflater = zlib.decompressobj(wbits)
        while not inflater.eof and count <= limit:
            part = inflater.decompress(rest, _PART_BYTES)
            count += len(part)
            rest = inflater.unconsumed_tail
            if not part and not rest:
                break
        rest = inflater.unused_data if inflater.eof else b""
        if wbits != 31:
            break
    return count


def _zlib(data: bytes, limit: int) -> int:
    return _gzip(data, limit, 15)


def _streamed(make: Callable[[], Any]) -> Callable[[bytes, int], int]:
    """A function that counts the decoded bytes with one of Python's decompressors."""

    def count(data: bytes, limit: int) -> int:
        total, rest = 0, data
        while rest and total <= limit:
            decompressor = make()
            feed = rest
            while not decompressor.eof and total <= limit:
                part = decompressor.decompress(feed, _PART_BYTES)
                total += len(part)
                feed = b""
                if not part and decompressor.needs_input:
                    return total
            rest = decompressor.unused_data if decompressor.eof else b""
        return total

    return count


def _number(data: bytes, at: int, size: int) -> int:
    if len(data) < at + size:
        raise ValueError("its header is cut off")
    return int.from_bytes(data[at : at + size], "little")


def _blosc(data: bytes, limit: int) -> int:
    return _number(data, 4, 4)


def _lz4(data: bytes, limit: int) -> int:
    return _number(data, 0, 4)


def _zstd(data: bytes, limit: int) -> int:
    """Count by the headers of frames and blocks (RFC 8878), because a frame need not state its size."""
    count = at = 0
    while at < len(data) and count <= limit:
        magic = _number(data, at, 4)
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a skippable frame
            at += 8 + _number(data, at + 4, 4)
            continue
        if magic != 0xFD2FB528:
            raise ValueError("not a Zstandard frame")
        about = _number(data, at + 4, 1)
        is_single = bool(about & 0x20)
        size_bytes = (int(is_single), 2, 4, 8)[about >> 6]
        at += 5 + (0 if is_single else 1) + (0, 1, 2, 4)[about & 3]
        stated = _number(data, at, size_bytes) + (256 if size_bytes == 2 else 0) if size_bytes else None
        at += size_bytes
        blocks, is_last = 0, False
        while not is_last:
            header = _number(data, at, 3)
            is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
            blocks += 2**17 if kind == 2 else size
            at += 3 + (1 if kind == 1 else size)
            if stated is None and count + blocks > limit + 2**17:
                break
        # A compressed block has up to 128 KiB; the last may have less.
        count += stated if stated is not None else max(0, blocks - 2**17 + 1)
        at += 4 if about & 4 else 0
    return count


_INFLATED: dict[str, Callable[[bytes, int], int]] = {
    "blosc": _blosc, "bz2": _streamed(bz2.BZ2Decompressor), "gzip": _gzip, "lz4": _lz4,
    "lzma": _streamed(lambda: lzma.LZMADecompressor(memlimit=256 * 2**20)), "zlib": _zlib, "zstd": _zstd,
}  # fmt: skip
"""Functions that count the bytes a codec would return, up to a limit."""


def check_inflated(codec: str, data: bytes, limit: int) -> None:
    """Raises: ValueError if a codec would return more bytes than the limit."""
    limit += limit // 64 + _SLACK
    count = _INFLATED[codec](data, limit)
    if count > limit:
        raise ValueError(f"a chunk inflates to more than {limit:,} bytes, more than it declares")


@cache
def store_class() -> type[Any]:
    """A class of stores that only read regular files of up to `most` bytes."""
    from zarr.abc.store import RangeByteRequest, SuffixByteRequest
    from zarr.storage import LocalStore

    class Folder(LocalStore):
        most = _METADATA_BYTES

        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            self._check(key, byte_range)
            return await super().get(key, prototype, byte_range)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
            return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

        def _check(self, key: str, byte_range: Any) -> None:
            try:
                about = (Path(self.root) / key).stat()
            except OSError:
                return  # zarr handles missing chunks
            if stat.S_ISDIR(about.st_mode):
                return
            if not stat.S_ISREG(about.st_mode):
                raise ValueError(f"{key} is not a regular file")
            size = about.st_size
            if isinstance(byte_range, RangeByteRequest):
                size = min(size, byte_range.end) - byte_range.start
            elif isinstance(byte_range, SuffixByteRequest):
                size = min(size, byte_range.suffix)
            if size > self.most:
                raise ValueError(f"{key} has {size:,} bytes, more than a chunk of this array can need")

    return Folder


@cache
def _numcodec_class() -> type[Any]:
    from numcodecs.abc import Codec

    class Bounded(Codec):  # type: ignore[misc]
        codec_id = "evitseg-bounded"

        def __init__(self, inner: Any, limit: int) -> None:
            self._inner, self._limit = inner, limit

        def decode(self, buf: Any, out: Any = None) -> Any:
            check_inflated(self._inner.codec_id, bytes(memoryview(buf).cast("B")), self._limit)
            return self._inner.decode(buf, out)

        def encode(self, buf: Any) -> Any:
            return self._inner.encode(buf)

        def get_config(self) -> Any:
            return self._inner.get_config()

    return Bounded


@cache
def _codec_class() -> type[Any]:
    from zarr.abc.codec import BytesBytesCodec

    @dataclass(frozen=True)
    class Bounded(BytesBytesCodec):
        """A codec of Zarr version 3 whose result is checked against its chunk's shape."""

        inner: Any
        name: str
        is_fixed_size = False

        def to_dict(self) -> Any:
            return self.inner.to_dict()

        def evolve_from_array_spec(self, array_spec: Any) -> Any:
            return replace(self, inner=self.inner.evolve_from_array_spec(array_spec))

        def resolve_metadata(self, chunk_spec: Any) -> Any:
            return self.inner.resolve_metadata(chunk_spec)

        def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
            return int(self.inner.compute_encoded_size(input_byte_length, chunk_spec))

        async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
            check_inflated(self.name, chunk_data.to_bytes(), math.prod(chunk_spec.shape) * _item_size(chunk_spec.dtype))
            return await self.inner._decode_single(chunk_data, chunk_spec)

        async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
            return await self.inner._encode_single(chunk_data, chunk_spec)

    return Bounded


def _item_size(dtype: Any) -> int:
    native = dtype.to_native_dtype() if hasattr(dtype, "to_native_dtype") else np.dtype(dtype)
    return int(native.itemsize)


def bounded(name: str, array: Any) -> Any:
    """The same array, read with bounded codecs. Raises: ImageError for unsupported codecs."""
    from zarr import Array, AsyncArray

    metadata, item = array.metadata, array.dtype.itemsize
    if metadata.zarr_format == 2:
        for codec in metadata.filters or ():
            if codec.codec_id not in _FILTERS:
                raise _unsupported(name, codec.codec_id)
        compressor = metadata.compressor
        most = math.prod(metadata.chunks) * (8 if metadata.filters else item)
        if compressor is not None:
            if compressor.codec_id not in _INFLATED:
                raise _unsupported(name, compressor.codec_id)
            _check_settings(name, compressor)
            metadata = replace(metadata, compressor=_numcodec_class()(compressor, most))
    else:
        most = math.prod(metadata.chunk_grid.chunk_shape) * item
        index = [0]
        codecs = _bounded_codecs(name, metadata.codecs, metadata.chunk_grid.chunk_shape, index)
        metadata = replace(metadata, codecs=codecs)
        most += index[0]
    store_path = array.store_path
    store_path.store.most = max(_METADATA_BYTES, 2 * most + _SLACK)
    return Array(AsyncArray(metadata, store_path))


def _bounded_codecs(name: str, codecs: Any, shape: tuple[int, ...], index: list[int]) -> tuple[Any, ...]:
    """Bounded codecs of Zarr version 3, also inside shards. Adds the bytes of the shards' indices to `index`."""
    from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
    from zarr.codecs import BytesCodec, ShardingCodec, TransposeCodec

    result: list[Any] = []
    for codec in codecs:
        kind = str(codec.to_dict()["name"]).removeprefix("numcodecs.")
        if isinstance(codec, ShardingCodec):
            count = math.prod(-(-whole // part) for whole, part in zip(shape, codec.chunk_shape, strict=True))
            if count > _MOST_IN_SHARD:
                raise ImageError(
                    f"{name}: its shards have {count:,} chunks each, more than {_MOST_IN_SHARD:,}; store it in "
                    "smaller shards."
                )
            index[0] += 16 * count + 4
            _bounded_codecs(name, codec.index_codecs, (count,), index)  # checks the kinds of codecs only
            inside = _bounded_codecs(name, codec.codecs, codec.chunk_shape, index)
            result.append(
                ShardingCodec(
                    chunk_shape=codec.chunk_shape, codecs=inside, index_codecs=codec.index_codecs,
                    index_location=codec.index_location,
                )
            )  # fmt: skip
        elif isinstance(codec, BytesBytesCodec) and kind in _INFLATED:
            _check_settings(name, codec)
            result.append(_codec_class()(codec, kind))
        elif isinstance(codec, (BytesCodec, TransposeCodec)) or (
            isinstance(codec, (ArrayArrayCodec, BytesBytesCodec)) and kind in _FILTERS
        ):
            result.append(codec)
        else:
            raise _unsupported(name, kind)
    return tuple(result)


def _check_settings(name: str, codec: Any) -> None:
    """Raises: ImageError for lzma with filters, which may ask for any amount of memory."""
    if getattr(codec, "filters", None) or getattr(codec, "format", 1) not in (1, None):
        raise _unsupported(name, "lzma with filters")


def _unsupported(name: str, codec: str) -> ImageError:
    known = ", ".join(sorted(_INFLATED))
    return ImageError(f"{name}: its chunks use the codec {codec!r}, which is not supported; supported are {known}.")
