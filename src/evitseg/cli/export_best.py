"""evitseg export --to best: every format tried on this machine."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitseg.cli.output import Output

if TYPE_CHECKING:
    from evitseg.exporters.best import Candidate
    from evitseg.manifest import Manifest
    from evitseg.model.network import EfficientViT


def run_best(
    output: Output, network: EfficientViT, manifest: Manifest, place: Path, source: str, **options: Any
) -> None:
    """Export to the best format. `source` is the file that the network came from, which is not replaced."""
    from evitseg.exporters.best import export_best
    from evitseg.exporters.formats import FORMATS, format_of
    from evitseg.system.files import check_not_input

    form = format_of(place)
    stem = place if form is None else place.with_name(place.name.removesuffix(form.ending))
    if stem.suffix in (".pt", ".pth", ".safetensors"):
        stem = stem.with_suffix("")
    for each in FORMATS.values():  # any of them may be the best
        check_not_input(each.name(stem), [source])
    path, best, tried = export_best(network, manifest, stem, **options)
    tried = sorted(tried, key=lambda candidate: candidate.median_ms)
    output.content = {"file": str(path), "best": _entry(best), "tried": [_entry(candidate) for candidate in tried]}
    _show_tried(output, tried, best)
    failed = sorted((one.problem, one.to) for one in tried if one.problem)
    for problem, those in groupby(failed, lambda pair: pair[0]):
        output.result(f"not measured: {', '.join(dict.fromkeys(to for _, to in those))}: {problem}")
    output.result(
        f"wrote {path} ({best.size_bytes / 1e6:.1f} MB, weights {best.weights}), the smallest of those within 3 % of "
        "the fastest"
    )
    if beside := FORMATS[best.to].files(path)[:-1]:
        output.result(f"keep next to it: {', '.join(file.name for file in beside)}")
    output.result(f"next: evitseg predict IMAGES --model {path} --engine {best.engine} --precision {best.precision}")


def _entry(candidate: Candidate) -> dict[str, Any]:
    """A candidate in JSON, where a time that was not measured is null."""
    return asdict(candidate) | {"median_ms": None if candidate.problem else candidate.median_ms}


def _show_tried(output: Output, tried: list[Candidate], best: Candidate) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    for column in ("format", "weights", "engine", "precision", "ms", "MB", "mIoU %", ""):
        table.add_column(column, justify="right" if column in ("ms", "MB", "mIoU %") else "left")
    for one in tried:
        table.add_row(
            one.to,
            one.weights,
            one.engine,
            one.precision,
            *(["", ""] if one.problem else [f"{one.median_ms:.1f}", f"{one.size_bytes / 1e6:.2f}"]),
            "" if one.miou is None else f"{one.miou:.2f}",
            "chosen" if one is best else "not measured" if one.problem else "",
        )
    output.show(table)
