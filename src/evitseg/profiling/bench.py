"""Measure a model's speed on this machine: the network alone, and from an image file to a mask file.

Each measurement runs in a process of its own, so that its peak memory is its own and no engine's threads disturb
another's. Only one process works at a time.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evitseg.architecture import softmax_macs
from evitseg.bundled import DEFAULT_MODEL
from evitseg.engine import PRECISIONS, Precision
from evitseg.errors import ConfigError, EngineError, EvitsegError
from evitseg.preprocess import check_sides
from evitseg.profiling.worker import Table, Worker, median_and_p90, serve, take_rounds, warm_up
from evitseg.raster.files import read_image

if TYPE_CHECKING:
    from evitseg.runtime.segmenter import Segmenter

SIZES = ((256, 256), (512, 512), (1024, 1024), (1024, 2048), (2048, 2048), (4096, 4096))
"""Default sizes (height, width) of the images."""


ONE_SIZE = (1024, 2048)
"""Default size of the measurements that use only one."""


REFERENCE = (1024, 1024)
"""Size to which time per pixel is compared."""


NOISY = 1.15
"""Ratio of 90th percentile to median that shows that other programs were running."""


@dataclass(frozen=True)
class Subject:
    """A model and how it runs, as in `evitseg.load`; the engine "torch" runs exported .onnx files, too."""

    model: str | None = None
    engine: str | None = None
    precision: Precision = "auto"
    threads: int | None = None
    device: str | None = None

    @cached_property
    def segmenter(self) -> Segmenter:
        """Loads the model, for images at their own sizes unless it takes only one size."""
        from evitseg.loading import load, network_of
        from evitseg.runtime.segmenter import Segmenter

        if self.engine == "torch":
            from evitseg.model.engine import TorchEngine

            network, manifest = network_of(self.model or DEFAULT_MODEL)
            engine: Any = TorchEngine(network, manifest, self.precision, self.threads, self.device or "cpu")
        else:
            engine = load(
                self.model, engine=self.engine, device=self.device, precision=self.precision, threads=self.threads
            ).engine
        return Segmenter(engine, None if engine.manifest.preprocess.fixed else "native")

    def sizes(self, wanted: Sequence[tuple[int, int]], default: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Sizes (height, width) to measure, smallest first. Raises: ConfigError for other sizes than the model's."""
        fixed = self.segmenter.manifest.preprocess.fixed
        chosen = [check_sides(sides) for sides in wanted or ([fixed] if fixed else default)]
        if fixed and chosen != [fixed]:
            raise ConfigError(f"this model takes images of {fixed[0]}x{fixed[1]} (height x width) and no others.")
        return sorted(chosen, key=lambda sides: sides[0] * sides[1])


