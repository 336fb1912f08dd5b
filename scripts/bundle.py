"""Make the bundled model from a checkpoint: evaluate it on CamVid's test split, and write the model and its card.

    python scripts/bundle.py CHECKPOINT CAMVID
    python scripts/bundle.py --measure CAMVID    evaluate the present model again, in every precision of this CPU

The card and the manifest hold the same numbers, measured with the runtime as `evitseg eval` measures them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from textwrap import fill as _fill

from safetensors import safe_open

from evitseg._version import __version__
from evitseg.bundled import DEFAULT_MODEL
from evitseg.engine import PRECISIONS, Precision
from evitseg.errors import DatasetError, EngineError
from evitseg.evaluation.evaluate import evaluate
from evitseg.exporters.verify import self_check_of
from evitseg.labels import load_labels
from evitseg.loading import load
from evitseg.manifest import METADATA_KEY, Accuracy, Manifest, Training, parse_manifest
from evitseg.model.checkpoints import load_checkpoint, save_checkpoint
from evitseg.model.engine import TorchEngine
from evitseg.model.fold import with_folded_norms
from evitseg.preprocess import Preprocess
from evitseg.runtime.engines import open_engine
from evitseg.system.files import replacing

FOLDER = Path(__file__).parents[1] / "src/evitseg/bundled"

TRAINING = Training(
    data="CamVid train+val, 468 images (Brostow et al. 2009), from published weights trained on Cityscapes "
    "(Cordts et al. 2016) and ImageNet-1k",
    licence="Apache-2.0; CamVid and Cityscapes were published for research, and Cityscapes asks for non-commercial use",
    recipe="a weighted mean of weights with folded batch norms: 0.4 of four runs on train and val, 0.2 of two runs on "
    "a part of train, 0.1 of the model bundled before, 0.3 of the published weights; then a constant added to the "
    "logit of each class, chosen on held-out images; docs/results/camvid.md",
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
    names = manifest.labels.names
    classes = f"EfficientViT-B0 for street scenes, {len(names)} classes: {', '.join(names)}."
    cost = (
        f"{manifest.cost.parameters / 1e6:.2f} M parameters, {manifest.cost.macs(1024, 2048) / 1e9:.1f} G "
        f"multiply-adds at 1024×2048; {size_bytes / 1e6:.1f} MB, weights stored as {manifest.weights}."
    )
    about = (
        f"IoU in percent by numerical precision, of the masks that this package writes on {processors}. In float32 "
        "every processor with fused multiply-add gives the same masks."
    )
    means = " | ".join(f"**{measured.miou:.2f}**" for measured in manifest.accuracy)
    return f"""# {manifest.name}

{fill(classes)}
{fill(cost)}

## Training data

{fill(manifest.training.data)}.

{fill(f"Recipe: {manifest.training.recipe}")}.

## Accuracy

{fill(f"{accuracy.data}, {accuracy.images} images: {accuracy.protocol}.")}

{fill(about)}

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
- On street photographs of other cameras and cities (99 of LabelMeFacade, six common classes) it has a mean IoU of
  0.72, the published weights 0.68 (`docs/results/camvid.md`). These photographs also chose some of its settings. It
  takes a third of their pavement for road.
- Thin and rare objects are its weakness: see pole and sign in the table. It distinguishes pavement from road by the
  kerb, so a coloured cycle lane or a paved crossing may become either.
- There is no class for other objects: every pixel becomes one of the {len(manifest.labels.classes)} classes. An animal,
  a bin or a pram gets the most similar class.
- Do not use it where a wrong pixel can hurt somebody.

## Licence

{fill(f"{manifest.training.licence}. The images are not part of this package.")}

`scripts/bundle.py` generates this card from the manifest in the model (`evitseg info {manifest.name}`).
"""


def measure_all(model: Path, camvid: Path) -> tuple[Accuracy, ...]:
    """Accuracy in every precision that the default engine has on this CPU."""
    found = []
    for precision in PRECISIONS[1:]:
        try:
            found.append(measure(model, camvid, precision))
        except EngineError as error:
            print(f"not measured: {error}")
    return tuple(found)


def stored_sha256(path: Path) -> str:
    """The hash in a checkpoint's manifest: of the file that this one was made from."""
    with safe_open(path, "np") as file:
        return parse_manifest(file.metadata()[METADATA_KEY], path).checkpoint_sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("camvid", type=Path, help="folder with test/ and testannot/")
    parser.add_argument("--measure", action="store_true", help="only evaluate the present model again")
    arguments = parser.parse_args()
    path = FOLDER / f"{DEFAULT_MODEL}.safetensors"
    if arguments.measure:
        network, manifest = load_checkpoint(path)
        manifest = replace(manifest, checkpoint_sha256=stored_sha256(path))
    else:
        network, manifest = load_checkpoint(arguments.checkpoint, load_labels("camvid"), PREPROCESS)
    # Its batch norms only add biases, so that what the file holds is what runs.
    network = with_folded_norms(network)
    manifest = replace(manifest, name=DEFAULT_MODEL, training=TRAINING, accuracy=(), evitseg_version=__version__)
    save_checkpoint(network, manifest, path)
    native, torch = open_engine(path, "native", "float32"), TorchEngine(network, manifest)
    check = self_check_of(native, torch, network, manifest)
    manifest = replace(manifest, accuracy=measure_all(path, arguments.camvid), self_check=check)
    save_checkpoint(network, manifest, path)
    with replacing(FOLDER / f"{DEFAULT_MODEL}.md") as file:
        file.write(card(manifest, path.stat().st_size).encode())
    print(card(manifest, path.stat().st_size))


if __name__ == "__main__":
    main()
