"""The work on one tile: read its inputs, run a segment, store its outputs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.architecture import STRIDE
from evitseg.raster.window import Source
from evitseg.tiling.graph_cut import IMAGE, LOGITS, WEIGHT, Segment
from evitseg.tiling.network import Arrays, Network, Run
from evitseg.tiling.plan import Plan, mask_of_window
from evitseg.tiling.scratch import Layout, LiveRange, Store, allocate
from evitseg.tiling.sums import Sums, record_length, sum_records, tile_record
from evitseg.tiling.windows import Damage, Resampled, Window, valid_window


class Job:
    """All tiles of one image.

    Args:
        source: the image.
        scratch: stores features, sums and the mask between tiles.
    """

    def __init__(self, network: Network, source: Source, plan: Plan, scratch: Store) -> None:
        self.network, self.plan, self.scratch = network, plan, scratch
        self.source = Resampled(source, plan.working)
        self.damages: dict[Window, Damage] = {}
        partition = network.partition
        self.features = {
            f.name: Layout(f.name, *plan.edges(f.made_by, f.stride), f.channels, network.feature_dtype)
            for f in partition.features
        }
        self.records = [
            Layout(f"sums_{i}", (0, plan.tiles(i)), (0, 1), record_length(a), "float32")
            for i, a in enumerate(partition.attentions)
        ]
        self._finest = min((partition.token_stride(a) for a in partition.attentions), default=STRIDE)
        self.valid = Layout("valid", *plan.edges(0, self._finest), 1, "uint8")
        last = partition.segments[-1].index
        self.mask = Layout("mask", *plan.mask_edges(last), 1, np.dtype(network.labels.dtype).name)

    @property
    def live_ranges(self) -> list[LiveRange]:
        """The large layouts, each with the segments during which it is needed."""
        partition = self.network.partition
        last = partition.segments[-1].index
        features = [LiveRange(self.features[f.name], f.made_by, f.used_by) for f in partition.features]
        return [*features, LiveRange(self.mask, last, last)]

    @property
    def bytes_needed(self) -> int:
        """Peak disk space."""
        shared = max(extent[1] for place in allocate(self.live_ranges).values() for extent in place)
        return shared + sum(layout.bytes for layout in (*self.records, self.valid))

    def sums_before(self, segment: Segment) -> Sums | None:
        """The image's sums for the attention layer that a segment begins with; None for the first segment."""
        number = segment.attention_before
        return None if number is None else self.sums(number)

    def sums(self, number: int) -> Sums:
        """The sums of one attention layer over the image."""
        return self._sum(number, range(self.plan.tiles(number)))

    def _sum(self, number: int, tiles: Iterable[int]) -> Sums:
        layout = self.records[number]
        records = (self.scratch.read(layout, Window(tile, 0, 1, 1)).ravel() for tile in tiles)
        attention = self.network.partition.attentions[number]
        return sum_records(records, attention.heads, attention.head_dim)

    def logits(self, run: Run, segment: Segment, tile: int, sums: Sums | None) -> NDArray[np.float32]:
        """(classes, h, w) of a tile's window, from the last segment; see `Plan.window`."""
        outputs, _, _ = self._run(run, segment, tile, sums)
        logits: NDArray[np.float32] = outputs[LOGITS][0]
        return logits

    def work(self, run: Run, segment: Segment, tile: int, sums: Sums | None) -> list[Damage]:
        """Run one tile of one segment and store its outputs.

        Args:
            sums: of the attention layer before the segment. None for the first segment, and to sum only over the tile
                and its neighbours.

        Returns: the parts of the image that could not be read.
        """
        core, window = self.plan.core(segment.index, tile), self.plan.window(segment, tile)
        outputs, weight, damages = self._run(run, segment, tile, sums)
        for f in segment.outputs:
            place = core.over(f.stride)
            self.scratch.write(self.features[f.name], place, outputs[f.name])
        if LOGITS in outputs:
            self._write_mask(outputs[LOGITS][0], core, window, [*self.damages.values(), *damages])
        else:
            record = tile_record(outputs, float(weight.sum()))
            self.scratch.write(self.records[segment.index], Window(tile, 0, 1, 1), record[None, None])
        return damages

    def _run(
        self, run: Run, segment: Segment, tile: int, sums: Sums | None
    ) -> tuple[Arrays, NDArray[np.float32], list[Damage]]:
        partition = self.network.partition
        core, window = self.plan.core(segment.index, tile), self.plan.window(segment, tile)
        inputs: Arrays = {}
        damages: list[Damage] = []
        if segment.takes_image:
            image, damages = self.source.read(window)
            inputs[IMAGE] = image[None]
            valid = self.source.valid(core, damages, self._finest)
            self.scratch.write(self.valid, core.over(self._finest), valid[..., None])
        for f in segment.inputs:
            inputs[f.name] = self.scratch.read(self.features[f.name], window.over(f.stride))[None]
        number = segment.attention_before
        if number is not None:
            if sums is None:
                sums = self._sum(number, self.plan.neighbours(number, tile))
            inputs |= sums.inputs(number, partition.attentions[number])
        weight = np.zeros(0, np.float32)
        attention = partition.attention_after(segment)
        if attention is not None:
            stride = partition.token_stride(attention)
            weight = self._weight(core, window, stride)
            inputs[WEIGHT] = weight.reshape(1, 1, 1, -1)
        # Only the core: the window's own borders affect the values around it.
        cores = {f.name: (0, *core.over(f.stride).inside(window.over(f.stride))) for f in segment.outputs}
        return run(inputs, cores), weight, damages

    def _weight(self, core: Window, window: Window, stride: int) -> NDArray[np.float32]:
        """Weight of each token of a window in the sums: 1 for tokens of the tile itself that have data, else 0."""
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
        mask = mask_of_window(logits, self.plan, place, window)
        ignore = self.network.labels.ignore_index
        valid = valid_window(self.source.source, place, damages)
        if valid is not None:
            mask[~valid] = ignore
        self.scratch.write(self.mask, place, mask[..., None])


def class_counts(mask: NDArray[np.integer], length: int) -> NDArray[np.int64]:
    """(length,) number of pixels per class index."""
    if mask.dtype == np.uint8:  # Pillow's histogram is much faster than numpy's bincount
        return np.array(Image.fromarray(mask).histogram()[:length], np.int64)
    return np.bincount(mask.ravel(), minlength=length)