@dataclass(frozen=True)
class Timing:
    """Measured times at one size.

    Attributes:
        height, width: of the image and of the network's input.
        network_ms, network_p90_ms: median and 90th percentile from uint8 image to logits.
        end_to_end_ms, end_to_end_p90_ms: from a JPEG file (quality 95) to a PNG file of the mask.
        rounds: number of measurements of each.
        peak_mib: peak memory of a process that only loads the model and segments files of this size.
        softmax_macs_per_pixel: multiply-adds per pixel if the network used softmax attention; counted, not measured.
    """

    height: int
    width: int
    network_ms: float
    network_p90_ms: float
    end_to_end_ms: float
    end_to_end_p90_ms: float
    rounds: int
    peak_mib: float
    softmax_macs_per_pixel: float

    HEADER: ClassVar = (
        "size", "network ms", "p90", "end to end ms", "p90", "ms per megapixel", "× 1024x1024", "softmax's ×",
        "peak MiB",
    )  # fmt: skip

    @property
    def ms_per_megapixel(self) -> float:
        """Time of the network per megapixel, constant if time is proportional to the number of pixels."""
        return self.network_ms / (self.height * self.width / 1e6)

    @property
    def noise(self) -> float:
        """The larger ratio of 90th percentile to median, about 1 on an idle machine."""
        return max(self.network_p90_ms / self.network_ms, self.end_to_end_p90_ms / self.end_to_end_ms)

    def per_pixel(self, timings: Sequence[Timing]) -> tuple[float | None, float | None]:
        """Time and softmax multiply-adds per pixel as ratios to those at `REFERENCE`; None if that was not measured."""
        for other in timings:
            if (other.height, other.width) == REFERENCE:
                softmax = self.softmax_macs_per_pixel / other.softmax_macs_per_pixel
                return self.ms_per_megapixel / other.ms_per_megapixel, softmax
        return None, None

    def to_dict(self, timings: Sequence[Timing]) -> dict[str, Any]:
        """The numbers for JSON."""
        time_ratio, softmax_ratio = self.per_pixel(timings)
        return asdict(self) | {
            "ms_per_megapixel": self.ms_per_megapixel,
            "noise": self.noise,
            "per_pixel_to_reference": time_ratio,
            "softmax_per_pixel_to_reference": softmax_ratio,
        }

    def cells(self, timings: Sequence[Timing]) -> list[str]:
        """The cells of a table's row, in the order of `HEADER`."""
        numbers = (
            self.network_ms, self.network_p90_ms, self.end_to_end_ms, self.end_to_end_p90_ms, self.ms_per_megapixel
        )  # fmt: skip
        ratios = ("–" if ratio is None else f"{ratio:.2f}" for ratio in self.per_pixel(timings))
        return [f"{self.height}x{self.width}", *(f"{n:.1f}" for n in numbers), *ratios, f"{self.peak_mib:.0f}"]


def noise_message(noise: float) -> str:
    """A sentence about how steady the times were."""
    advice = "other programs were running; measure again on an idle machine" if noise > NOISY else "a quiet machine"
    return f"90th percentiles are up to {noise:.2f} times the medians: {advice}."


def bench(subject: Subject, image: Path, sizes: Sequence[tuple[int, int]] = (), rounds: int = 15) -> Iterator[Timing]:
    """Measure one model, size by size.

    Args:
        image: stretched to every size. Its content matters, because class boundaries take time after the network.
        sizes: (height, width), multiples of 32; none for `SIZES`, or for the only one that the model takes.
        rounds: measurements after warm-up, each of the network and end to end.

    Raises: ConfigError for a size that the model does not take, ImageError, EngineError.
    """
    chosen = subject.sizes(sizes, SIZES)
    source = Image.fromarray(read_image(image))
    with tempfile.TemporaryDirectory() as folder:
        jpeg = Path(folder) / "image.jpg"
        for size in chosen:
            _save_stretched(source, size, jpeg)
            with _worker(subject, jpeg) as worker:
                alone, whole = partial(worker.ask, "network"), partial(worker.ask, "end to end")
                warm_up(whole)
                peak = worker.ask("peak")  # before the network runs alone, which keeps its input in memory
                warm_up(alone)
                taken = take_rounds({"alone": alone, "whole": whole}, rounds)
            macs = softmax_macs(subject.segmenter.manifest.model, *size) / (size[0] * size[1])
            yield Timing(*size, *median_and_p90(taken["alone"]), *median_and_p90(taken["whole"]), rounds, peak, macs)


