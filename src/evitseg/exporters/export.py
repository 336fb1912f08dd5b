"""Export a checkpoint to a file for a device, and verify it before it is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from evitseg._version import __version__
from evitseg.data.layouts import find_dataset
from evitseg.data.lists import Pair
from evitseg.engine import Engine
from evitseg.errors import DatasetError, ExportError, FileError, ImageError, unknown
from evitseg.evaluation.evaluate import default_split, settled_split
from evitseg.exporters.formats import FORMATS, INTEGERS, WEIGHTS
from evitseg.exporters.int8 import RANKED_ON, eight_bit
from evitseg.exporters.integer_calibration import calibrated
from evitseg.exporters.integer_graph import integer_graph
from evitseg.exporters.integer_ranges import with_ranges
from evitseg.exporters.integer_simulation import IntegerNetwork, IntegerSimulation, layer_costs
from evitseg.exporters.measured_channels import with_measured_channel_factors
from evitseg.exporters.measured_heads import with_measured_head_factors
from evitseg.exporters.verify import example_images, miou, self_check_of, verify
from evitseg.image import ImageArray
from evitseg.labels import LabelSpace
from evitseg.loading import model_stem, network_of
from evitseg.manifest import Manifest, Training, Verification
from evitseg.model.engine import TorchEngine
from evitseg.model.network import EfficientViT
from evitseg.model.state import check_numbers
from evitseg.preprocess import Preprocess
from evitseg.raster.files import read_image
from evitseg.system.files import check_not_input, temporary_folder

CALIBRATED_ON, MEASURED_ON = 32, 200
"""Maximum numbers of images, chosen evenly from all."""
MAX_DROP = {INTEGERS: 1.0}
"""Points of mIoU that an export may lose, by the number format of the weights; 0.5 for others."""


def export(
    checkpoint: str | os.PathLike[str] | tuple[EfficientViT, Manifest],
    to: str = "onnx",
    out: str | os.PathLike[str] | None = None,
    *,
    weights: str = "float32",
    size: tuple[int, int] | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    labels: LabelSpace | None = None,
    preprocess: Preprocess | None = None,
    name: str | None = None,
    training: Training | None = None,
    data: str | os.PathLike[str] | None = None,
    max_drop: float | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> tuple[Path, Manifest]:
    """Convert a checkpoint, compare the result with it on real images, and keep the file only if the two agree.

    Args:
        checkpoint: the path of a checkpoint or of an exported .onnx file, the name of a bundled or a published model,
            or a network with its manifest.
        to: a key of `FORMATS`.
        out: the file to write; None for a file next to the checkpoint, with the format's ending.
        weights: "float32"; "float16" for half the size; or "int8" for a third of the size, which needs `data`. The
            engine chooses the precision of the arithmetic in any case. "w8a8" is for hardware that computes with
            integers only: weights and activations have 8 bits, and activations of the first stages have 16 where these
            have hard-swish, unless the checkpoint was trained with --qat. It needs `data` and `size`.
        size: (height, width), in pixels, of the only images that the file takes; formats of one size need it.
        images: to verify on; none for the bundled photograph.
        labels, preprocess, name, training: replace those in the checkpoint's manifest.
        data: images with masks (see `find_dataset`). The checkpoint and the exported model are scored on val (else
            test, else all); int8 is calibrated on train (else all).
        max_drop: points of mIoU that the exported model may lose on `data`, compared with the checkpoint; None for 0.5,
            or 1.0 for w8a8.
        tell: called with a sentence before each long step.

    Returns: the file, and the manifest it carries.

    Raises: ExportError, with nothing written, if the exported model disagrees with its checkpoint; FileError,
    ImageError, WeightsError, ConfigError, MissingPackageError.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    form = FORMATS[to]
    if weights not in (*WEIGHTS, INTEGERS):
        raise unknown("number format of weights", weights, (*WEIGHTS, INTEGERS))
    if weights == INTEGERS and form.write_integers is None:
        able = " and ".join(name for name, form in FORMATS.items() if form.write_integers)
        raise ExportError(f"{to} files of evitseg have no integer arithmetic (w8a8); {able} files do.")
    if weights != INTEGERS and weights not in form.weights:
        raise ExportError(f"{to} files store weights as {' or '.join(form.weights)}, not as {weights}.")
    if weights in ("int8", INTEGERS) and data is None:
        raise ExportError(
            f"{weights} is calibrated and measured on images with masks; give their folder (data=, or --{weights} DATA "
            "on the command line)."
        )
    if isinstance(checkpoint, tuple):
        model, manifest = checkpoint
        if out is None:
            raise ExportError("a network in memory has no file name; give the file to write (out=).")
        out = Path(out)
    else:
        model, manifest = network_of(checkpoint, extra="export")
        out = Path(out) if out is not None else form.name(model_stem(checkpoint))
        check_not_input(out, [checkpoint])
    if not out.name.endswith(form.ending):
        raise ExportError(f"{out}: {to} files end in {form.ending}; name it {form.name(out.with_suffix('')).name}.")

    for file in form.files(out):
        if file.is_dir() and not (file == out and form.may_replace(file)):
            wrong = (
                "is a folder with other files"
                if form.folder
                else f"is a folder, but {out.name} needs a file of this name"
            )
            raise ExportError(f"{file}: {wrong}; give another name, or move the folder.")
    reals: list[ImageArray] = [read_image(path, manifest.reading) for path in images] or example_images()
    preprocess = preprocess or manifest.preprocess
    if size is not None:
        preprocess = replace(preprocess, fixed=size)
    if (form.one_size or weights == INTEGERS) and preprocess.fixed is None:
        height, width = preprocess.fit(reals[0].shape[:2])
        raise ExportError(
            f"{to} files {'with integers ' * (weights == INTEGERS)}take images of one size; give it (--size "
            f"HEIGHTxWIDTH), such as {height}x{width}, the size at which this model sees an image of "
            f"{reals[0].shape[0]}x{reals[0].shape[1]}."
        )
    changes = {"labels": labels, "name": name, "training": training}
    manifest = replace(
        manifest,
        weights=weights,
        preprocess=preprocess,
        float16_layers={},
        self_check=None,
        int16_tensors=(),
        evitseg_version=__version__,
        **{key: value for key, value in changes.items() if value is not None},  # type: ignore[arg-type]
    )
    check_numbers(model.state_dict(), manifest.name)
    scored = None if data is None else Scored(model, manifest, data, tell)
    expected: Engine = TorchEngine(model, manifest)
    integers: IntegerNetwork | None = None
    max_drop = MAX_DROP.get(weights, 0.5) if max_drop is None else max_drop
    ranges = manifest.activation_ranges if weights == INTEGERS else {}
    manifest = replace(manifest, activation_ranges=ranges)  # they fit these weights only
    if not ranges:
        model = with_measured_head_factors(model, preprocess, scored.calibration if scored else reals)
    if weights == "int8":
        assert scored is not None
        tell(f"rounding weights to 8 bits, with {len(scored.calibration)} images to correct them on")
        model, kept = eight_bit(model, preprocess, scored.calibration, scored.drop_of, max_drop, form.rounding)
        manifest = replace(manifest, float16_layers=kept)
        expected = TorchEngine(model, manifest)
    if weights == INTEGERS:
        assert scored is not None
        if not ranges:
            model = with_measured_channel_factors(model, preprocess, scored.calibration)
        graph = integer_graph(model, preprocess, () if ranges else None)
        if ranges:
            tell("using the ranges that the checkpoint's training with --qat has learned")
            integers = with_ranges(graph, ranges)
        else:
            tell(f"choosing the ranges of {len(graph.shapes)} tensors, with {len(scored.calibration)} images")
            integers = calibrated(graph, preprocess, scored.calibration)
        manifest = replace(manifest, int16_tensors=tuple(name for name in graph.shapes if name in graph.sixteen))
        expected = IntegerSimulation(integers, manifest)
    tell(f"converting {manifest.name} to {to}")

    temporary = out
    try:
        with temporary_folder(out.parent) as folder:
            temporary = folder / out.name
            if integers is None:
                form.write(model, manifest, temporary)
            else:
                assert form.write_integers is not None
                form.write_integers(integers, temporary)
            form.set_manifest(temporary, manifest)
            engine = (form.run if integers is None else form.run_integers)(temporary)
            verification = verify(temporary.name, engine, expected, manifest, reals, model)
            if scored is not None:
                verification = scored.added(verification, temporary.name, engine, max_drop, integers)
            check = self_check_of(engine, expected, model, manifest)
            manifest = replace(manifest, verification=verification, self_check=check)
            form.set_manifest(temporary, manifest)
            for new, final in zip(form.files(temporary), form.files(out), strict=True):
                if final.is_dir():
                    _replace_files(new, final)
                    continue
                new.replace(final)  # the model file last: without it the others mean nothing
    except FileError as error:  # names the temporary file, which the user does not know
        raise FileError(str(error).replace(os.fspath(temporary), os.fspath(out))) from error
    except OSError as error:
        raise FileError(f"{out}: cannot be written ({error.strerror or error}).") from error
    return out, manifest


