"""Manifests: the description of a model, stored as JSON in the metadata of every checkpoint and exported model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evitseg.architecture import LOGIT_STRIDE, MAX_PARAMETERS, Cost, ModelConfig, cost
from evitseg.errors import ConfigError
from evitseg.image import MAX_PIXELS, ReadOptions
from evitseg.labels import LabelSpace
from evitseg.preprocess import Preprocess, check_sides
from evitseg.system.json_types import MismatchError, typed

SCHEMA = 2
"""Version of the manifest; raised if an older reader would misunderstand a newer manifest."""
_RENAMED = {  # from schema 1
    "pictures": "images", "artefact_miou": "exported_miou", "artefact_sha256": "files_sha256", "kept": "float16_layers",
}  # fmt: skip
METADATA_KEY = "evitseg"
"""Key of the manifest in a file's metadata."""


@dataclass(frozen=True)
class Training:
    """The origin of weights.

    Attributes:
        data: the images and masks they were trained on.
        licence: licence of the weights, and conditions of the data's owners.
        recipe: one sentence on how they were trained.
    """

    data: str
    licence: str
    recipe: str = ""


@dataclass(frozen=True)
class Accuracy:
    """A measured accuracy.

    Attributes:
        data: the dataset and split.
        protocol: how pixels were counted.
        miou: mean of `iou`, in percent.
        iou: IoU in percent by class name.
        images: number of images.
        settings: the engine, precision and working size.
    """

    data: str
    protocol: str
    miou: float
    iou: dict[str, float]
    images: int
    settings: dict[str, str]


@dataclass(frozen=True)
class Verification:
    """Agreement of an exported model with its checkpoint on real images, measured during the export.

    Attributes:
        images: number of images.
        largest_difference: largest difference of a logit, as a fraction of the largest logit of the same image.
        equal_pixels: fraction of mask pixels that are equal.
        measured_on: number of images with masks on which the mIoU of both was measured; 0 for none.
        checkpoint_miou, exported_miou: mIoU in percent, if it was measured.
    """

    images: int
    largest_difference: float
    equal_pixels: float
    measured_on: int = 0
    checkpoint_miou: float | None = None
    exported_miou: float | None = None


