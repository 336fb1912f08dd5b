"""Draw a profile as a roofline plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evitseg.errors import ImageError, MissingPackageError
from evitseg.profiling.nodes import INPUT, Node
from evitseg.profiling.profile import Profile
from evitseg.system.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_drawing(path: Path) -> None:
    """Check that a roofline can be drawn to this file. Raises: ImageError, MissingPackageError."""
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path}: the roofline plot is a PNG; give a file name that ends in .png.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("a roofline image", "bench") from error


PARTS = {
    "input": "#7f7f7f",
    "stem": "#17a2b8",
    "stage1": "#2ca02c",
    "stage2": "#bcbd22",
    "stage3": "#ff7f0e",
    "stage4": "#d62728",
    "head": "#5b4bc4",
}
"""Colours of the network's parts."""


def draw(profile: Profile, title: str, path: Path) -> None:
    """Write a PNG: every node with multiply-adds below the machine's roof, and the blocks' times next to their roofs.

    Raises: ImageError, MissingPackageError, FileError.
    """
    check_drawing(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 8.5), dpi=120, layout="constrained")
    figure.suptitle(f"{title}: {profile.network_ms:.1f} ms in {profile.info}", fontsize=13)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_roof(left, profile)
    _draw_blocks(right, profile)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "evitseg"})


def _part(block: str) -> str:
    return PARTS[block.split(".")[0]]


_SHAPES = {"o": "convolution", "^": "depthwise convolution", "s": "matrix product", "D": "several convolutions"}
"""Meanings of the markers."""


def _marker(node: Node) -> str:
    if node.type == "MatMul":
        return "s"
    if ", " in node.kernel and node.count == 1:  # the core names the convolutions of an operation
        return "D"
    return "^" if "depthwise" in node.name else "o"


def _draw_roof(axes: Axes, profile: Profile) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullLocator

    peak = profile.peak
    nodes = [node for node in profile.nodes if node.macs and node.ms]
    intensities = [node.intensity for node in nodes]
    ridge = peak.gflops / peak.gb_per_s
    low = min(intensities) / 2
    xs = np.geomspace(low, 2 * max(ridge, *intensities), 200)
    axes.plot(xs, np.minimum(peak.gflops, xs * peak.gb_per_s), color="black", linewidth=1.8, zorder=2)
    axes.fill_between(xs, np.minimum(peak.gflops, xs * peak.gb_per_s), 1e9, color="black", alpha=0.05, zorder=0)
    for node in sorted(nodes, key=lambda node: -node.ms):
        axes.scatter(
            node.intensity,
            node.gflops,
            s=20 + 4000 * node.ms / profile.nodes_ms,
            marker=_marker(node),
            color=_part(node.block),
            edgecolor="white",
            linewidth=0.7,
            alpha=0.8,
            zorder=3,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, xs[-1]),
        ylim=(min(node.gflops for node in nodes) / 2, 2 * peak.gflops),
        xlabel="floating-point operations per byte read or written",
        ylabel="GFLOP/s achieved",
        title="Nodes with multiply-adds; area: time; above the slope: data came from a cache",
    )
    for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        # 1, 2, 5, 10 instead of powers, unless they are too many
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 1000 * least else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    roof = f"roof: {peak.gb_per_s:.0f} GB/s copying memory\n{peak.gflops:.0f} GFLOP/s of arithmetic"
    axes.text(0.015, 0.98, roof, transform=axes.transAxes, va="top")  # above the roof, where few nodes are
    assert axes.figure is not None
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # sets the transform that the labels need
    taken: list[tuple[float, float]] = []  # where labels are, in points
    for node in sorted(nodes, key=lambda node: -node.ms)[:8]:
        x, y = axes.transData.transform((node.intensity, node.gflops)) * 72 / axes.figure.dpi
        down = 9
        while any(abs(x - other_x) < 150 and abs(y - down - other_y) < 9 for other_x, other_y in taken):
            down += 3
        taken.append((x, y - down))
        axes.annotate(
            f"{node.name} {node.ms:.1f} ms", (node.intensity, node.gflops), xytext=(8, -down),
            textcoords="offset points", fontsize=8, zorder=4,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    shapes = {key: text for key, text in _SHAPES.items() if key in map(_marker, nodes)}
    handles = [
        Line2D([], [], linestyle="", marker="o", color=color, label=part)
        for part, color in PARTS.items()
        if part != INPUT
    ]
    handles += [Line2D([], [], linestyle="", marker=key, color="grey", label=text) for key, text in shapes.items()]
    axes.legend(handles=handles, loc="lower right", fontsize=9, framealpha=0.95)


def _draw_blocks(axes: Axes, profile: Profile) -> None:
    blocks = profile.blocks
    for row, block in enumerate(blocks):
        nodes = [node for node in profile.nodes if node.block == block.block]
        counting = math.fsum(node.ms for node in nodes if node.macs)
        axes.barh(row, counting, color=_part(block.block), zorder=2)
        axes.barh(row, block.ms - counting, left=counting, color=_part(block.block), alpha=0.4, hatch="///", zorder=2)
        roof = profile.roof_ms(nodes)
        axes.plot([roof, roof], [row - 0.42, row + 0.42], color="black", linewidth=2, zorder=3)
    axes.set(
        yticks=range(len(blocks)),
        yticklabels=[block.name for block in blocks],
        xlabel="milliseconds",
        title="Blocks; hatched: nodes without multiply-adds; black: the roofline",
    )
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
