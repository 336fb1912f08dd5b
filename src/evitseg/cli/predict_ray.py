"""predict for images in bands on a Ray cluster, with the jobs, names and errors of one machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from evitseg.cli.jobs import PredictJob
from evitseg.cli.names import check_free
from evitseg.cli.outcome import ImageEntry, Outcome
from evitseg.cli.predict_bands import mask_place, open_network
from evitseg.cli.request import Request
from evitseg.cli.tiled_results import (
    draw_overlay,
    followed,
    overlay_place,
    save_context,
    show_tiled,
    write_outlines,
)


def predict_ray(jobs: list[PredictJob], request: Request, outcome: Outcome) -> None:
    """Write the masks of images, each in bands on the cluster."""
    from evitseg import cluster
    from evitseg.cluster.session import require_ray
    from evitseg.raster import check_place, open_mask_writer
    from evitseg.tiling.arguments import image_source
    from evitseg.tiling.memory_model import default_memory
    from evitseg.tiling.progress import Watcher

    assert request.ray is not None
    require_ray()
    network = open_network(request, None)
    outcome.runs_on(network.manifest, network.info)
    reading = request.reading or network.manifest.reading
    with cluster.connected(request.ray, scratch=request.scratch):
        for job in jobs:
            assert isinstance(job.source, Path)
            with outcome.attempt(job.source), contextlib.ExitStack() as stack:
                place = mask_place(job)
                extra = [file for file in (request.polygons, request.save_context) if file is not None]
                overlay = overlay_place(job, request)
                check_free([place, *extra, *([overlay] if overlay else [])], request, job.source)
                memory = default_memory() if request.memory is None else request.memory
                source, by_window = stack.enter_context(image_source(job.source, request.scratch, memory, reading))
                check_place(place, source)
                entry = ImageEntry(str(job.source), job.mode.value, str(place), source.size)
                follower = stack.enter_context(followed(entry, network, outcome.output))
                with open_mask_writer(place, source, network.labels, request.mask_format) as sink:
                    streamed = cluster.segment_large_on_ray(
                        network,
                        source,
                        sink,
                        path=job.source if by_window else None,
                        threads=request.threads or 1,
                        size=request.size or "native",
                        memory=request.memory,
                        context_window=request.context_window,
                        watch=Watcher(follower.begin, follower.progress),
                        scratch=request.scratch or place.parent,
                        reading=reading,
                    )
                entry.resumed_bands = streamed.resumed
                save_context(streamed, network.labels, request, entry)
                if overlay is not None:
                    draw_overlay(source, overlay, network.labels, request, entry, outcome.output)
                write_outlines(place, request, network.labels, entry, outcome.output)
                for damage in streamed.damages:
                    outcome.fail(job.source, damage.reason)
                outcome.image(entry)
                show_tiled(entry, outcome.output, network.labels)