@dataclass(frozen=True)
class SelfCheck:
    """The logits that a model has to give for a drawn image, to check it on the machine that runs it.

    `evitseg.runtime.self_check` draws the image and compares the logits; docs/reference/models.md describes the format
    for other programs.

    Attributes:
        image: name of the formula that draws the image.
        size: (height, width) of the image in pixels.
        grid: number of rows and of columns of the logits that are stored, spread evenly over all rows and columns.
        logits: (classes, rows, columns) little-endian float32 numbers in base64, computed in float32.
        tolerance, half_tolerance: largest difference, as a fraction of the largest stored logit, that is allowed when
            the arithmetic is float32, and when it has fewer bits.
        min_equal: smallest fraction of the stored places whose class must be the same.
    """

    image: str
    size: tuple[int, int]
    grid: tuple[int, int]
    logits: str
    tolerance: float
    half_tolerance: float
    min_equal: float

    def __post_init__(self) -> None:
        height, width = check_sides(self.size)
        if height * width > MAX_PIXELS:
            raise ConfigError(f"the self-check's image has more than {MAX_PIXELS:,} pixels.")
        most = (height // LOGIT_STRIDE, width // LOGIT_STRIDE)
        if not all(1 <= count <= side for count, side in zip(self.grid, most, strict=True)):
            raise ConfigError(f"the self-check's grid is {self.grid}; it must be between 1x1 and {most[0]}x{most[1]}.")
        if not all(0 <= limit <= 1 for limit in (self.tolerance, self.half_tolerance, self.min_equal)):
            raise ConfigError("the self-check's limits must be between 0 and 1.")


@dataclass(frozen=True)
class Manifest:
    """The description of a model in its checkpoint or exported files.

    Attributes:
        name: name of the model, such as "b0-camvid".
        model: the network's configuration.
        labels: the classes of the logits.
        preprocess: how an image becomes network input.
        reading: how image files are read; the same for the training data and for new images.
        training: the origin of the weights.
        accuracy: measured accuracies.
        checkpoint_sha256: hash of the file that the weights were read from.
        weights: number format of the stored weights, "float32", "float16" or "int8"; "w8a8" if all arithmetic is in
            integers.
        float16_layers: the layers that "int8" left in float16, each with the cost of rounding only this layer: the mean
            squared change of the logits, as a fraction of their variance.
        int16_tensors: the activations that "w8a8" keeps in 16 bits instead of 8.
        activation_ranges: the smallest and the largest number of every tensor with a range of its own that `evitseg
            train --qat` learned; of sums over all tokens, divided by the number of tokens.
        verification: agreement of an exported model with its checkpoint.
        self_check: what an exported or bundled model has to compute on the machine that runs it.
        files_sha256: hash of the model's files, for formats whose manifest is a file of its own.
        evitseg_version: version of the package that wrote the manifest.
        schema: see `SCHEMA`.
    """

    name: str
    model: ModelConfig
    labels: LabelSpace
    preprocess: Preprocess
    training: Training
    accuracy: tuple[Accuracy, ...] = ()
    checkpoint_sha256: str = ""
    weights: str = "float32"
    float16_layers: dict[str, float] = field(default_factory=dict)
    int16_tensors: tuple[str, ...] = ()
    verification: Verification | None = None
    files_sha256: str = ""
    evitseg_version: str = ""
    schema: int = SCHEMA
    reading: ReadOptions = field(default_factory=ReadOptions)
    self_check: SelfCheck | None = None
    activation_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cost.parameters > MAX_PARAMETERS:
            raise ConfigError(
                f"the network has {self.cost.parameters} parameters; at most {MAX_PARAMETERS} are supported."
            )
        if len(self.labels.classes) != self.model.num_classes:
            raise ConfigError(
                f"label space {self.labels.name!r} has {len(self.labels.classes)} classes, "
                f"the network {self.model.num_classes}; they must agree."
            )

    @property
    def cost(self) -> Cost:
        """Number of parameters and multiply-adds of the network."""
        return cost(self.model)

    def to_json(self) -> str:
        """The manifest as JSON."""
        content = asdict(self)
        del content["labels"]["assumed"]  # describes a dataset, not a model
        # Keys that older versions do not know are written only if they say something.
        if self.model.backbone.early_activation is None:
            del content["model"]["backbone"]["early_activation"]
        if self.self_check is None:
            del content["self_check"]
        if not self.activation_ranges:
            del content["activation_ranges"]
        return json.dumps(content, ensure_ascii=False)


def parse_manifest(text: str, where: str | Path) -> Manifest:
    """Parse a manifest.

    Args:
        text: the JSON.
        where: name of the file, for messages.

    Raises: ConfigError for a manifest that is damaged, has unknown keys, or is newer than this package.
    """
    try:
        content: Any = json.loads(text)
        schema = content["schema"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{where}: the manifest is damaged; export the model again.") from error
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ConfigError(
            f"{where}: the manifest has schema {schema}, but this version of evitseg reads schema 1 to {SCHEMA}; "
            + ("update evitseg." if isinstance(schema, int) and schema > SCHEMA else "export the model again.")
        )
    if schema == 1:
        content = _current(content)
    try:
        manifest: Manifest = typed(content, Manifest, "manifest")
    except MismatchError as error:
        raise ConfigError(f"{where}: the manifest is invalid ({error}); export the model again.") from error
    return manifest


def _current(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1 with the keys of schema 2. The keys of `iou` and `settings` are data and stay."""

    def renamed(value: Any) -> Any:
        return {_RENAMED.get(key, key): entry for key, entry in value.items()} if isinstance(value, dict) else value

    content = renamed(content) | {"schema": SCHEMA}
    if isinstance(content.get("accuracy"), list):
        content["accuracy"] = [renamed(entry) for entry in content["accuracy"]]
    if "verification" in content:
        content["verification"] = renamed(content["verification"])
    return content
