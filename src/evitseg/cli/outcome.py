"""What a run of predict did: results, failures and skipped files, told as they come and summed up at the end."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import typer

from evitseg.cli.console import FAILED, complain, note, sentence_of

DONE = "they have their results"


class Outcome:
    """Collects what becomes of every input.

    Without --json no result is kept, so that a folder may have any number of images.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.about: dict[str, str] = {}
        self.images_done = self.videos_done = 0
        self._images: list[dict[str, Any]] = []
        self._videos: list[dict[str, Any]] = []
        self._failed: list[dict[str, str]] = []
        self._failed_inputs: set[str] = set()
        self._skipped: list[dict[str, str]] = []
        self._partly = 0

    def fail(self, source: object, error: object) -> None:
        """An input that was not done, or not whole."""
        sentence = str(error) if str(source) in str(error) else f"{source}: {error}"
        self._failed.append({"input": str(source), "error": sentence})
        self._failed_inputs.add(str(source))
        complain(sentence)

    def skip(self, source: object, reason: str) -> None:
        """A file that was left out; the summary counts it by its reason."""
        self._skipped.append({"input": str(source), "reason": reason})

    def skipped(self, reason: str) -> int:
        """How many files were left out for this reason."""
        return sum(each["reason"] == reason for each in self._skipped)

    def image(self, result: dict[str, Any]) -> None:
        self.images_done += 1
        self._partly += result["image"] in self._failed_inputs
        if self.as_json:
            self._images.append(result)

    def video(self, result: dict[str, Any]) -> None:
        self.videos_done += 1
        if self.as_json:
            self._videos.append(result)

    @contextlib.contextmanager
    def attempt(self, source: object) -> Iterator[None]:
        """Whatever goes wrong with one input is told, and the others go on."""
        try:
            yield
        except Exception as error:  # one input must never stop the others
            self.fail(source, sentence_of(error))

    def tell_skipped(self) -> None:
        """How many files were left out, by reason."""
        for reason, count in Counter(each["reason"] for each in self._skipped).items():
            if reason == DONE:
                note(f"{count} images have their results and are left out.", self.as_json)
            else:
                note(f"{count} {'files are' if count > 1 else 'file is'} left out: {reason}.", self.as_json)

    def finish(self) -> None:
        """Print the summary. Raises: Exit where an input failed."""
        if self.as_json:
            content: dict[str, Any] = {**self.about, "images": self._images}
            if self._videos:
                content["videos"] = self._videos
            print(json.dumps(content | {"failed": self._failed, "skipped": self._skipped}, indent=2))
        if self._failed:
            count = len(self._failed_inputs)
            done = f"images done: {self.images_done}" + (f", videos: {self.videos_done}" if self.videos_done else "")
            if count - self._partly + self.images_done + self.videos_done > 1:
                complain(f"{count} of the inputs failed; {done}.")
            raise typer.Exit(FAILED)
