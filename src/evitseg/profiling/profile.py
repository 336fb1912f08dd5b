"""Profile the network: the time of every node that the engine runs, compared with this machine's peak.

A node has the name of the convolution that it runs or follows in the plan. Nodes of the same name share a row.
Multiply-adds are counted on the graph given to the engine, bytes on the graph that it runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evitseg.architecture import cost
from evitseg.engine import EngineInfo
from evitseg.errors import EngineError
from evitseg.profiling.bench import Subject
from evitseg.profiling.machine_peak import MachinePeak, copy_gb_per_s
from evitseg.profiling.nodes import PROFILERS, Node, Work
from evitseg.profiling.worker import Table
from evitseg.raster.files import read_image


@dataclass(frozen=True)
class Profile:
    """The profile of one model at one size.

    Attributes:
        height, width: of the image.
        network_ms: mean time of the whole call. The nodes' sum is smaller, because it lacks the time between nodes.
        rounds: number of measured calls.
        plan_macs: multiply-adds of the network's plan.
        nodes: in the order they run, each name once.
        peak: this machine's peak throughput.
        info: the engine.
    """

    height: int
    width: int
    network_ms: float
    rounds: int
    plan_macs: int
    nodes: tuple[Node, ...]
    peak: MachinePeak
    info: EngineInfo

    @property
    def nodes_ms(self) -> float:
        """The sum of all nodes' times."""
        return math.fsum(node.ms for node in self.nodes)

    @property
    def macs(self) -> int:
        """Multiply-adds of the graph that runs."""
        return sum(node.macs for node in self.nodes)

    @property
    def blocks(self) -> list[Work]:
        """The nodes' sums by block, in the order in which blocks start."""
        grouped: dict[str, list[Node]] = {}
        for node in self.nodes:
            grouped.setdefault(node.block, []).append(node)
        return [
            Work(
                block,
                block,
                sum(node.count for node in nodes),
                math.fsum(node.ms for node in nodes),
                sum(node.macs for node in nodes),
                sum(node.bytes_in for node in nodes),
                sum(node.bytes_out for node in nodes),
            )
            for block, nodes in grouped.items()
        ]

    def slowest(self, count: int) -> list[Node]:
        """The nodes that take the most time."""
        return sorted(self.nodes, key=lambda node: -node.ms)[:count]

    def roof_ms(self, nodes: Sequence[Work] | None = None) -> float:
        """The sum of the roofline's times of nodes; None for all nodes."""
        return math.fsum(node.roof_ms(self.peak) for node in (self.nodes if nodes is None else nodes))

    def to_dict(self) -> dict[str, Any]:
        """The profile for JSON."""

        def row(work: Work) -> dict[str, Any]:
            return asdict(work) | {
                "fraction": work.ms / self.nodes_ms,
                "gflops": work.gflops,
                "fraction_of_peak": work.gflops / self.peak.gflops,
                "gb_per_s": work.gb_per_s,
                "intensity": work.intensity,
                "roof_ms": work.roof_ms(self.peak),
            }

        return {
            "height": self.height,
            "width": self.width,
            "rounds": self.rounds,
            "network_ms": self.network_ms,
            "nodes_ms": self.nodes_ms,
            "roof_ms": self.roof_ms(),
            "macs": self.macs,
            "plan_macs": self.plan_macs,
            "peak": asdict(self.peak),
            "blocks": [row(block) | {"roof_ms": self._block_roof(block.block)} for block in self.blocks],
            "nodes": [row(node) for node in self.nodes],
        }

    def tables(self, markdown: bool, count: int = 20) -> list[str]:
        """Lines of text: the machine's peak, a table of blocks, and a table of the slowest nodes."""

        def cells(work: Work, roof_ms: float) -> list[str]:
            of_peak = f"{work.gflops / self.peak.gflops:.0%}"
            speeds = (*((f"{work.gflops:.0f}", of_peak) if work.macs else "––"), f"{work.gb_per_s:.0f}")
            fraction = f"{work.ms / self.nodes_ms:.1%}"
            return [str(work.count), f"{work.ms:.2f}", fraction, f"{work.macs / 1e6:.0f}", *speeds, f"{roof_ms:.2f}"]

        header = ("nodes", "ms", "of total", "M multiply-adds", "GFLOP/s", "of peak", "GB/s", "roofline ms")
        blocks = Table(("block", *header), markdown, first=28)
        nodes = Table((f"slowest {count} names", *header, "kernel"), markdown, first=40)
        total = Work("sum", "", sum(node.count for node in self.nodes), self.nodes_ms, self.macs, 0, 0)
        return [
            f"{self.height}x{self.width}: {self.network_ms:.1f} ms per call while nodes are timed, of which the nodes "
            f"take {self.nodes_ms:.1f}; this machine's peak: {self.peak.gflops:.0f} GFLOP/s of arithmetic, "
            f"{self.peak.gb_per_s:.0f} GB/s copying",
            f"multiply-adds: {self.macs / 1e6:.0f} M in the graph that runs, {self.plan_macs / 1e6:.0f} M in the "
            "network's plan",
            "",
            *blocks.lines([[block.name, *cells(block, self._block_roof(block.block))] for block in self.blocks]),
            blocks.row([total.name, *cells(total, self.roof_ms())[:6], "", f"{self.roof_ms():.2f}"]),
            "",
            *nodes.lines(
                [
                    [node.name, *cells(node, node.roof_ms(self.peak)), f"  {node.type} {node.kernel}"]
                    for node in self.slowest(count)
                ]
            ),
        ]

    def _block_roof(self, block: str) -> float:
        return self.roof_ms([node for node in self.nodes if node.block == block])


def profile(subject: Subject, image: Path, size: tuple[int, int], rounds: int = 15) -> Profile:
    """Profile a model in the core, OpenVINO or ONNX Runtime.

    Raises: EngineError for another engine, ConfigError for a size that the model does not take, ImageError.
    """
    from PIL import Image

    from evitseg.loading import engine_file

    (size,) = subject.sizes([size], ())
    segment = subject.segmenter
    model_file = engine_file(subject.model)
    profiler = PROFILERS.get(segment.info.engine.partition(" (")[0])
    if model_file is None or profiler is None:
        raise EngineError(
            f"{segment.info.engine} does not report the time of its layers; profile with --engine native, openvino or "
            "onnxruntime."
        )
    stretched = np.asarray(Image.fromarray(read_image(image)).resize(size[::-1], Image.Resampling.LANCZOS))
    profiled = profiler(segment.engine, model_file, stretched[None], rounds)
    return Profile(
        height=size[0],
        width=size[1],
        network_ms=profiled.network_ms,
        rounds=profiled.rounds,
        plan_macs=round(cost(segment.manifest.model).macs(*size)),
        nodes=tuple(_by_name(profiled.nodes)),
        peak=MachinePeak(profiled.gflops(), copy_gb_per_s(segment.info.threads)),
        info=segment.info,
    )


def _by_name(nodes: Sequence[Node]) -> list[Node]:
    """Nodes with the same name merged, in the order in which they start."""
    grouped: dict[str, list[Node]] = {}
    for node in nodes:
        grouped.setdefault(node.name, []).append(node)
    return [
        replace(
            same[0],
            count=len(same),
            ms=math.fsum(node.ms for node in same),
            macs=sum(node.macs for node in same),
            bytes_in=sum(node.bytes_in for node in same),
            bytes_out=sum(node.bytes_out for node in same),
            kernel=", ".join(dict.fromkeys(node.kernel for node in same)),
        )
        for same in grouped.values()
    ]
