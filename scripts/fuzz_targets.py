"""What is fuzzed: for every parser of the package, files that it reads well, and the calls that read them.

A target's `run` may raise EvitsegError and nothing else. Files are made here, so that the repository holds none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutations import Tree
from PIL import Image

from evitseg.errors import EvitsegError

SIZE = (40, 56)


class FindingError(Exception):
    """A result that no input may give, though nothing was raised."""


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        seeds: makes trees that are read well.
        run: reads the tree in a folder.
        weight: of its part of the time.
        fixed: endings of the names of files that stay as they are.
        first: modules that are imported before memory is limited.
    """

    seeds: Callable[[], list[Tree]]
    run: Callable[[Path], None]
    weight: float = 1.0
    fixed: tuple[str, ...] = ()
    first: tuple[str, ...] = ("evitseg.image",)


def pixels(bands: int = 3, dtype: str = "uint8", seed: int = 0) -> Any:
    top = np.iinfo(dtype).max
    values = np.random.default_rng(seed).integers(0, top, (*SIZE, bands), dtype=dtype, endpoint=True)
    return values[..., 0] if bands == 1 else values


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def tiff(array: Any, **options: Any) -> bytes:
    import tifffile

    content = io.BytesIO()
    tifffile.imwrite(content, array, **({"metadata": None} | options))
    return content.getvalue()


def in_memory(path: Path) -> bytes:
    content = path.read_bytes()
    path.unlink()
    return content


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# Images


@cache
def image_files() -> dict[str, bytes]:
    rgb, grey = Image.fromarray(pixels()), Image.fromarray(pixels(1))
    smooth = rgb.resize((8, 6)).resize((SIZE[1], SIZE[0]))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    exif.get_ifd(0x8769)[0x829A] = (1, 50)
    palette = grey.convert("P")
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
    files = {
        "rgb.jpg": encoded(smooth, "JPEG", exif=exif), "grey.jpg": encoded(grey, "JPEG"),
        "progressive.jpg": encoded(smooth, "JPEG", progressive=True),
        "cmyk.jpg": encoded(smooth.convert("CMYK"), "JPEG"),
        "rgb.png": encoded(smooth, "PNG", exif=exif), "alpha.png": encoded(smooth.convert("RGBA"), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=3), "one.png": encoded(grey.convert("1"), "PNG"),
        "sixteen.png": encoded(Image.fromarray(pixels(1, "uint16")), "PNG"),
        "animated.png": encoded(smooth, "PNG", save_all=True, append_images=[rgb]),
        "rgb.webp": encoded(smooth, "WEBP"), "lossless.webp": encoded(smooth, "WEBP", lossless=True, exif=exif),
        "rgb.bmp": encoded(smooth, "BMP"), "palette.bmp": encoded(palette, "BMP"), "rgb.gif": encoded(palette, "GIF"),
    }  # fmt: skip
    for ending, kind in ((".jp2", "JPEG2000"), (".avif", "AVIF"), (".ppm", "PPM"), (".tga", "TGA")):
        with contextlib.suppress(KeyError, OSError):
            files[f"rgb{ending}"] = encoded(smooth, kind)
    return files | tiff_files()


