"""Many machines, through Ray: one huge image in tiles, or many images."""

from evitseg.cluster.batches import predict_dataset, write_masks
from evitseg.cluster.session import connected
from evitseg.cluster.tiles import segment_huge

__all__ = ["connected", "predict_dataset", "segment_huge", "write_masks"]
