"""Draw the figures of README.md and docs/ into docs/images.

    pip install -e '.[bench,geo]'
    python scripts/figures.py                      all figures but the one of a trained model
    python scripts/figures.py --trained runs/parts  that one, from the run of docs/tutorials/your-own-data.md

Charts show the numbers in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
INK, OURS, OTHERS, PALE = "#333333", "#2f6f9f", "#b8b8b8", "#dfe9f1"


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def save_photo(image: Image.Image, name: str) -> None:
    image.convert("RGB").save(IMAGES / name, quality=82, optimize=True)


def save_chart(draw: Callable[[Axes], None], name: str, size: tuple[float, float]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    )
    figure, axes = pyplot.subplots(figsize=size)
    draw(axes)
    with tempfile.TemporaryFile() as file:
        figure.savefig(file, dpi=160, bbox_inches="tight", facecolor="white")
        with Image.open(file) as image:
            image.convert("RGB").quantize(64).save(IMAGES / name, optimize=True)
    pyplot.close(figure)


def example(size: tuple[int, int]) -> Image.Image:
    from evitseg.bundled import EXAMPLE_IMAGE

    with Image.open(EXAMPLE_IMAGE) as image:
        photo: Image.Image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return photo


def street() -> None:
    """The example photograph next to its overlay, with a legend of the classes that one can see."""
    import evitseg
    from evitseg.visualize import with_legend

    photo = example((560, 315))
    prediction = evitseg.load(precision="float32")(photo)
    both = Image.new("RGB", (2 * photo.width + 8, photo.height), "white")
    both.paste(photo, (0, 0))
    both.paste(prediction.overlay(legend=False), (photo.width + 8, 0))
    visible = {name: fraction for name, fraction in prediction.fractions().items() if fraction > 0.001}
    save_photo(with_legend(both, visible, prediction.labels), "street.jpg")


def polygons() -> None:
    """The example photograph with the polygons of buildings and trees."""
    import evitseg

    photo = example((960, 540))
    prediction = evitseg.load(precision="float32")(photo)
    colors = {entry.name: entry.color for entry in prediction.labels.classes}
    draw = ImageDraw.Draw(photo)
    for feature in prediction.polygons(min_pixels=150, classes=["building", "tree"]):
        for ring in feature["geometry"]["coordinates"]:
            points = [(float(x), float(y)) for x, y in ring]
            draw.line(points, "white", 8, "curve")
            draw.line(points, colors[str(feature["properties"]["name"])], 4, "curve")
    save_photo(photo, "polygons.jpg")


def sheet() -> None:
    """The sheet of `evitseg check` for the images that the tutorial draws."""
    page = (ROOT / "docs/tutorials/your-own-data.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import json.*?)```", page, re.DOTALL)
    assert code is not None
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code[1]], cwd=folder, check=True)
        check = [sys.executable, "-m", "evitseg", "check", "annotated", "--sheet", "sheet.png"]
        subprocess.run(check, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with Image.open(f"{folder}/sheet.png") as image:
            save_photo(image.resize((960, round(960 * image.height / image.width))), "sheet.jpg")


def trained(run: Path) -> None:
    """Validation images, truth and prediction, as the run drew them."""
    with Image.open(run / "predictions.png") as image:
        save_photo(image.resize((960, round(960 * image.height / image.width))), "trained.jpg")


def bars(axes: Axes, values: dict[str, float], unit: str, digits: int, ours: str) -> None:
    """Horizontal bars with their values, the first at the top; those that begin with `ours` stand out."""
    names = list(values)
    colors = [OURS if name.startswith(ours) else OTHERS for name in names]
    axes.barh(names, list(values.values()), color=colors, height=0.65)
    axes.invert_yaxis()
    for place, value in enumerate(values.values()):
        axes.text(value, place, f" {value:.{digits}f} {unit}".rstrip(), va="center")
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlim(0, 1.15 * max(values.values()))


def speed() -> None:
    """From a JPEG file to a mask file."""
    rows = result("end_to_end")["results"]
    names = {
        "usual procedure (PyTorch)": "usual procedure",
        "evitseg, float32": "evitseg, float32",
        "evitseg, float16": "evitseg, float16",
    }
    values = {label: rows[name]["median_ms"] for label, name in names.items()}

    def draw(axes: Axes) -> None:
        bars(axes, values, "ms", 0, "evitseg")
        axes.set_title(
            "JPEG file to mask file, 1024×2048 pixels, EfficientViT-B0, 2 cores of an Intel Xeon",
            fontsize=10, loc="left", x=-0.33,
        )  # fmt: skip

    save_chart(draw, "speed.png", (7, 1.5))


def peers() -> None:
    """The network alone: evitseg in its core, others in OpenVINO."""
    rows = result("peers")["results"]["1024x2048"]
    plain = min(row["median_ms"] for name, row in rows.items() if re.fullmatch(r"plain .*float32", name))
    values = {"evitseg": rows["evitseg, float32"]["median_ms"], "fastest plain conversion": plain}
    values |= {name: rows[f"{name}, float32"]["median_ms"] for name in ("SegFormer-B0", "SegFormer-B1")}

    def draw(axes: Axes) -> None:
        bars(axes, values, "ms", 0, "evitseg")
        axes.set_title(
            "The network alone, 1024×2048 pixels, float32; others in OpenVINO", fontsize=10, loc="left", x=-0.33
        )

    save_chart(draw, "peers.png", (7, 1.8))


def scaling() -> None:
    """Cost per pixel against the number of pixels."""
    runs = result("scaling")["results"]

    def draw(axes: Axes) -> None:
        sizes = [row for row in runs["float32"]["sizes"] if row["height"] >= 1024]
        megapixels = [row["height"] * row["width"] / 2**20 for row in sizes]
        softmax = [row["softmax_per_pixel_to_reference"] for row in sizes]
        axes.plot(megapixels, softmax, "o--", color=OTHERS, label="multiply-adds, with softmax attention")
        for name, style in (("float32", "s-"), ("default", "o-")):
            times = [row["per_pixel_to_reference"] for row in runs[name]["sizes"] if row["height"] >= 1024]
            label = f"time, evitseg in {'float16' if name == 'default' else name}"
            axes.plot(megapixels, times, style, color=OURS, alpha=1 if name == "float32" else 0.5, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(megapixels, [f"{row['height']}×{row['width']}" for row in sizes])
        axes.set_ylabel("per pixel, 1024×1024 = 1")
        axes.set_ylim(0)
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)

    save_chart(draw, "scaling.png", (7, 3))


def tiles() -> None:
    """How tiles of a large image exchange the sums of attention."""
    from matplotlib.patches import Rectangle

    def grid(axes: Axes, left: float, halo: bool) -> None:
        for row in range(3):
            for column in range(3):
                axes.add_patch(Rectangle((left + column, row), 1, 1, facecolor=PALE, edgecolor="white", lw=2))
        if halo:
            axes.add_patch(Rectangle((left + 0.75, 0.75), 1.5, 1.5, fill=False, edgecolor=OURS, lw=1.2, ls="--"))
            axes.add_patch(Rectangle((left + 1, 1), 1, 1, facecolor=OURS, edgecolor="white", lw=2))

    def draw(axes: Axes) -> None:
        for left, title in ((0, "segment 1"), (6, "segment 2"), (12, "last segment")):
            grid(axes, left, halo=True)
            axes.text(left + 1.5, -0.45, title, ha="center", weight="bold")
        for left in (3, 9):
            axes.annotate("", (left + 1, 1.5), (left + 0.1, 1.5), arrowprops={"arrowstyle": "->", "color": INK})
            axes.text(left + 1.5, 1.5, "Σ", fontsize=24, ha="center", va="center", color=OURS)
            axes.annotate("", (left + 2.9, 1.5), (left + 2, 1.5), arrowprops={"arrowstyle": "->", "color": INK})
            axes.text(left + 1.5, 2.45, "sums of\nall tiles", ha="center", va="center", fontsize=9)
        axes.text(1.5, 3.45, "a tile and its halo", ha="center", color=OURS, fontsize=9)
        axes.annotate("", (16, 1.5), (15.1, 1.5), arrowprops={"arrowstyle": "->", "color": INK})
        axes.text(16.2, 1.5, "mask", va="center", weight="bold")
        axes.set_xlim(-0.3, 17.5)
        axes.set_ylim(3.8, -0.9)
        axes.set_aspect("equal")
        axes.axis("off")

    save_chart(draw, "tiles.png", (9, 2.4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, metavar="RUN")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    if arguments.trained:
        trained(arguments.trained)
    else:
        for draw in (street, polygons, sheet, speed, peers, scaling, tiles):
            draw()
    for path in sorted(IMAGES.iterdir()):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
