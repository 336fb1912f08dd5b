"""How fast a model is on the machine at hand: the network alone, and from a picture file to a mask file."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from evitseg.errors import ConfigError
from evitseg.image import read_picture, save_mask

if TYPE_CHECKING:
    from evitseg.runtime.segmenter import Segmenter

SIZES = ((256, 256), (512, 512), (1024, 1024), (1024, 2048), (2048, 2048))
"""(height, width) of the pictures, where no others are asked for."""
WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Of one size.

    Attributes:
        height, width: of the picture, and of the network's input.
        network_ms, network_p90_ms: median and 90th percentile, uint8 picture in, logits out.
        end_to_end_ms, end_to_end_p90_ms: from a JPEG file (quality 95) to a mask's PNG file.
        turns: how many were measured of each.
        peak_mib: most memory the process has held so far; sizes are measured from small to large.
    """

    height: int
    width: int
    network_ms: float
    network_p90_ms: float
    end_to_end_ms: float
    end_to_end_p90_ms: float
    turns: int
    peak_mib: float

    @property
    def ms_per_megapixel(self) -> float:
        """Of the network alone; flat where cost grows with the number of pixels."""
        return self.network_ms / (self.height * self.width / 1e6)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ms_per_megapixel": self.ms_per_megapixel}


def bench(
    segment: Segmenter, picture: Path, sizes: Sequence[tuple[int, int]] = (), turns: int = 15
) -> Iterator[Timing]:
    """Measure one model, size by size.

    Args:
        picture: stretched to every size; what it shows matters, because boundaries cost time after the network.
        sizes: (height, width), multiples of 32; by default `SIZES`, or the only one the model takes.
        turns: after `WARM_UP` that are not counted; network and end to end alternate.

    Raises: ConfigError for a size that the model does not take, PictureError.
    """
    from evitseg.image import check_sides
    from evitseg.runtime.segmenter import Segmenter

    fixed = segment.manifest.preprocess.fixed
    segment = Segmenter(segment.engine, None if fixed else "native")
    source = Image.fromarray(read_picture(picture))
    with tempfile.TemporaryDirectory() as folder:
        jpeg, png = Path(folder) / "picture.jpg", Path(folder) / "mask.png"
        chosen = sizes or ([fixed] if fixed else SIZES)
        for height, width in sorted(map(check_sides, chosen), key=lambda sides: sides[0] * sides[1]):
            if fixed and fixed != (height, width):
                raise ConfigError(f"this model takes pictures of {fixed[0]}x{fixed[1]} (height x width) and no others.")
            source.resize((width, height), Image.Resampling.LANCZOS).save(jpeg, quality=95)
            pixels = segment.manifest.preprocess.apply(read_picture(jpeg), segment.size)[None]

            def network() -> None:
                segment.engine(pixels)  # noqa: B023  # called before the next size

            def end_to_end() -> None:
                read = read_picture(jpeg)
                save_mask(segment.mask(read), png, segment.labels)

            alone, whole = (_median_and_p90(times) for times in _alternately(network, end_to_end, turns))
            yield Timing(pixels.shape[1], pixels.shape[2], *alone, *whole, turns, peak_mib())


def _alternately(one: Callable[[], None], other: Callable[[], None], turns: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARM_UP + turns):
        for work, times in zip((one, other), taken, strict=True):
            start = time.perf_counter()
            work()
            if turn >= WARM_UP:
                times.append(1000 * (time.perf_counter() - start))
    return taken


def _median_and_p90(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    return statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")[-1]


def peak_mib() -> float:
    """Most memory this process ever held; on Linux without what its parent held when it began, which getrusage adds."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    except OSError:
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
