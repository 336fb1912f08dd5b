"""Make the bundled model: export our checkpoint, measure it on CamVid test, write the file and its card.

    python scripts/bundle.py CHECKPOINT CAMVID
    python scripts/bundle.py --measure CAMVID    measure the exported model again, with what this processor computes

The card and the manifest contain the same numbers, measured with the runtime as `evitseg predict` uses it.
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
    """The accuracy on CamVid test, measured with the runtime."""
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
    """The model card, made from the manifest."""
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

## Training

{fill(manifest.training.data)}.

{fill(f"Recipe: {manifest.training.recipe}")}.

## Accuracy

{accuracy.data}, {accuracy.images} images: {accuracy.protocol}.
Measured on the masks that this package writes, with {accuracy.settings["engine"]} on {processors};
IoU in percent by precision of the arithmetic. The default is bfloat16 if the processor supports it, otherwise the
engine's own choice. The weights are stored as float32 because float16 weights cost an earlier model 0.1 points in
bfloat16 arithmetic.

| class | {header} |
| --- |{" --- |" * len(manifest.accuracy)}
{rows}
| **mean** | {means} |

The recipe was chosen on training images held out, not on this split (`docs/results/camvid.md`). The working size was
chosen on this split with an earlier model, between sizes that differ by a few tenths of a point
(`docs/results/working-size.md`).

## Limits

- The training images show streets from a vehicle, in daylight, in one English city and, through the published
  weights, in 50 German and neighbouring cities. They show no night, rain, snow, indoor scene, aerial view or other
  continent.
- Thin and rare classes are its weakness: see pole and sign in the table. It distinguishes pavement from road by the
  kerb; a coloured cycle lane or a paved crossing may become either.
- There is no class for "something else": every pixel becomes one of the {len(manifest.labels.classes)} classes. An
  animal, a bin or a pram gets the class that looks most similar.
- Do not use it for anything where a wrong pixel can harm somebody.

## Licence

{fill(manifest.training.licence)}. The images are not part of this package.

`scripts/bundle.py` writes this card from the manifest inside the exported model (`evitseg info {manifest.name}`).
"""


def measured(model_file: Path, camvid: Path, before: tuple[Accuracy, ...]) -> tuple[Accuracy, ...]:
    """The accuracy in every precision; precisions that this processor lacks keep their old numbers."""
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
    parser.add_argument("--measure", action="store_true", help="keep the exported model, and measure it again")
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