@cache
def tiff_files() -> dict[str, bytes]:
    """Each kind that is read in a way of its own."""
    rgb, grey = pixels(), pixels(1)
    color_map = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (rgb, {}),
        "tiled": (rgb, {"tile": (16, 32), "compression": "zlib", "predictor": True}),
        "planar": (np.moveaxis(rgb, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "compression": "lzw"}),
        "sixteen": (pixels(3, "uint16"), {"photometric": "rgb", "byteorder": ">", "rowsperstrip": 7}),
        "planar16": (np.moveaxis(pixels(3, "uint16"), 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        "white": (grey, {"photometric": "miniswhite", "compression": "packbits"}),
        "twelve": (pixels(1, "uint16") >> 4, {"bitspersample": 12, "photometric": "minisblack"}),
        "palette": (grey, {"photometric": "palette", "colormap": color_map}),
        "bands": (pixels(5), {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [0] * 4}),
        "alpha": (pixels(4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        "float": (pixels(1).astype(np.float32), {"compression": "zstd"}),
        "signed": (pixels(3, "int16"), {"photometric": "rgb"}),
        "jpeg": (rgb, {"tile": (16, 32), "compression": "jpeg", "photometric": "ycbcr"}),
        "webp": (rgb, {"tile": (16, 32), "compression": "webp"}),
        "jpeg2000": (rgb, {"tile": (32, 32), "compression": "jpeg2000"}),
        "big": (rgb, {"bigtiff": True}),
        "turned": (rgb, {"extratags": [(274, 3, 1, 6, True)]}),
        "pages": (np.stack([grey] * 3), {"photometric": "minisblack"}),
        "imagej": (np.stack([grey] * 3), {"imagej": True, "metadata": {"axes": "ZYX"}}),
        "ome.cyx": (np.moveaxis(pixels(3, "uint16"), 2, 0), {
            "ome": True, "tile": (16, 16), "photometric": "minisblack", "metadata": {
                "axes": "CYX", "SignificantBits": 12, "PhysicalSizeX": 0.5,
                "Channel": {"Name": ["blue", "green", "red"]},
            }}),
    }  # fmt: skip
    files = {}
    for name, (array, options) in kinds.items():
        with contextlib.suppress(ValueError, KeyError, NotImplementedError):  # a codec that is not installed
            files[f"{name}.tif"] = tiff(array, **options)
    files["geo.tif"] = _geotiff()
    about = "Aperio Image Library v12.0\r\n56x40 [0,0 56x40] (16x16) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    files["slide.svs"] = tiff(pixels(), description=about, tile=(16, 16), compression="jpeg", photometric="rgb")
    return files


def _geotiff() -> bytes:
    import rasterio

    with folder() as place:
        path = place / "a.tif"
        with rasterio.open(
            path, "w", driver="GTiff", height=SIZE[0], width=SIZE[1], count=4, dtype="uint8", crs="EPSG:32633",
            transform=rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6), nodata=0, tiled=True, blockxsize=16, blockysize=16,
            compress="deflate",
        ) as file:  # fmt: skip
            file.write(np.moveaxis(pixels(4), 2, 0))
            for band, name in enumerate(("blue", "green", "red", "nir"), 1):
                file.set_band_description(band, name)
        return in_memory(path)


def image_trees() -> list[Tree]:
    return [{name: content} for name, content in image_files().items()]


def _only(place: Path) -> Path:
    return min((path for path in place.iterdir() if path.is_file()), default=place)


def read_options(content: bytes) -> Any:
    """How to read, from the bytes themselves, so that a case has one meaning."""
    from evitseg.image import AS_STATED, ReadOptions

    rng = random.Random(content[:4096])
    if rng.random() < 0.6:
        return AS_STATED
    return ReadOptions(
        rng.choice((None, (1,), (3, 2, 1), (5, 1, 9))),
        rng.choice((None, "auto", "percentile", (0.0, 4095.0), (-1e30, 1e30))),
        rng.choice((None, None, 1, 2, 99)),
    )


def each(*calls: Callable[[], object]) -> None:
    """All of them, though the first may refuse the input; the last refusal is raised."""
    refusal = None
    for call in calls:
        try:
            call()
        except EvitsegError as error:
            refusal = error
    if refusal is not None:
        raise refusal


def run_image(place: Path) -> None:
    from evitseg.raster.files import image_size, read_image, read_reduced
    from evitseg.raster.masks import read_raw_mask

    path = _only(place)
    options = read_options(path.read_bytes() if path.is_file() else b"")
    results: dict[str, Any] = {}

    def whole() -> None:
        image = results["whole"] = read_image(path, options)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise FindingError(f"an image of {image.dtype} {image.shape}")

    def size() -> None:
        results["size"] = image_size(path, options)

    each(
        whole, size, lambda: read_raw_mask(path),
        lambda: read_reduced(path, lambda size: (size[0] // 3 + 1, size[1] // 3 + 1), options=options),
    )  # fmt: skip
    if len(results) == 2 and results["whole"].shape[:2] != results["size"]:
        raise FindingError(f"an image of {results['whole'].shape}, whose size was said to be {results['size']}")


# Rasters


def raster_trees() -> list[Tree]:
    gdal = {n: c for n, c in image_files().items() if n.endswith((".png", ".jpg", ".bmp", ".tif", ".svs"))}
    trees = [{name: content} for name, content in gdal.items()]
    world = b"0.5\n0\n0\n-0.5\n500000\n5000000\n"
    about = b'<PAMDataset><PAMRasterBand band="1"><NoDataValue>0</NoDataValue></PAMRasterBand></PAMDataset>'
    trees.append({"a.tif": gdal["plain.tif"], "a.tfw": world, "a.tif.aux.xml": about})
    trees.append({"a.png": gdal["rgb.png"], "a.pgw": world, "a.png.aux.xml": about})
    return trees


def run_windows(place: Path) -> None:
    """Every window of a small raster; a few of a large one."""
    from evitseg.labels import load_labels
    from evitseg.raster import open_mask_writer, open_raster

    files = sorted(place.iterdir())
    paths = [path for path in files if path.suffix not in (".tfw", ".pgw", ".xml")] or files or [place]
    path = place if any(path.name in (".zgroup", ".zarray", "zarr.json") for path in files) else paths[0]
    options = read_options(b"".join(file.read_bytes() for file in files if file.is_file()))
    with folder() as scratch, open_raster(path, scratch, options) as source:
        height, width = source.size
        rng = random.Random(height * 7919 + width)
        windows = [(0, 0, min(height, 64), min(width, 64)), (height - 1, width - 1, 1, 1)]
        for _ in range(4):
            top, left = rng.randrange(height), rng.randrange(width)
            windows.append((top, left, rng.randint(1, min(64, height - top)), rng.randint(1, min(64, width - left))))
        calls: list[Callable[[], object]] = []
        for window in windows:
            calls += [lambda w=window: _window(source, w), lambda w=window: source.valid(*w)]  # type: ignore[misc]
        each(*calls)
        if height * width <= 10**6:
            out = scratch / ("mask.zarr" if path.is_dir() else "mask.tif")
            with open_mask_writer(out, source, load_labels("camvid")) as sink:
                tile = min(height, sink.tile[0]), min(width, sink.tile[1])
                sink.write(0, 0, np.zeros(tile, np.uint8))


def _window(source: Any, window: tuple[int, int, int, int]) -> None:
    content = source.read(*window)
    if content.shape != (window[2], window[3], 3) or content.dtype != np.uint8:
        raise FindingError(f"a window {window} of {content.dtype} {content.shape}")


@cache
def _zarr_trees() -> list[Tree]:
    import zarr

    trees = []
    content = pixels()
    for version in (2, 3):
        for codec in ("default", "gzip", "zlib", "bz2", "lz4", "blosc", "zstd", "none", "shards"):
            with folder() as place:
                options: dict[str, Any] = {"zarr_format": version, "chunks": (16, 24, 3)}
                if codec == "none":
                    options["compressors"] = None
                elif codec == "shards" and version == 3:
                    options["shards"] = (32, 48, 3)
                elif codec != "default":
                    codecs = _zarr_codec(codec, version)
                    if codecs is None:
                        continue
                    options["compressors"] = codecs
                zarr.create_array(str(place / "a"), data=content, **options)
                trees.append(_tree_of(place / "a"))
        with folder() as place:
            axes = [{"name": n, "type": t} for n, t in (("c", "channel"), ("y", "space"), ("x", "space"))]
            scales = [{"coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}], "path": "0"}]
            omero = {"channels": [
                {"label": name, "color": color, "active": True,
                 "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
                for name, color in (("blue", "0000FF"), ("green", "00FF00"), ("red", "FF0000"))
            ]}  # fmt: skip
            entry = {"axes": axes, "datasets": scales, "name": "x", "version": "0.4"}
            about: Any = {"multiscales": [entry], "omero": omero}
            group = zarr.create_group(
                str(place / "b"), zarr_format=version,
                attributes=about if version == 2 else {"ome": about | {"version": "0.5"}},
            )  # fmt: skip
            group.create_array("0", data=np.moveaxis(content, 2, 0), chunks=(1, 16, 24))
            trees.append(_tree_of(place / "b"))
    return trees


def _zarr_codec(name: str, version: int) -> Any:
    import numcodecs
    import zarr.codecs as codecs

    if version == 2:
        found = {"gzip": "GZip", "zlib": "Zlib", "bz2": "BZ2", "lz4": "LZ4", "blosc": "Blosc", "zstd": "Zstd"}.get(name)
        return getattr(numcodecs, found)() if found else None
    made = {"gzip": "GzipCodec", "blosc": "BloscCodec", "zstd": "ZstdCodec"}.get(name)
    if made:
        return [getattr(codecs, made)()]
    return None


def _tree_of(place: Path) -> Tree:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


# Text


def _mask_png(seed: int = 0) -> bytes:
    mask = np.random.default_rng(seed).integers(0, 3, SIZE).astype(np.uint8)
    return encoded(Image.fromarray(mask), "PNG")


LABELS = json.dumps({"name": "mine", "ignored_ids": [255], "classes": [
    {"name": "sky", "raw_ids": [0], "color": [1, 2, 3]}, {"name": "road", "raw_ids": [1, 7], "color": [9, 8, 7]},
    {"name": "tree", "raw_ids": [2], "color": [0, 255, 0]},
]}).encode()  # fmt: skip


def data_trees() -> list[Tree]:
    """The layouts that describe themselves in text, with three pairs each."""
    image = encoded(Image.fromarray(pixels()), "JPEG")
    pairs = {f"images/{i}.jpg": image for i in "abc"} | {f"masks/{i}.png": _mask_png() for i in "abc"}
    lines = "\n".join(f"images/{i}.jpg,masks/{i}.png" for i in "abc").encode()
    yaml = b"path: .\ntrain: images\nval: images\nmasks_dir: masks\nnames:\n  0: sky\n  1: road\n  2: tree\nnc: 3\n"
    yaml_list = b"path: .\ntrain: [images]\nval: images\nmasks_dir: masks\nnames: [sky, road, 'yes']\nignore: 255\n"
    classes = "_classes.csv"
    return [
        {"pairs.txt": lines + b"\n", **pairs},
        {"data.yaml": yaml, **pairs},
        {"data.yaml": yaml_list, **pairs},
        {"labels.json": LABELS, **pairs},
        {"classes.txt": b"sky\nroad\ntree\n", **pairs},
        {"train.txt": b"a\nb\n", "val.txt": b"c\n", "classes.txt": b"sky\nroad\ntree\n", **pairs},
        {classes: b"Pixel Value, Class\n0, sky\n1, road\n2, tree\n",
         **{f"train/{i}.jpg": image for i in "abc"}, **{f"train/{i}_mask.png": _mask_png() for i in "abc"}},
        {"labelmap.txt": b"# label:color_rgb:parts:actions\nsky:1,2,3::\nroad:9,8,7::\ntree:0,255,0::\n",
         "ImageSets/Segmentation/default.txt": b"a\nb\nc\n",
         **{f"JPEGImages/{i}.jpg": image for i in "abc"}, **{f"SegmentationClass/{i}.png": _mask_png() for i in "abc"}},
    ]  # fmt: skip


def run_data(place: Path) -> None:
    from evitseg.data.inspect import inspect
    from evitseg.data.layouts import find_dataset
    from evitseg.labels import load_labels

    lists = [path for path in sorted(place.iterdir()) if path.suffix in (".txt", ".yaml")]
    calls = [lambda: inspect(find_dataset(place))]
    calls += [lambda path=path: inspect(find_dataset(path)) for path in lists if path.is_file()]  # type: ignore[misc]
    jsons = [path for path in sorted(place.iterdir()) if path.suffix in (".json", ".txt", ".yaml") and path.is_file()]
    calls += [lambda path=path: load_labels(str(path)) for path in jsons]  # type: ignore[misc]
    each(*calls)


def annotation_trees() -> list[Tree]:
    height, width = SIZE
    image = encoded(Image.fromarray(pixels()), "JPEG")
    objects: list[Any] = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 30, 1, 30, 30, 1, 30]], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "iscrowd": 1, "segmentation":
            {"size": [height, width], "counts": [100, 200, height * width - 300]}},
        {"id": 3, "image_id": 2, "category_id": 2, "segmentation": [[5, 5, 20, 5.5, 9, 30], [1, 2, 3, 4, 5, 1]],
         "bbox": [1, 1, 5, 5], "area": 9.5},
        {"id": 4, "image_id": 2, "category_id": 1, "iscrowd": 1, "segmentation":
            {"size": [height, width], "counts": "[6a0g0" + "0" * 47 + "]P1"}},
    ]  # fmt: skip
    coco = {
        "info": {}, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b", "supercategory": "c"}],
        "images": [
            {"id": i, "file_name": f"{n}.jpg", "height": height, "width": width} for i, n in ((1, "a"), (2, "b"))
        ],
        "annotations": objects,
    }  # fmt: skip
    shapes = [
        {"label": "road", "points": [[1, 1], [30, 2.5], [20, 30]], "shape_type": "polygon", "group_id": None},
        {"label": "sky", "points": [[1, 1], [30, 30]], "shape_type": "rectangle", "flags": {}},
        {"label": "sky", "points": [[10, 10], [15, 10]], "shape_type": "circle"},
        {"label": "road", "points": [[1, 1], [9, 9], [20, 4]], "shape_type": "linestrip"},
    ]
    labelme: dict[str, Any] = {
        "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None,
        "imageHeight": height, "imageWidth": width,
    }  # fmt: skip
    polygon = {
        "type": "polygonlabels", "original_width": width, "original_height": height, "image_rotation": 0,
        "from_name": "label", "to_name": "image",
        "value": {"points": [[1, 1], [50, 1], [50, 90]], "polygonlabels": ["road"], "closed": True},
    }  # fmt: skip
    brush = polygon | {"type": "brushlabels", "value": {
        "format": "rle", "rle": [0, 0, 35, 0, 124, 64, 3, 130, 0, 0, 0, 99, 255], "brushlabels": ["sky"],
    }}  # fmt: skip
    studio = [{"id": 1, "data": {"image": "/data/upload/1/ab12cd34-a.jpg"}, "annotations": [
        {"id": 5, "result": [polygon, brush], "was_cancelled": False},
    ]}]  # fmt: skip
    cvat = (
        f'<?xml version="1.0"?><annotations><version>1.1</version><meta><task><labels><label><name>road</name>'
        f'<color>#fa3253</color></label></labels></task></meta><image id="0" name="a.jpg" width="{width}" '
        f'height="{height}"><polygon label="road" points="1.00,1.00;30.00,2.50;20.00,30.00" z_order="0"></polygon>'
        f'<mask label="road" rle="4, 5, 11" left="3" top="4" width="5" height="4" z_order="1"></mask></image>'
        f"</annotations>"
    ).encode()
    yolo = b"0 0.1 0.1 0.5 0.1 0.5 0.9\n1 0.2 0.2 0.3 0.2 0.3 0.4 0.2 0.4\n"
    yaml = b"path: .\ntrain: images\nval: images\nnames:\n  0: road\n  1: sky\n"
    return [
        {"coco.json": json.dumps(coco).encode(), "a.jpg": image, "b.jpg": image},
        {"a.json": json.dumps(labelme).encode(), "a.jpg": image},
        {"studio.json": json.dumps(studio).encode(), "a.jpg": image},
        {"annotations.xml": cvat, "images/a.jpg": image},
        {"data.yaml": yaml, "images/a.jpg": image, "labels/a.txt": yolo},
    ]


def run_annotations(place: Path) -> None:
    """Every way from annotations to masks."""
    from evitseg.data.inspect import inspect
    from evitseg.data.layouts import find_dataset

    sources = [place, *(p for p in sorted(place.rglob("*")) if p.suffix in (".json", ".xml", ".yaml") and p.is_file())]
    with folder() as out:
        calls = [
            lambda n=n, source=source: command(["convert", str(source), "--out", str(out / str(n))])
            for n, source in enumerate(sources)
        ]
        each(*calls, lambda: inspect(find_dataset(place)))


# Models, contexts, runs


@cache
def _bundled() -> tuple[bytes, str]:
    from evitseg.bundled import DEFAULT_MODEL, bundled_models
    from evitseg.runtime.engines import read_manifest

    path = bundled_models()[DEFAULT_MODEL]
    return path.read_bytes(), read_manifest(path).to_json()


def manifest_trees() -> list[Tree]:
    return [{"manifest.json": _bundled()[1].encode()}]


def run_manifest(place: Path) -> None:
    from evitseg.manifest import parse_manifest

    for path in sorted(place.glob("*.json")):
        manifest = parse_manifest(path.read_bytes().decode(errors="replace"), path)
        each(lambda m=manifest: m.cost, manifest.to_json)  # type: ignore[misc]


@cache
def _small() -> tuple[Any, Any]:
    """The bundled model's network, with weights and manifest."""
    from evitseg.bundled import DEFAULT_MODEL
    from evitseg.loading import network_of

    return network_of(DEFAULT_MODEL)


def model_trees() -> list[Tree]:
    import torch

    from evitseg.exporters.evit import write_evit
    from evitseg.model.checkpoints import save_checkpoint

    network, manifest = _small()
    onnx, _ = _bundled()
    with folder() as place:
        write_evit(network, manifest, place / "a.evit")
        save_checkpoint(network, manifest, place / "a.safetensors")
        torch.save(network.state_dict(), place / "a.pt")
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, place / "b.pt"
        )
        return [{"a.onnx": onnx}, *({path.name: path.read_bytes()} for path in sorted(place.iterdir()))]


def run_model(place: Path) -> None:
    from evitseg.loading import load

    path = _only(place)
    calls: list[Callable[[], object]] = [lambda: load(path, threads=1)(np.zeros((32, 32, 3), np.uint8))]
    if path.suffix == ".onnx":
        calls.append(lambda: load(path, engine="onnxruntime", threads=1))
    each(*calls, lambda: command(["info", str(path)]))


@cache
def openvino_files() -> Tree:
    from evitseg.bundled import DEFAULT_MODEL
    from evitseg.exporters.export import export

    with folder() as place, contextlib.redirect_stdout(io.StringIO()):
        export(DEFAULT_MODEL, "openvino", place / "m.xml")
        return {p.name: p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def run_openvino(place: Path) -> None:
    from evitseg.loading import load

    for path in sorted(place.glob("*.xml")):
        load(path, threads=1)(np.zeros((32, 32, 3), np.uint8))


@cache
def context_trees() -> list[Tree]:
    with folder() as place:
        (place / "a.png").write_bytes(encoded(Image.fromarray(pixels()), "PNG"))
        with _inside(place):
            command(["predict", "a.png", "--exact", "--save-context", "c.npz", "--out", "m.png"])
        return [{"c.npz": (place / "c.npz").read_bytes(), "a.png": (place / "a.png").read_bytes()}]


def run_context(place: Path) -> None:
    with folder() as out, _inside(place):
        command(["predict", "a.png", "--context", "c.npz", "--region", "3,4,20,20", "--out", str(out / "r.png")])


@cache
def run_trees() -> list[Tree]:
    """A run that was interrupted after its first epoch."""
    from evitseg.train import TrainConfig, fit

    class StopError(Exception):
        pass

    tree = {f"data/{name}": content for name, content in data_trees()[3].items()}
    with folder() as place:
        write(tree, place)

        def watch(event: Any) -> None:
            if event.report is not None:
                raise StopError

        with contextlib.suppress(StopError), _inside(place):
            config = TrainConfig().updated(RUN)
            fit("data", config, "run", watch=watch)
        for path in sorted((place / "run").iterdir()):
            if path.is_file() and path.stat().st_size < 50 * 2**20:
                tree[f"run/{path.name}"] = path.read_bytes()
    return [tree]


RUN: dict[str, Any] = {"epochs": 2, "batch_size": 2, "data.crop": (32, 32), "data.workers": 0, "save_interval": 1}


def run_run(place: Path) -> None:
    from evitseg.train import TrainConfig, fit

    with _inside(place):
        each(
            lambda: fit("data", TrainConfig().updated(RUN), "run", resume=True),
            lambda: command(["info", "run"]),
            lambda: command(["train", "data", "--out", "run", "--resume"]),
        )


# The command line


def command_trees() -> list[Tree]:
    image, mask = encoded(Image.fromarray(pixels()), "PNG"), _mask_png()
    lines: list[list[str]] = [
        ["predict", "a.png", "--out", "o", "--size", "64", "--no-overlay", "--threads", "1", "--json"],
        ["predict", "a.png", "--exact", "--memory", "900MiB", "--out", "o.tif", "--region", "1,2,30,30"],
        ["predict", "none.mp4", "--duration", "3.5", "--video", "mask", "--out", "o"],
        ["predict", "rtsp://127.0.0.1:9/x", "--duration", "0.1", "--out", "o"],
        ["predict", "a.png", "--sliding-window", "64", "--scratch", ".", "--polygons", "p.geojson", "--out", "o.png"],
        ["predict", "a.png", "--bands", "3,2,1", "--range", "0,4095", "--page", "1", "--out", "o", "--skip-existing"],
        ["check", "data", "--labels", "camvid", "--sheet", "s.png"],
        ["train", "none", "--out", "r", "--epochs", "1", "--crop", "32x32", "--set", "seed=10", "--batch", "1"],
        ["eval", "none", "--model", "b0-cityscapes", "--split", "val"],
        ["export", "none.pt", "--to", "onnx", "--out", "x.onnx", "--size", "64x64"],
        ["polygons", "mask.png", "--out", "o.geojson", "--labels", "camvid", "--simplify", "1.5"],
        ["convert-coco", "none.json", "--images", ".", "--out", "c"],
        ["average", "a.pt", "b.pt", "--out", "c.safetensors"],
        ["info", "none.onnx"], ["bench", "--size", "32x32", "none.onnx"], ["--version"], ["info"],
    ]  # fmt: skip
    files = {"a.png": image, "mask.png": mask, "data/images/a.png": image, "data/masks/a.png": mask}
    return [{"argv.json": json.dumps(line).encode(), **files} for line in lines]


def run_command(place: Path) -> None:
    try:
        argv = json.loads((place / "argv.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    words = [
        word.encode(errors="surrogatepass").decode(errors="replace")
        for word in map(str, argv if isinstance(argv, list) else ())
    ]
    words = [word.replace("\0", "0")[:100_000] for word in words]
    if any(word.startswith(("camera:", "http", "/dev/", "--ray", "serve", "--epochs")) for word in words[1:]):
        words = [word for word in words if not word.startswith(("camera:", "http", "/dev/", "--ray", "--epochs"))]
    with _inside(place):
        command(words)


def command(words: list[str]) -> None:
    """The command line in this process; raises what no user may see."""
    from click.testing import CliRunner

    from evitseg.cli import app

    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 1, 2, 130) or "Traceback (most recent call last)" in result.output:
        raise FindingError(f"status {result.exit_code}: {result.output[-2000:]}")
    if result.exit_code and not result.output.strip():
        raise FindingError(f"status {result.exit_code}, and no word why")


@contextlib.contextmanager
def _inside(place: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


def write(tree: Tree, place: Path) -> None:
    """The tree's files; a name that the system does not take is left out."""
    for name, content in tree.items():
        path = place / name
        with contextlib.suppress(OSError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


TARGETS: dict[str, Target] = {
    "images": Target(image_trees, run_image, 2),
    "windows": Target(raster_trees, run_windows, 2, first=("rasterio", "tifffile", "imagecodecs")),
    "zarr": Target(_zarr_trees, run_windows, 2, first=("zarr", "numcodecs")),
    "data": Target(data_trees, run_data, 2, (".jpg",)),
    "annotations": Target(annotation_trees, run_annotations, 2, (".jpg",), first=("evitseg.cli",)),
    "manifests": Target(manifest_trees, run_manifest, 1, first=("evitseg.manifest",)),
    "models": Target(model_trees, run_model, 2, first=("torch", "openvino", "onnx", "onnxruntime")),
    "openvino": Target(lambda: [openvino_files()], run_openvino, 1, (".bin",), first=("torch", "openvino")),
    "contexts": Target(context_trees, run_context, 2, (".png",), first=("openvino", "evitseg.cli")),
    "runs": Target(run_trees, run_run, 2, (".jpg", ".png"), first=("torch", "accelerate")),
    "commands": Target(command_trees, run_command, 2, (".png",), first=("openvino", "evitseg.cli")),
}

warnings.simplefilter("ignore")
