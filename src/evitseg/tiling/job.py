"""One tile's work."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.architecture import STRIDE
from evitseg.raster.window import Source
from evitseg.tiling.graph_cut import IMAGE, LOGITS, WEIGHT, Piece
from evitseg.tiling.network import Arrays, Network, Run
from evitseg.tiling.plan import Plan, mask_window
from evitseg.tiling.scratch import Layout, Life, Store, arranged
from evitseg.tiling.sums import Sums, record_length, record_of, summed
from evitseg.tiling.windows import Damage, Resampled, Window, valid_window


class Job:
    """The tiles of one image: what each reads and leaves.

    Args:
        source: of the network's input.
        scratch: where features, sums and the mask lie between tiles.
    """

    def __init__(self, network: Network, source: Source, plan: Plan, scratch: Store) -> None:
        self.network, self.plan, self.scratch = network, plan, scratch
        self.source = Resampled(source, plan.working)
        self.damages: dict[Window, Damage] = {}
        cut = network.cut
        self.features = {
            f.name: Layout(f.name, *plan.edges(f.made_by, f.stride), f.channels, network.kept) for f in cut.features
        }
        self.records = [
            Layout(f"sums_{i}", (0, plan.tiles(i)), (0, 1), record_length(a), "float32")
            for i, a in enumerate(cut.attentions)
        ]
        self._finest = min((cut.token_stride(a) for a in cut.attentions), default=STRIDE)
        self.valid = Layout("valid", *plan.edges(0, self._finest), 1, "uint8")
        last = cut.pieces[-1].number
        self.mask = Layout("mask", *plan.mask_edges(last), 1, np.dtype(network.labels.dtype).name)

    @property
    def lives(self) -> list[Life]:
        """What is large, and which pieces it is there for."""
        last = self.network.cut.pieces[-1].number
        features = [Life(self.features[f.name], f.made_by, f.used_by) for f in self.network.cut.features]
        return [*features, Life(self.mask, last, last)]

    @property
    def bytes_needed(self) -> int:
        """Of disk, when it is fullest."""
        shared = max(extent[1] for place in arranged(self.lives).values() for extent in place)
        return shared + sum(layout.bytes for layout in (*self.records, self.valid))

    def sums(self, number: int) -> Sums:
        """Of one attention layer, over the image."""
        return self._sum(number, range(self.plan.tiles(number)))

    def _sum(self, number: int, tiles: Iterable[int]) -> Sums:
        layout = self.records[number]
        records = (self.scratch.read(layout, Window(tile, 0, 1, 1)).ravel() for tile in tiles)
        attention = self.network.cut.attentions[number]
        return summed(records, attention.heads, attention.head_dim)

    def logits(self, run: Run, piece: Piece, tile: int, sums: Sums | None) -> NDArray[np.float32]:
        """(classes, h, w) of a window around a tile, from the last piece; see `Plan.window`."""
        outputs, _, _ = self._run(run, piece, tile, sums)
        logits: NDArray[np.float32] = outputs[LOGITS][0]
        return logits

    def work(self, run: Run, piece: Piece, tile: int, sums: Sums | None) -> list[Damage]:
        """Do one tile of one piece, and leave what it gives in the scratch folder.

        Args:
            sums: of the attention layer before the piece; None where there is none, or for those of the tile and its
                neighbours alone.

        Returns: what of the image could not be read.
        """
        core, window = self.plan.core(piece.number, tile), self.plan.window(piece, tile)
        outputs, weight, damages = self._run(run, piece, tile, sums)
        for f in piece.outputs:
            place = core.over(f.stride)
            self.scratch.write(self.features[f.name], place, outputs[f.name])
        if LOGITS in outputs:
            self._write_mask(outputs[LOGITS][0], core, window, [*self.damages.values(), *damages])
        else:
            record = record_of(outputs, float(weight.sum()))
            self.scratch.write(self.records[piece.number], Window(tile, 0, 1, 1), record[None, None])
        return damages

    def _run(
        self, run: Run, piece: Piece, tile: int, sums: Sums | None
    ) -> tuple[Arrays, NDArray[np.float32], list[Damage]]:
        cut, core, window = self.network.cut, self.plan.core(piece.number, tile), self.plan.window(piece, tile)
        inputs: Arrays = {}
        damages: list[Damage] = []
        if piece.number == 0:
            image, damages = self.source.read(window)
            inputs[IMAGE] = image[None]
            valid = self.source.valid(core, damages, self._finest)
            self.scratch.write(self.valid, core.over(self._finest), valid[..., None])
        for f in piece.inputs:
            inputs[f.name] = self.scratch.read(self.features[f.name], window.over(f.stride))[None]
        if piece.number > 0:
            number = piece.number - 1
            if sums is None:
                sums = self._sum(number, self.plan.neighbours(number, tile))
            inputs |= sums.inputs(number, cut.attentions[number])
        weight = np.zeros(0, np.float32)
        attention = cut.attention_behind(piece)
        if attention is not None:
            stride = cut.token_stride(attention)
            weight = self._weight(core, window, stride)
            inputs[WEIGHT] = weight.reshape(1, 1, 1, -1)
        # Without what the window's own borders have spoilt.
        cores = {f.name: (0, *core.over(f.stride).inside(window.over(f.stride))) for f in piece.outputs}
        return run(inputs, cores), weight, damages

    def _weight(self, core: Window, window: Window, stride: int) -> NDArray[np.float32]:
        """How every token of a window counts in the sums: by 1 if it is the tile's own and has data."""
        valid = self.scratch.read(self.valid, core.over(self._finest))[..., 0]
        times = stride // self._finest
        if times > 1:
            height, width = (side // times for side in valid.shape)
            valid = valid.reshape(height, times, width, times).max((1, 3))
        outer, inner = window.over(stride), core.over(stride)
        weight = np.zeros((outer.height, outer.width), np.float32)
        weight[inner.inside(outer)] = valid
        return weight

    def _write_mask(self, logits: NDArray[np.float32], core: Window, window: Window, damages: list[Damage]) -> None:
        place = self.plan.mask_window(core)
        mask = mask_window(logits, self.plan, place, window)
        ignore = self.network.labels.ignore_index
        valid = valid_window(self.source.source, place, damages)
        if valid is not None:
            mask[~valid] = ignore
        self.scratch.write(self.mask, place, mask[..., None])


def class_counts(mask: NDArray[np.integer], most: int) -> NDArray[np.int64]:
    """How often every class index occurs."""
    if mask.dtype == np.uint8:  # several times as fast as numpy
        return np.array(Image.fromarray(mask).histogram()[:most], np.int64)
    return np.bincount(mask.ravel(), minlength=most)
