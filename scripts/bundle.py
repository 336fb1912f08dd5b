"""Make the bundled model: export a checkpoint, evaluate it on CamVid's test split, and write the model and its card.

    python scripts/bundle.py CHECKPOINT CAMVID
    python scripts/bundle.py --measure CAMVID    evaluate the present model again, in every precision of this CPU

The card and the manifest hold the same numbers, measured with the runtime as `evitseg eval` measures them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from textwrap import fill as _fill

from evitseg.bundled import DEFAULT_MODEL
from evitseg.engine import PRECISIONS, Precision
from evitseg.errors import DatasetError, EngineError
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
    recipe="the average of two runs from the published B0 (`evitseg train`, recipes camvid-transfer and "
    "camvid-transfer-distilled, seeds 1 and 2), each mixed with 0.2 of the published weights; docs/results/camvid.md",
)
PREPROCESS = Preprocess(short_side=720, max_enlarge=2.0)
PROTOCOL = "11 classes, void not counted, one confusion matrix over the split, whole image, single scale, no flip"


def fill(text: str) -> str:
    return _fill(text, 118)


def measure(model: Path, camvid: Path, precision: Precision) -> Accuracy:
    """Accuracy on CamVid's test split with the runtime, as `evitseg eval` measures it."""
    segment = load(model, precision=precision)
    report = evaluate(segment, camvid, split="test")
    if report.skipped:
        raise DatasetError(report.skipped[0])
    names = segment.labels.names
    return Accuracy(
        data="CamVid test, 480×360",
        protocol=PROTOCOL,
        miou=round(100 * report.miou, 2),
        iou={name: round(100 * value, 2) for name, value in zip(names, report.iou.tolist(), strict=True)},
        images=len(report.images),
        settings={
            "engine": segment.info.engine, "precision": segment.info.precision, "processor": segment.info.device,
        },
    )  # fmt: skip


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

## Training data

{fill(manifest.training.data)}.

{fill(f"Recipe: {manifest.training.recipe}")}.

## Accuracy

{accuracy.data}, {accuracy.images} images: {accuracy.protocol}.
IoU in percent by numerical precision, of the masks that this package writes with {accuracy.settings["engine"]} on
{processors}. The default is bfloat16 if the CPU supports it, else the engine's choice. The weights are stored as
float32 because float16 cost an earlier model 0.1 points in bfloat16 arithmetic.

| class | {header} |
| --- |{" --- |" * len(manifest.accuracy)}
{rows}
| **mean** | {means} |

The recipe was chosen on held-out training images, not on this split (`docs/results/camvid.md`). The working size was
chosen on this split with an earlier model, between sizes that differ by a few tenths of a point
(`docs/results/working-size.md`).

## Limits

- The training images show streets from a vehicle in daylight, in one English city and, through the published weights,
  in 50 German and neighbouring cities. The model is untested at night, in rain or snow, indoors, from above, and on
  other continents.
- Thin and rare objects are its weakness: see pole and sign in the table. It distinguishes pavement from road by the
  kerb, so a coloured cycle lane or a paved crossing may become either.
- There is no class for other objects: every pixel becomes one of the {len(manifest.labels.classes)} classes. An animal,
  a bin or a pram gets the most similar class.
- Do not use it where a wrong pixel can hurt somebody.

## Licence

{fill(manifest.training.licence)}. The images are not part of this package.

`scripts/bundle.py` generates this card from the manifest of the model (`evitseg info {manifest.name}`).
"""


def measure_all(model: Path, camvid: Path, before: tuple[Accuracy, ...]) -> tuple[Accuracy, ...]:
    """Accuracy in every precision; the previous value for a precision that this CPU does not support."""
    found = {accuracy.settings["precision"]: accuracy for accuracy in before}
    for precision in PRECISIONS:
        if precision != "auto":
            try:
                found[precision] = measure(model, camvid, precision)
            except EngineError as error:
                print(f"not measured: {error}")
    return tuple(found[precision] for precision in PRECISIONS if precision in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("camvid", type=Path, help="folder with test/ and testannot/")
    parser.add_argument("--measure", action="store_true", help="only evaluate the present model again")
    arguments = parser.parse_args()
    path, before = FOLDER / f"{DEFAULT_MODEL}.onnx", tuple[Accuracy, ...]()
    if arguments.measure:
        manifest = read_manifest(path)
        before = manifest.accuracy
    else:
        checkpoint = load_checkpoint(arguments.checkpoint, load_labels("camvid"), PREPROCESS)
        path, manifest = export(checkpoint, "onnx", path, name=DEFAULT_MODEL, training=TRAINING)
    manifest = replace(manifest, training=TRAINING, accuracy=measure_all(path, arguments.camvid, before))
    set_onnx_manifest(path, manifest)
    with replacing(FOLDER / f"{DEFAULT_MODEL}.md") as file:
        file.write(card(manifest, path.stat().st_size).encode())
    print(card(manifest, path.stat().st_size))


if __name__ == "__main__":
    main()
