"""evitseg export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import AT_LEAST_1, FILE, LABELS, pinned_model
from evitseg.cli.output import Output
from evitseg.cli.values import Names, Number, Parsed, parse_export_size

if TYPE_CHECKING:
    from evitseg.manifest import Manifest

BEST = "best"
HERE = "here"


def _formats() -> list[str]:
    from evitseg.exporters.formats import FORMATS

    return [*FORMATS, BEST]


def _number_formats() -> list[str]:
    from evitseg.exporters.formats import WEIGHTS

    return list(WEIGHTS)


@verb(
    "export",
    ("evitseg export runs/train/best.safetensors", "An ONNX file next to the checkpoint."),
    (
        "evitseg export best.safetensors --to litert --size 512x512 --int8 data/ --out phone.tflite",
        "8-bit weights for a phone, calibrated and scored on your images.",
    ),
    (
        "evitseg export best.safetensors --to litert --size 512x512 --w8a8 data/ --out npu.tflite",
        "Integers only, for an NPU.",
    ),
    (
        "evitseg export best.safetensors --to best --data data/",
        "Try every format on this machine and keep the fastest.",
    ),
)
@click.argument(
    "checkpoint",
    metavar="CHECKPOINT",
    help="A checkpoint (.safetensors, .pt), our .onnx, the name of a bundled or published model, or hf://owner/name.",
)
@option(
    "--images",
    multiple=True,
    metavar="FILE",
    panel="Input",
    was={"--pictures": "0.3"},
    help="Image to compare checkpoint and exported model on; may be repeated. Default: the photograph that ships with "
    "evitseg.",
)
@option(
    "--data",
    metavar="DATA",
    panel="Input",
    help="Images with masks, as for `evitseg check`: also compare the mIoU of checkpoint and exported model on them.",
)
@option(
    "--max-drop",
    type=Number(min=0),
    metavar="POINTS",
    panel="Input",
    help="Discard the exported model if its mIoU on --data is more than this many points lower. Default: 0.5, with "
    "--w8a8 1.0.",
)
@LABELS
@option(
    "--to",
    type=Names("format", _formats),
    default="onnx",
    panel="Format",
    help="Format of the exported model; 'best' tries all of them on this machine and keeps the fastest. Default: onnx.",
)
@option(
    "--weights",
    type=Names("number format", _number_formats),
    default="float32",
    panel="Format",
    help="Number format of the stored weights; float16 halves the file, int8 reduces it to a third. Default: float32.",
)
@option("--fp16", is_flag=True, panel="Format", help="Short for --weights float16.")
@option("--int8", metavar="DATA", panel="Format", help="Short for --weights int8 --data DATA.")
@option(
    "--w8a8",
    metavar="DATA",
    panel="Format",
    help="Integers only, for NPUs: weights and activations in 8 bits, calibrated and scored on DATA. For litert and "
    "onnx, with --size HEIGHTxWIDTH.",
)
@option(
    "--size",
    type=Parsed("size", parse_export_size),
    metavar="HEIGHTxWIDTH|PIXELS|native",
    panel="Format",
    help="HEIGHTxWIDTH: the only input size of the exported model, required for litert, executorch, ncnn and coreml. "
    "PIXELS or 'native': the short side that images are resized to, if the checkpoint does not say.",
)
@option(
    "--device",
    type=Names("device", lambda: [HERE]),
    default=HERE,
    panel="Engine",
    help="Machine that --to best measures on; 'here' is the only choice.",
)
@option(
    "--threads",
    type=AT_LEAST_1,
    metavar="N",
    panel="Engine",
    help="With --to best: maximum number of threads. Default: one per physical core.",
)
@option(
    "--out", "-o", type=FILE, metavar="FILE", panel="Output", help="File to write. Default: next to the checkpoint."
)
def export_command(
    output: Output,
    checkpoint: str,
    images: tuple[str, ...],
    data: str | None,
    max_drop: float | None,
    labels: str | None,
    to: str,
    weights: str,
    fp16: bool,
    int8: str | None,
    w8a8: str | None,
    size: Any,
    device: str,
    threads: int | None,
    out: Path | None,
) -> None:
    """Convert a checkpoint to a format for other runtimes and devices.

    Every export is compared with its checkpoint on real images, and discarded if they disagree.
    """
    from dataclasses import replace

    if int8 is not None and (fp16 or weights == "float16"):
        raise click.BadParameter("cannot be combined with --fp16 or --weights float16", param_hint="--int8")
    if w8a8 is not None and (int8 is not None or fp16 or weights != "float32"):
        raise click.BadParameter("cannot be combined with --weights, --fp16 or --int8", param_hint="--w8a8")
    if data is not None and (int8 is not None or w8a8 is not None):
        raise click.BadParameter("cannot be combined with --int8 or --w8a8, which have DATA", param_hint="--data")
    if max_drop is not None and not any((data, int8, w8a8)):
        raise click.BadParameter("needs --data, --int8 or --w8a8", param_hint="--max-drop")
    if to == BEST and w8a8 is not None:
        raise click.BadParameter("does not try integer arithmetic; choose litert or onnx", param_hint="--to")
    if to == BEST and (int8 is not None or fp16 or weights != "float32"):
        raise click.BadParameter("tries every number format; leave out --weights, --fp16 and --int8", param_hint="--to")
    if to != BEST and threads is not None:
        raise click.BadParameter("applies to --to best only; leave it out", param_hint="--threads")
    stored = "w8a8" if w8a8 is not None else "int8" if int8 is not None else "float16" if fp16 else weights
    from evitseg.exporters.formats import FORMATS
    from evitseg.labels import load_labels
    from evitseg.loading import located, model_stem, network_of
    from evitseg.system.files import check_not_input

    label_space = load_labels(labels) if labels else None
    checkpoint = pinned_model(checkpoint, output) or checkpoint
    network, manifest = network_of(checkpoint, extra="export" if to == BEST else FORMATS[to].extra)
    from evitseg.exporters.export import export

    fixed = size if isinstance(size, tuple) else None
    preprocess = None
    if size is not None and fixed is None:
        preprocess = replace(manifest.preprocess, short_side=None if size == "native" else size)

    source = located(checkpoint)[0]

    def tell(sentence: str) -> None:
        output.log(f"{sentence} ...")

    if to == BEST:
        manifest = replace(
            manifest, preprocess=preprocess or manifest.preprocess, labels=label_space or manifest.labels
        )
        from evitseg.cli.export_best import run_best

        place = out or model_stem(checkpoint)
        run_best(
            output, network, manifest, place, source, size=fixed, images=images, data=data,
            max_drop=0.5 if max_drop is None else max_drop, threads=threads, tell=tell,
        )  # fmt: skip
        return
    form = FORMATS[to]
    place = out or form.name(model_stem(checkpoint))
    check_not_input(place, [source])
    path, manifest = export(
        (network, manifest),
        to,
        place,
        weights=stored,
        size=fixed,
        images=images,
        labels=label_space,
        preprocess=preprocess,
        data=w8a8 or int8 or data,
        max_drop=max_drop,
        tell=tell,
    )
    _report(output, path, form.files(path)[:-1], form.size_bytes(path), manifest)


def _report(output: Output, path: Path, beside: list[Path], size_bytes: int, manifest: Manifest) -> None:
    from dataclasses import asdict

    verification = manifest.verification
    assert verification is not None  # export verifies or raises
    output.content = {
        "file": str(path),
        "beside": [str(file) for file in beside],
        "size_bytes": size_bytes,
        "weights": manifest.weights,
        "verification": asdict(verification),
        "float16_layers": dict(manifest.float16_layers),
        "int16_tensors": list(manifest.int16_tensors),
    }
    output.result(f"wrote {path} ({size_bytes / 1e6:.1f} MB, weights {manifest.weights})")
    if beside:
        output.result(f"keep next to it: {', '.join(file.name for file in beside)}")
    other = "the quantised network" if manifest.weights in ("int8", "w8a8") else "the checkpoint"
    output.result(
        f"verified on {verification.images} images: the largest difference of a logit from {other} is "
        f"{verification.largest_difference:.1e}, and {verification.equal_pixels:.3%} of mask pixels are equal"
    )
    if verification.measured_on:
        output.result(
            f"mIoU on {verification.measured_on} images: {verification.exported_miou:.2f} %, checkpoint "
            f"{verification.checkpoint_miou:.2f} %"
        )
    if manifest.int16_tensors:
        output.result(f"{len(manifest.int16_tensors)} tensors have 16 bits (the manifest lists them), the others 8")
    for layer, cost in manifest.float16_layers.items():
        output.result(f"kept in float16: {layer} (8 bits would change the logits by {cost:.1e} of their variance)")
