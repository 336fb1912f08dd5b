"""Segmentation on many machines, with Ray: one large image in bands, or many images."""

from evitseg.cluster.batches import predict_dataset, write_masks
from evitseg.cluster.session import connected
from evitseg.cluster.tiles import segment_large_on_ray

__all__ = ["connected", "predict_dataset", "segment_large_on_ray", "write_masks"]