def _replace_files(new: Path, old: Path) -> None:
    """Move the files of a folder into an earlier one, which keeps what no export wrote, such as .git."""
    for entry in sorted(new.iterdir()):
        place = old / entry.name
        if entry.is_dir() and place.is_dir():
            _replace_files(entry, place)
        else:
            entry.replace(place)


class Scored:
    """A checkpoint's score on the user's data, to compare exported models with."""

    def __init__(
        self, model: EfficientViT, manifest: Manifest, data: str | os.PathLike[str], tell: Callable[[str], None]
    ) -> None:
        dataset = find_dataset(data, None, manifest.reading)
        every = dataset.pairs()
        self.pairs = _spread(dataset.pairs(default_split(dataset)), MEASURED_ON)
        self._labels = settled_split(dataset, self.pairs, dataset.labels, manifest.labels)
        self._calibrate_on = _spread(dataset.splits.get("train") or every, CALIBRATED_ON)
        self._manifest, self._tell = manifest, tell
        tell(f"scoring the checkpoint on {len(self.pairs)} images")
        self.miou, self.skipped = miou(TorchEngine(model, manifest), self.pairs, self._labels)
        for problem in self.skipped:
            tell(f"leaving out {problem.removesuffix('.')}")

    @property
    def calibration(self) -> list[ImageArray]:
        """The images to calibrate on, without those that cannot be read. Raises: DatasetError if none can."""
        images = []
        for pair in self._calibrate_on:
            with suppress(ImageError):
                images.append(read_image(pair.image, pair.reading))
        if not images:
            raise DatasetError(f"none of the {len(self._calibrate_on)} images to calibrate on can be read.")
        return images

    def drop_of(self, model: EfficientViT) -> float:
        """A network's loss compared with the checkpoint, in points of mIoU."""
        return self.miou - self.score(TorchEngine(model, self._manifest))

    def score(self, engine: Engine) -> float:
        """An engine's mIoU in percent."""
        return miou(engine, self.pairs, self._labels)[0]

    def added(
        self,
        verification: Verification,
        model_file: str,
        engine: Engine,
        max_drop: float,
        integers: IntegerNetwork | None = None,
    ) -> Verification:
        """The verification with both scores. Raises: ExportError if the exported model's is too low."""
        self._tell(f"scoring {model_file} on {len(self.pairs)} images")
        score = self.score(engine)
        count = len(self.pairs) - len(self.skipped)
        if not score >= self.miou - max_drop:
            raise ExportError(
                f"{model_file} was discarded: on {count} images it scores {score:.2f} % mIoU, which is more "
                f"than {max_drop:g} points (--max-drop) below the {self.miou:.2f} % of its checkpoint"
                + (f"; {self._worst(integers)}." if integers else ".")
            )
        return replace(
            verification,
            measured_on=count,
            checkpoint_miou=round(self.miou, 2),
            exported_miou=round(score, 2),
        )

    def _worst(self, integers: IntegerNetwork) -> str:
        """The layers whose integers cost most, for a message."""
        fit = self._manifest.preprocess.apply
        costs = layer_costs(integers, [fit(image) for image in self.calibration[:RANKED_ON]])
        worst = sorted(costs, key=lambda layer: -costs[layer])[:5]
        named = ", ".join(f"{layer} ({costs[layer]:.1e})" for layer in worst)
        return f"the layers whose rounding changes the logits most, as a fraction of their variance, are {named}"


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Choose at most `count` pairs, spread evenly."""
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]
