"""predict for images in tiles on a Ray cluster: the jobs, names and errors of one machine."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from evitseg.cli.console import progress_bar, tell_fractions
from evitseg.cli.jobs import Job, check_free
from evitseg.cli.outcome import Outcome
from evitseg.cli.predict_tiles import keep, mask_place, open_network, outline, windows_of
from evitseg.cli.request import Request


def predict_ray(jobs: list[Job], request: Request, outcome: Outcome) -> None:
    """Write the masks of images, each in tiles on the cluster."""
    from rich.console import Console
    from rich.text import Text

    from evitseg import cluster
    from evitseg.raster import check_place, open_sink
    from evitseg.tiling.memory import default_memory
    from evitseg.tiling.stream import Progress

    assert request.ray is not None
    console = Console(stderr=request.as_json, highlight=False)
    network = open_network(request, None)
    outcome.about = {"model": network.manifest.name, "runs": str(network.info)}
    reading = request.reading or network.manifest.reading
    with cluster.connected(request.ray, scratch=request.scratch):
        for job in jobs:
            assert isinstance(job.source, Path)
            with outcome.attempt(job.source), contextlib.ExitStack() as stack:
                place = mask_place(job)
                extra = [file for file in (request.polygons, request.save_context) if file is not None]
                check_free([place, *extra], request, job.source)
                memory = default_memory() if request.memory is None else request.memory
                source, by_window = stack.enter_context(windows_of(job.source, request.scratch, memory, reading))
                check_place(place, source)
                advance = stack.enter_context(
                    progress_bar("segmenting", None, Console(stderr=True, highlight=False), unit="tiles")
                )

                def watch(progress: Progress, advance: Any = advance) -> None:
                    advance(1)

                with open_sink(place, source, network.labels, request.mask_format) as sink:
                    streamed = cluster.segment_huge(
                        source,
                        sink,
                        network,
                        path=job.source if by_window else None,
                        threads=request.threads or 1,
                        size=request.size or "native",
                        memory=request.memory,
                        context=request.context_window or "global",
                        watch=watch,
                        reading=reading,
                    )
                result: dict[str, Any] = {"image": str(job.source), "mask": str(place), "size": source.size}
                keep(streamed, network.labels, request, result)
                outline(place, request, network.labels, result, job.source)
                for damage in streamed.damages:
                    outcome.fail(job.source, damage.reason)
                outcome.image(result)
                if not request.as_json:
                    height, width = source.size
                    title = f"{job.source.name}, {width}×{height}, in tiles"
                    tell_fractions(console, title, result["fractions"], network.labels)
                    console.print(Text(f"wrote {place}"), soft_wrap=True)
