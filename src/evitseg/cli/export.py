"""evitseg export."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evitseg.cli.app import plain_errors
from evitseg.cli.options import DeviceName, FormatName, Labels, Threads, WeightsName, parse_export_size

if TYPE_CHECKING:
    from evitseg.manifest import Manifest


@plain_errors
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint (.safetensors, .pt, or our .onnx), a bundled or published model."
        ),
    ],
    to: Annotated[
        FormatName,
        typer.Option("--to", help="The kind of artefact; best: the fastest of them, tried out on this machine."),
    ] = FormatName.onnx,
    device: Annotated[DeviceName, typer.Option(help="Where --to best tries them.")] = DeviceName.here,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The file to write. (default: beside the checkpoint)",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        WeightsName,
        typer.Option(help="Number format the weights are stored in; float16 halves the file, int8 makes it a third."),
    ] = WeightsName.float32,
    fp16: Annotated[bool, typer.Option("--fp16", help="The same as --weights float16.")] = False,
    int8: Annotated[
        str | None,
        typer.Option("--int8", metavar="DATA", help="The same as --weights int8 --data DATA.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images with masks, arranged as evitseg check knows it: score checkpoint and artefact on them.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Points of mIoU that the artefact may score less than the checkpoint on DATA.")
    ] = 0.5,
    labels: Labels = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH|PIXELS|native",
            help="HEIGHTxWIDTH: the only size it takes; litert, executorch, ncnn and coreml need one. PIXELS or "
            "'native': the short side at which images go through it, where the checkpoint does not say.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", metavar="FILE", help="Verify on these. (default: the shipped photograph)", show_default=False
        ),
    ] = None,
) -> None:
    """Convert a checkpoint for a device, and keep the file only if it agrees with the checkpoint on real images."""
    from dataclasses import replace

    if int8 is not None and (fp16 or weights is WeightsName.float16):
        raise typer.BadParameter("--int8 excludes --fp16 and --weights float16")
    if to is FormatName.best and (int8 is not None or fp16 or weights is not WeightsName.float32):
        raise typer.BadParameter("--to best tries every number format; leave out --weights, --fp16 and --int8")
    if to is not FormatName.best and threads is not None:
        raise typer.BadParameter("is for --to best alone; leave it out", param_hint="--threads")
    stored = "int8" if int8 is not None else "float16" if fp16 else weights.value
    wanted = parse_export_size(size) if size is not None else None
    from evitseg.labels import load_labels
    from evitseg.loading import network_of

    label_space = load_labels(labels) if labels else None
    extras = {"litert": "litert-export", "executorch": "executorch", "ncnn": "ncnn-export", "coreml": "coreml"}
    network, manifest = network_of(checkpoint, extra=extras.get(to.value, "export"))
    from evitseg.exporters.export import export as write
    from evitseg.exporters.formats import FORMATS

    preprocess = None
    if wanted is not None and not isinstance(wanted, tuple):
        preprocess = replace(manifest.preprocess, short_side=None if wanted == "native" else wanted)

    def tell(sentence: str) -> None:
        print(f"{sentence} ...", file=sys.stderr)

    if to is FormatName.best:
        _export_best(
            network,
            replace(manifest, preprocess=preprocess or manifest.preprocess, labels=label_space or manifest.labels),
            out or Path(checkpoint),
            size=wanted if isinstance(wanted, tuple) else None,
            images=images or (),
            data=data,
            max_drop=max_drop,
            threads=threads,
            tell=tell,
        )
        return
    form = FORMATS[to.value]
    place = out or form.name(Path(checkpoint).with_suffix("") if Path(checkpoint).exists() else checkpoint)
    path, manifest = write(
        (network, manifest),
        to.value,
        place,
        weights=stored,
        size=wanted if isinstance(wanted, tuple) else None,
        images=images or (),
        labels=label_space,
        preprocess=preprocess,
        data=int8 or data,
        max_drop=max_drop,
        tell=tell,
    )
    verification = manifest.verification
    assert verification is not None  # export verifies or raises
    files = form.files(path)
    print(f"wrote {path} ({form.size_bytes(path) / 1e6:.1f} MB, weights {manifest.weights})")
    if files[:-1]:
        print(f"keep beside it: {', '.join(file.name for file in files[:-1])}")
    print(
        f"verified on {verification.images} images{' against the rounded network' * (stored == 'int8')}: "
        "largest logit difference "
        f"{verification.largest_difference:.1e}, {verification.equal_pixels:.3%} of mask pixels equal"
    )
    if verification.measured_on:
        print(
            f"scored on {verification.measured_on} images: {verification.exported_miou:.2f} % mIoU, "
            f"the checkpoint {verification.checkpoint_miou:.2f} %"
        )
    for layer, cost in manifest.float16_layers.items():
        print(f"left in float16: {layer} (rounded alone it changes the logits by {cost:.1e} of their variance)")


def _export_best(network: Any, manifest: Manifest, place: Path, **options: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from evitseg.exporters.best import export_best
    from evitseg.exporters.formats import FORMATS

    endings = [form.ending for form in FORMATS.values() if place.name.endswith(form.ending)]
    stem = place.with_name(place.name.removesuffix(endings[0])) if endings else place
    if stem.suffix in (".pt", ".pth", ".safetensors"):
        stem = stem.with_suffix("")
    path, best, tried = export_best(network, manifest, stem, **options)
    table = Table(box=None, padding=(0, 1))
    for column in ("format", "weights", "engine", "precision", "ms", "MB", "mIoU %", ""):
        table.add_column(column, justify="right" if column in ("ms", "MB", "mIoU %") else "left")
    for one in sorted(tried, key=lambda candidate: candidate.median_ms):
        table.add_row(
            one.to,
            one.weights,
            one.engine,
            one.precision,
            *(["", ""] if one.problem else [f"{one.median_ms:.1f}", f"{one.size_bytes / 1e6:.2f}"]),
            "" if one.miou is None else f"{one.miou:.2f}",
            "kept" if one is best else "not run" if one.problem else "",
        )
    Console(highlight=False).print(table)
    for problem, those in groupby(sorted((one.problem, one.to) for one in tried if one.problem), lambda pair: pair[0]):
        print(f"not run: {', '.join(dict.fromkeys(to for _, to in those))}: {problem}")
    print(f"wrote {path} ({best.size_bytes / 1e6:.1f} MB, weights {best.weights}), the smallest of those within 3 %")
    if beside := FORMATS[best.to].files(path)[:-1]:
        print(f"keep beside it: {', '.join(file.name for file in beside)}")
    print(f"run it with: evitseg predict --model {path} --engine {best.engine} --precision {best.precision} IMAGES")
