from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optional import needs

needs("rasterio", "tifffile", "zarr")

import zarr

from evitseg.errors import FileError
from evitseg.raster import open_mask_writer, open_raster
from tests.raster.samples import CAMVID, read_at_random, write_all


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("layout", ["HWC", "CHW", "HW", "tczyx"])
def test_zarr_gives_zarr_of_the_same_kind(
    version: Literal[2, 3], layout: str, tmp_path: Path, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> None:
    path, out = tmp_path / "a.zarr", tmp_path / "out/m.zarr"
    content: NDArray[Any] = {
        "HWC": pixels, "CHW": np.moveaxis(pixels, 2, 0), "HW": pixels[..., 1].astype(np.uint16) << 8,
        "tczyx": np.moveaxis(pixels, 2, 0)[None, :, None],
    }[layout]  # fmt: skip
    if layout == "tczyx":
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1, 0.5 * 2**level, 0.5 * 2**level]}],
            }
            for level in (0, 1)
        ]
        axes = [{"name": name, "type": "space" if name in "zyx" else "channel"} for name in layout]
        entry: dict[str, Any] = {"axes": axes, "datasets": datasets}
        if version == 2:
            about: dict[str, Any] = {"multiscales": [{"version": "0.4", **entry}]}
        else:
            about = {"ome": {"version": "0.5", "multiscales": [entry]}}
        group = zarr.create_group(path, zarr_format=version, attributes=about)
        for level in (0, 1):
            part = content[..., :: 2**level, :: 2**level]
            group.create_array(str(level), data=part, chunks=(1, 1, 1, 256, 256))
    else:
        zarr.create_array(path, data=content, chunks=tuple(min(200, n) for n in content.shape), zarr_format=version)
    expected = np.repeat(pixels[..., 1:2], 3, axis=2) if layout == "HW" else pixels
    with open_raster(path) as source, open_mask_writer(out, source, CAMVID) as sink:
        read_at_random(source, expected)
        write_all(sink, mask, seed=5)
    result: Any = zarr.open(out, mode="r")
    assert result.metadata.zarr_format == version
    if layout != "tczyx":
        assert isinstance(result, zarr.Array)
        np.testing.assert_array_equal(result[:], mask)
    else:
        said: Any = result.attrs["ome"] if version == 3 else result.attrs
        scales = [d["coordinateTransformations"][0]["scale"] for d in said["multiscales"][0]["datasets"]]
        assert scales == [[1, 1, 1, 0.5, 0.5], [1, 1, 1, 1.0, 1.0]]
        assert said["image-label"]["properties"][3] == {"label-value": 3, "class": "road"}
        for level in (0, 1):
            array: Any = result[str(level)]
            np.testing.assert_array_equal(array[0, 0, 0], mask[:: 2**level, :: 2**level])
    with (
        pytest.raises(FileError, match="already exists"),
        open_raster(path) as source,
        open_mask_writer(out, source, CAMVID),
    ):
        pass
