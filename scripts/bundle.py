"""Make the bundled exported model: convert our checkpoint, measure it on CamVid test, write both into the package.

    python scripts/bundle.py CHECKPOINT CAMVID
    python scripts/bundle.py --measure CAMVID    measure the exported model again, with what this processor computes

The card and the manifest hold the same numbers, measured here with the runtime as `evitseg predict` uses it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from textwrap import fill as _fill

from evitseg.bundled import DEFAULT_MODEL
from evitseg.data.lists import Pair
from evitseg.engine import PRECISIONS, Precision
from evitseg.errors import EngineError
from evitseg.evaluation.evaluate import evaluate
from evitseg.exporters.export import export
from evitseg.exporters.onnx import set_onnx_manifest
from evitseg.labels import load_labels
from evitseg.loading import load
from evitseg.manifest import Accuracy, Manifest, Training
from evitseg.model.checkpoints import load_checkpoint
from evitseg.preprocess import Preprocess
from evitseg.runtime.openvino_engine import read_manifest
from evitseg.system.files import replacing

FOLDER = Path(__file__).parents[1] / "src/evitseg/bundled"

TRAINING = Training(
    data="CamVid train+val, 468 images (Brostow et al. 2009), from published weights trained on Cityscapes "
    "(Cordts et al. 2016) and ImageNet-1k",
    licence="Apache-2.0; CamVid and Cityscapes were published for research, and Cityscapes asks for non-commercial use",
    recipe="the mean of two runs from the published B0 (`evitseg train`, recipes camvid-transfer and "
    "camvid-transfer-taught, seeds 1 and 2), each with two tenths of the published weights mixed in; docs/results.md",
)
PREPROCESS = Preprocess(short_side=720, max_enlarge=2.0)
PROTOCOL = "11 classes, void not counted, one confusion matrix over the split, whole image, single scale, no flip"


def fill(text: str) -> str:
    return _fill(text, 118)


def measure(model_file: Path, camvid: Path, precision: Precision) -> Accuracy:
    """CamVid test through the runtime."""
    segment = load(model_file, precision=precision)
    images = sorted((camvid / "test").iterdir())
    pairs = [Pair(image, camvid / "testannot" / f"{image.stem}.png") for image in images]
    report = evaluate(segment, pairs, segment.labels)
    info = segment.info
    return Accuracy(
        data="CamVid test, 480×360",
        protocol=PROTOCOL,
        miou=round(100 * report.miou, 2),
        iou={name: round(100 * float(value), 2) for name, value in zip(report.labels.names, report.iou, strict=True)},
        images=len(report.images),
        settings={"engine": info.engine, "precision": info.precision, "processor": info.device},
    )


def card(manifest: Manifest, size_bytes: int) -> str:
    """The model card, from the manifest."""
    accuracy = manifest.accuracy[0]
    header = " | ".join(measured.settings["precision"] for measured in manifest.accuracy)
    rows = "\n".join(
        f"| {name} | {' | '.join(f'{measured.iou[name]:.1f}' for measured in manifest.accuracy)} |"
        for name in manifest.labels.names
    )
    processors = " and ".join(dict.fromkeys(m.settings["processor"] for m in manifest.accuracy))
    means = " | ".join(f"**{measured.miou:.2f}**" for measured in manifest.accuracy)
    return f"""# {manifest.name}

EfficientViT-B0 for street scenes, {len(manifest.labels.classes)} classes:
{", ".join(manifest.labels.names)}.
{manifest.cost.parameters / 1e6:.2f} M parameters, {manifest.cost.macs(1024, 2048) / 1e9:.1f} G multiply-adds at
1024×2048; {size_bytes / 1e6:.1f} MB, weights stored as {manifest.weights}.

## What it was trained on

{fill(manifest.training.data)}.

{fill(f"Recipe: {manifest.training.recipe}")}.

## How good it is

{accuracy.data}, {accuracy.images} images: {accuracy.protocol}.
Measured on the masks that this package writes, with {accuracy.settings["engine"]} on {processors};
IoU in percent by precision of the arithmetic. The default takes bfloat16 where the processor has it, else what
the engine chooses. The weights are stored as float32 because float16 cost an earlier model 0.1 points in bfloat16
arithmetic.

| class | {header} |
| --- |{" --- |" * len(manifest.accuracy)}
{rows}
| **mean** | {means} |

The recipe was chosen on training images held out, not on this split (`docs/results/camvid.md`). The working size was
chosen on this split with an earlier model, between sizes that differ by a few tenths of a point
(`docs/results/working-size.md`).

## Limits

- It knows streets seen from a vehicle in daylight in one English city, and through the published weights 50 German
  and neighbouring cities. Night, rain, snow, indoor images, images from above, and other continents are outside.
- Thin and rare things are its weakness: see pole and sign in the table. Pavement and road are told apart by their
  kerb; a coloured cycle lane or a paved crossing may go to either.
- There is no class for "something else": whatever it sees becomes one of the {len(manifest.labels.classes)}. An
  animal, a bin or a pram is given the class that looks nearest.
- Do not use it where a wrong pixel can hurt somebody.

## Licence

{fill(manifest.training.licence)}. The images are not part of this package.

`scripts/bundle.py` writes this card from the manifest inside the exported model (`evitseg info {manifest.name}`).
"""


def measured(model_file: Path, camvid: Path, before: tuple[Accuracy, ...]) -> tuple[Accuracy, ...]:
    """In every precision; where this processor has none, as it was."""
    found = {accuracy.settings["precision"]: accuracy for accuracy in before}
    for precision in PRECISIONS:
        if precision != "auto":
            try:
                found[precision] = measure(model_file, camvid, precision)
            except EngineError as error:
                print(f"not measured: {error}")
    return tuple(found[precision] for precision in PRECISIONS if precision in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("camvid", type=Path, help="folder with test/ and testannot/")
    parser.add_argument("--measure", action="store_true", help="leave the exported model's weights alone")
    arguments = parser.parse_args()
    path, before = FOLDER / f"{DEFAULT_MODEL}.onnx", tuple[Accuracy, ...]()
    if arguments.measure:
        manifest = read_manifest(path)
        before = manifest.accuracy
    else:
        checkpoint = load_checkpoint(arguments.checkpoint, load_labels("camvid"), PREPROCESS)
        path, manifest = export(checkpoint, "onnx", path, name=DEFAULT_MODEL, training=TRAINING)
    manifest = replace(manifest, accuracy=measured(path, arguments.camvid, before))
    set_onnx_manifest(path, manifest)
    with replacing(FOLDER / f"{DEFAULT_MODEL}.md") as file:
        file.write(card(manifest, path.stat().st_size).encode())
    print(card(manifest, path.stat().st_size))


if __name__ == "__main__":
    main()
