"""Describe the operations of a program: their places in the network, and their work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evitseg.architecture import ModelConfig, PlacedConv, placed_convs
from evitseg.errors import WeightsError
from evitseg.runtime import program as kinds
from evitseg.runtime.program import read_operations


@dataclass(frozen=True)
class Operation:
    """One operation of a program. Work is per pixel of the image.

    Attributes:
        name: the convolution or the block that it runs, or its block and its kind.
        block: as in `evitseg.architecture.PlacedConv`.
        kind: the core's name of the operation.
        convs: names of its convolutions in the block.
        rows: its rows in the program's table; cuts count with the operation before them.
        macs: multiply-adds, without those for padding.
        image_bytes: bytes of the image that it reads.
        read, written: numbers of stored features that it reads and writes, with their padding.
        weights: number of its weights and biases, for the whole image.
    """

    name: str
    block: str
    kind: str
    convs: tuple[str, ...]
    rows: tuple[int, ...]
    macs: float
    image_bytes: float
    read: float
    written: float
    weights: int


_KINDS = {
    kinds.ATTEND: "attend", kinds.CONV3: "conv3", kinds.INVERTED: "inverted", kinds.FUSED: "fused",
    kinds.RESIDUAL: "residual", kinds.POINTWISE: "pointwise", kinds.UPSUM: "upsum", kinds.TEE: "store",
    kinds.STORE: "store", kinds.SUMS: "sums", kinds.POOL: "pool",
}  # fmt: skip


def describe(program: bytes, config: ModelConfig, block: int) -> list[Operation]:
    """The operations of a network's program, in their order.

    The image and stored features go through memory; other features pass from one operation to the next in the cache.

    Args:
        block: stored features have their channels padded to a multiple of it.

    Raises: WeightsError if the program is not that of this network.
    """
    found: list[Operation] = []
    convs = list(placed_convs(config))
    taken, image_bytes, loaded = 0, 0.0, 0  # the last two: what the next operation reads
    for row, op in enumerate(read_operations(program)):
        kind, channels, scales = int(op["kind"]), int(op["out"]), 1 + int(op["scales"])
        if kind == kinds.CUT:
            found[-1] = replace(found[-1], rows=(*found[-1].rows, row))
            continue
        if kind in (kinds.IMAGE, kinds.VALUE):
            image_bytes, loaded = (3.0, 0) if kind == kinds.IMAGE else (0.0, channels)
            continue
        own = convs[taken : taken + _count(kind, bool(op["expands"]), scales)]
        taken += len(own)
        if own and own[0].conv.inputs != op["in"] * (scales if kind == kinds.ATTEND else 1):
            raise _another_network()
        place = own[-1] if own else convs[taken - 1]
        pixels = 1 / place.stride**2

        def stored(numbers: int, pixels: float = pixels) -> float:
            return -(-numbers // block) * block * pixels

        macs = sum(conv.conv.macs / conv.stride**2 for conv in own)
        read, written = stored(loaded), 0.0
        if kind in (kinds.TEE, kinds.STORE):
            written = stored(channels)
        elif kind == kinds.SUMS:
            macs += channels * scales * int(op["head_dim"]) * pixels
            written = stored(channels * scales)  # queries
        elif kind == kinds.ATTEND:
            macs += channels * scales * (int(op["head_dim"]) + 1) * pixels
            read = stored(channels * scales) + stored(channels)
        elif kind == kinds.UPSUM:
            read = stored(channels) / 4 + stored(channels) / 16
        weights = sum(conv.conv.macs + conv.conv.outputs for conv in own)
        names = tuple(conv.name for conv in own)
        found.append(
            Operation(_name(kind, place, names), place.block, _KINDS[kind], names, (row,), macs, image_bytes, read,
                      written, weights)
        )  # fmt: skip
        image_bytes, loaded = 0.0, 0
    if taken != len(convs):
        raise _another_network()
    return found


def _count(kind: int, expands: bool, scales: int) -> int:
    """Number of convolutions that an operation runs."""
    if kind == kinds.INVERTED:
        return 2 + expands
    if kind == kinds.SUMS:
        return 2 * scales - 1
    return {kinds.FUSED: 2, kinds.RESIDUAL: 2, kinds.CONV3: 1, kinds.POINTWISE: 1, kinds.ATTEND: 1}.get(kind, 0)


def _name(kind: int, place: PlacedConv, convs: tuple[str, ...]) -> str:
    if not convs or kind in (kinds.SUMS, kinds.ATTEND):
        return f"{place.block}/{_KINDS[kind]}"
    return f"{place.block}.{convs[0]}" if len(convs) == 1 else place.block


def _another_network() -> WeightsError:
    return WeightsError("the program is not that of the network in its manifest; export it again.")
