"""What a run of predict did: results, failures and skipped files, reported as they come and summed up at the end."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from evitseg.cli.command import fail
from evitseg.cli.failures import sentence_of

if TYPE_CHECKING:
    from evitseg.cli.output import Output
    from evitseg.engine import EngineInfo
    from evitseg.labels import LabelSpace
    from evitseg.manifest import Manifest
    from evitseg.video import VideoResult

HAS_RESULTS = "they already have results"


@dataclass
class ImageEntry:
    """An image in the JSON of predict. Every mode gives every key; docs/reference/json.md describes them.

    Attributes:
        size: (height, width) of the mask.
        fractions: fraction of the pixels per class that occurs.
        nodata: fraction of the pixels without data; all fractions add up to 1.
        verification: what --verify measured.
    """

    image: str
    mode: str
    mask: str
    size: tuple[int, int]
    fractions: dict[str, float] = field(default_factory=dict)
    nodata: float = 0.0
    overlay: str | None = None
    polygons: str | None = None
    context: str | None = None
    resumed_bands: int = 0
    verification: dict[str, bool | int] | None = None


class Outcome:
    """Collects what becomes of every input.

    Without --json no result is stored, so that a folder may have any number of images.

    Attributes:
        labels: the model's classes; None before a model was loaded.
    """

    def __init__(self, output: Output, names: dict[str, str] | None = None) -> None:
        self.output = output
        self.images_done = self.videos_done = 0
        self._names = names or {}
        self._images: list[dict[str, Any]] = []
        self._videos: list[dict[str, Any]] = []
        self._failed: list[dict[str, str]] = []
        self._failed_inputs: set[str] = set()
        self._skipped: list[dict[str, str]] = []
        self._partly = 0
        self.labels: LabelSpace | None = None
        output.content |= {"model": None, "source": None, "engine": None, "annotations": None}
        self._update()

    def _update(self) -> None:
        """Fill in the JSON, so that it is complete whenever the verb ends."""
        self.output.content |= {
            "images": self._images,
            "videos": self._videos,
            "failed": self._failed,
            "skipped": self._skipped,
            "counts": {
                "images": self.images_done,
                "videos": self.videos_done,
                "failed": len(self._failed_inputs),
                "skipped": len(self._skipped),
            },
        }

    def name(self, source: object) -> str:
        """An input as the person named it; standard input is read through a temporary file."""
        return self._names.get(str(source), str(source))

    def runs_on(self, manifest: Manifest, engine: EngineInfo) -> None:
        """Record which model and engine segment the images; the first of several is reported."""
        self.labels = manifest.labels
        if self.output.content["model"] is None:
            self.output.content |= {"model": manifest.name, "engine": str(engine)}

    def comes_from(self, model: str | None) -> None:
        """Record the commit and the file of a model on the hub."""
        from evitseg.system.hub import is_hub_name

        self.output.content["source"] = model if is_hub_name(model) else None

    def fail(self, source: object, error: object) -> None:
        """Record an input that was not segmented, or not completely."""
        sentence = str(error)
        for file, name in self._names.items():
            sentence = sentence.replace(file, name)
        name = self.name(source)
        sentence = sentence if name in sentence else f"{name}: {sentence}"
        self._failed.append({"input": name, "error": sentence})
        self._failed_inputs.add(name)
        self.output.error(sentence)
        self._update()

    def has_failed(self, source: object) -> bool:
        """Whether an input was not segmented, or not completely."""
        return self.name(source) in self._failed_inputs

    def skip(self, source: object, reason: str) -> None:
        """Record a skipped file; the summary counts it by its reason."""
        self._skipped.append({"input": self.name(source), "reason": reason})
        self._update()

    def skipped(self, reason: str) -> int:
        """Number of files skipped for this reason."""
        return sum(each["reason"] == reason for each in self._skipped)

    def image(self, entry: ImageEntry) -> None:
        entry.image, entry.mask = self.name(entry.image), self.name(entry.mask)
        self.images_done += 1
        self._partly += entry.image in self._failed_inputs
        if self.output.as_json:
            self._images.append(asdict(entry))
        self._update()

    def video(self, result: VideoResult) -> None:
        self.videos_done += 1
        if self.output.as_json:
            content = result.to_dict()
            self._videos.append({"video": content.pop("source"), "mode": "video"} | content)
        self._update()

    @contextlib.contextmanager
    def attempt(self, source: object) -> Iterator[None]:
        """Report whatever goes wrong with one input; the others are still segmented."""
        try:
            yield
        except Exception as error:  # one input must never stop the others
            self.fail(source, sentence_of(error))

    def report_skipped(self) -> None:
        """Print how many files were skipped, by reason."""
        for reason, count in Counter(each["reason"] for each in self._skipped).items():
            if reason == HAS_RESULTS:
                self.output.note(f"{count} {'inputs have' if count > 1 else 'input has'} results already; skipped.")
            else:
                self.output.note(f"{count} {'files are' if count > 1 else 'file is'} skipped: {reason}.")

    def finish(self) -> None:
        """Print the summary. Raises: Exit if an input failed."""
        if not self._failed:
            return
        count = len(self._failed_inputs)
        done = f"images done: {self.images_done}" + (f", videos: {self.videos_done}" if self.videos_done else "")
        if count - self._partly + self.images_done + self.videos_done > 1:
            self.output.error(f"{count} of the inputs failed; {done}.")
        fail()