@dataclass(frozen=True)
class Compared:
    """One engine at one precision, compared with others in the same run.

    Attributes:
        engine, precision: as requested.
        runs: description of the engine that ran; empty if none did.
        median_ms, p90_ms: time of the network alone.
        peak_mib: peak memory of its process.
        times_fastest: its median divided by the fastest engine's.
        problem: the reason why it did not run; the numbers are then None.
    """

    engine: str
    precision: str
    runs: str = ""
    median_ms: float | None = None
    p90_ms: float | None = None
    peak_mib: float | None = None
    times_fastest: float | None = None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(subject: Subject, image: Path, size: tuple[int, int], rounds: int = 15) -> list[Compared]:
    """Compare every engine that runs the model's file, at every precision: fastest first, then those that cannot run.

    An exported .onnx file runs in PyTorch, too: its weights go back into the network.

    Raises: ConfigError for a size that the model does not take, ImageError.
    """
    (size,) = subject.sizes([size], ())
    ran, others = [], []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        jpeg = Path(folder) / "image.jpg"
        _save_stretched(Image.fromarray(read_image(image)), size, jpeg)
        workers: dict[tuple[str, str], Worker] = {}
        for engine in _engines(subject):
            # PyTorch emulates float16 on a CPU, which is far slower than float32.
            for precision in PRECISIONS[1:] if engine != "torch" else ("float32", "bfloat16"):
                try:
                    device = subject.device if engine == "torch" else None
                    worker = stack.enter_context(
                        _worker(Subject(subject.model, engine, precision, subject.threads, device), jpeg)
                    )
                    if worker.about["precision"] != precision:
                        raise EngineError(f"it computes in {worker.about['precision']} on this machine.")
                except EvitsegError as error:
                    others.append(Compared(engine, precision, problem=str(error)))
                else:
                    warm_up(partial(worker.ask, "network"))
                    workers[engine, precision] = worker
        taken = take_rounds({" ".join(key): partial(worker.ask, "network") for key, worker in workers.items()}, rounds)
        fastest = min((statistics.median(times) for times in taken.values()), default=0.0)
        for key, worker in workers.items():
            median, p90 = median_and_p90(taken[" ".join(key)])
            ran.append(Compared(*key, worker.about["runs"], median, p90, worker.ask("peak"), median / fastest))
    return sorted(ran, key=lambda row: row.median_ms or 0.0) + others


def compared_table(rows: Sequence[Compared], markdown: bool) -> list[str]:
    """Lines of a table of the engines that ran, and a sentence for every other one."""
    ran = [
        (f"{row.engine}, {row.precision}", f"{row.median_ms:.1f}", f"{row.p90_ms:.1f}", f"{row.times_fastest:.2f}",
         f"{row.peak_mib:.0f}")
        for row in rows if not row.problem
    ]  # fmt: skip
    table = Table(("network in", "median ms", "p90", "× the fastest", "peak MiB"), markdown, first=24).lines(ran)
    bullet = "- " if markdown else ""
    return [*table, "", *(f"{bullet}{row.engine}, {row.precision}: {row.problem}" for row in rows if row.problem)]


def _engines(subject: Subject) -> list[str]:
    """Names of the engines that run the model's file."""
    from evitseg.loading import engine_file
    from evitseg.runtime.engines import ENGINES

    file = engine_file(subject.model)
    if file is None:
        return ["native", "torch"]
    able = [name for name, kind in ENGINES.items() if file.suffix in kind.endings]
    return [*able, "torch"] if file.suffix in (".safetensors", ".onnx") else able


def _save_stretched(source: Image.Image, size: tuple[int, int], jpeg: Path) -> None:
    source.resize(size[::-1], Image.Resampling.LANCZOS).save(jpeg, quality=95)


def _worker(subject: Subject, jpeg: Path) -> Worker:
    """A process that runs `work`. Raises: EngineError if the model cannot be loaded."""
    # With this process's search path, because that of `python -c` begins with the current folder.
    code = f"import sys; sys.path[:] = {sys.path!r}; from evitseg.profiling.bench import work; work(*sys.argv[1:])"
    command = [sys.executable, "-c", code, json.dumps(asdict(subject)), str(jpeg)]
    return Worker(
        command, f"{subject.model or 'the bundled model'} in {subject.engine or 'its default engine'}"
    ).begun()


def work(subject: str, jpeg: str) -> None:
    """Serve the requests "network" and "end to end" in a worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the process that started it
    try:
        segment = Subject(**json.loads(subject)).segmenter
    except EvitsegError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    mask = Path(jpeg).with_name("mask.png")
    pixels: list[NDArray[np.uint8]] = []

    def network() -> None:
        if not pixels:  # during warm-up
            pixels.append(segment.manifest.preprocess.apply(read_image(jpeg), segment.size)[None])
        segment.engine(pixels[0])

    def end_to_end() -> None:
        segment(jpeg).save(mask)

    serve({"network": network, "end to end": end_to_end}, asdict(segment.info) | {"runs": str(segment.info)})
