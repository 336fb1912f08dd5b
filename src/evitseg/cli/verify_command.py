"""evitseg verify."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evitseg.cli.command import option, verb
from evitseg.cli.options import PRECISION, THREADS, pinned_model
from evitseg.cli.output import Output
from evitseg.cli.values import Names, Parsed, not_empty
from evitseg.errors import EngineError, WeightsError

if TYPE_CHECKING:
    from evitseg.engine import Precision
    from evitseg.runtime.device_check import Checked, RanOn


def _engines() -> list[str]:
    from evitseg.runtime.engines import ENGINES

    return list(ENGINES)


@verb(
    "verify",
    ("evitseg verify model.onnx", "Does this machine compute what the file says it must?"),
    ("evitseg verify b0-camvid", "The bundled model, in evitseg's own engine."),
    ("evitseg verify model.xml --device NPU", "The same on the NPU, in OpenVINO."),
    ("evitseg verify model.onnx --engine onnxruntime --device CUDA --json", "For a program, in ONNX Runtime on a GPU."),
)
@click.argument(
    "model", metavar="MODEL", help="An exported model, also on the Hugging Face Hub (hf://owner/name), or b0-camvid."
)
@option(
    "--engine",
    type=Names("engine", _engines),
    panel="Engine",
    help="Inference engine. Default: native for b0-camvid, .onnx and .evit files, otherwise the engine of the format.",
)
@option(
    "--device",
    type=Parsed("device", not_empty),
    metavar="CPU|GPU|NPU|NAME",
    panel="Engine",
    help="Device to run on. NAME is the engine's own, such as HETERO:NPU,CPU for OpenVINO or CUDA for ONNX Runtime. "
    "Default: CPU.",
)
@PRECISION
@THREADS
def verify_command(
    output: Output, model: str, engine: str | None, device: str | None, precision: Precision, threads: int | None
) -> None:
    """Check that an exported model, or the bundled one, gives the right logits on this machine.

    Its file describes a small image and the logits that the network must give for it. This command runs the
    image, compares the logits, and reports the device that computed them and the operators that fell back to another
    one. Exit status 1 if the logits disagree.
    """
    from evitseg.runtime.device_check import check_on_device

    file = _file(model, output)
    checked = check_on_device(file, engine, device, precision, threads)
    agreement = checked.agreement
    output.content = _content(file, checked)
    _show(output, model, checked)
    if not agreement.agrees:
        raise EngineError(
            f"{model}: {checked.info.engine} on {checked.placement.device} disagrees with the logits that the file "
            "says it must give; do not use it there, and try another precision, engine or device."
        )


def _file(model: str, output: Output) -> Path:
    """The file of an exported or bundled model. Raises: WeightsError for any other."""
    from evitseg.bundled import bundled_models
    from evitseg.loading import EXPORTED_ENDINGS, model_file

    file = model_file(pinned_model(model, output))
    if file is None:
        raise WeightsError(
            f"{model}: only exported models ({', '.join(EXPORTED_ENDINGS)}) and {' and '.join(bundled_models())} can "
            "be verified; export it first."
        )
    return file


def _content(file: Path, checked: Checked) -> dict[str, Any]:
    agreement, info, placement = checked.agreement, checked.info, checked.placement
    return {
        "file": str(file),
        "model": checked.manifest.name,
        "agrees": agreement.agrees,
        "largest_difference": agreement.largest_difference if math.isfinite(agreement.largest_difference) else None,
        "tolerance": agreement.tolerance,
        "equal_classes": agreement.equal_fraction,
        "min_equal": agreement.min_equal,
        "places": agreement.places,
        "size": list(checked.size),
        "engine": f"{info.engine} {info.version}",
        "precision": info.precision,
        "device": placement.device,
        "fell_back": placement.fell_back,
        "source": placement.source,
    }


def _show(output: Output, model: str, checked: Checked) -> None:
    agreement, info = checked.agreement, checked.info
    verdict = "agrees" if agreement.agrees else "DISAGREES"
    difference = f"{agreement.largest_difference:.1e}" if math.isfinite(agreement.largest_difference) else "not finite"
    height, width = checked.size
    output.result(f"{model}: {verdict} on an image of {height}x{width}", style="bold")
    output.result(f"largest difference: {difference} of the largest logit (at most {agreement.tolerance:g})")
    output.result(
        f"equal classes: {agreement.equal_places} of {agreement.places} places (at least {agreement.min_equal:.0%})"
    )
    output.result(f"engine: {info.engine} {info.version}, precision: {info.precision}")
    output.result(f"device: {checked.placement.device}")
    output.result(f"fell back: {_fell_back(checked.placement)}")


def _fell_back(placement: RanOn) -> str:
    if placement.fell_back is None:
        return f"unknown ({placement.source})"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(placement.fell_back.items()))
    return f"{kinds or 'no operator'} ({placement.source})"
