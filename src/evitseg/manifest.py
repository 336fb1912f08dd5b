"""What every checkpoint and artefact carries about itself, as JSON in its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evitseg.architecture import MAX_PARAMETERS, Cost, ModelConfig, cost
from evitseg.errors import ConfigError
from evitseg.image import ReadOptions
from evitseg.labels import LabelSpace
from evitseg.preprocess import Preprocess

if TYPE_CHECKING:
    import cattrs

SCHEMA = 2
"""Rises when a reader of the previous schema would misread a manifest."""
_RENAMED = {  # from schema 1
    "pictures": "images", "artefact_miou": "exported_miou", "artefact_sha256": "files_sha256", "kept": "float16_layers",
}  # fmt: skip
METADATA_KEY = "evitseg"
"""Where a file's metadata holds the manifest."""


@dataclass(frozen=True)
class Training:
    """Where weights come from.

    Attributes:
        data: the images and masks they were trained on.
        licence: of the weights, and what the data's owners ask for.
        recipe: how they were trained, in a sentence.
    """

    data: str
    licence: str
    recipe: str = ""


@dataclass(frozen=True)
class Accuracy:
    """One measurement.

    Attributes:
        data: images and split it was measured on.
        protocol: what was counted, and how.
        miou: mean of `iou`, in percent.
        iou: by class name, in percent.
        images: how many.
        settings: the engine, precision and working size that gave it.
    """

    data: str
    protocol: str
    miou: float
    iou: dict[str, float]
    images: int
    settings: dict[str, str]


@dataclass(frozen=True)
class Verification:
    """How far an artefact was from its checkpoint when it was written, on real images.

    Attributes:
        images: how many.
        largest_difference: of a logit, as a share of the largest logit of its image.
        equal_pixels: share of mask pixels that are the same.
        measured_on: images with masks on which both were scored, if they were.
        checkpoint_miou, exported_miou: in percent, what they scored.
    """

    images: int
    largest_difference: float
    equal_pixels: float
    measured_on: int = 0
    checkpoint_miou: float | None = None
    exported_miou: float | None = None


@dataclass(frozen=True)
class Manifest:
    """What every checkpoint and artefact carries about itself.

    Attributes:
        name: such as "b0-camvid".
        model: the network in full numbers.
        labels: the classes of its logits.
        preprocess: how an image becomes its input.
        reading: how the files were read that it was trained on, which is how it reads others.
        training: where the weights come from.
        accuracy: measurements, if there are any.
        checkpoint_sha256: of the file the weights were read from.
        weights: the number format they are stored in, "float32", "float16" or "int8".
        float16_layers: the layers that "int8" left in float16, each with the cost of rounding only this layer: the mean
            squared change of the logits, as a fraction of their variance.
        verification: of an artefact against its checkpoint.
        files_sha256: of the files this manifest lies beside, where it is in none of them.
        evitseg_version: of the package that wrote it.
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
    verification: Verification | None = None
    files_sha256: str = ""
    evitseg_version: str = ""
    schema: int = SCHEMA
    reading: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        if self.cost.parameters > MAX_PARAMETERS:
            raise ConfigError(f"the network has {self.cost.parameters} parameters; {MAX_PARAMETERS} are supported.")
        if len(self.labels.classes) != self.model.num_classes:
            raise ConfigError(
                f"label space {self.labels.name!r} has {len(self.labels.classes)} classes, "
                f"the network {self.model.num_classes}; they must agree."
            )

    @property
    def cost(self) -> Cost:
        """Parameters and multiply-adds of the network."""
        return cost(self.model)

    def to_json(self) -> str:
        content = asdict(self)
        del content["labels"]["assumed"]  # about a data set, not about a model
        return json.dumps(content, ensure_ascii=False)


def parse_manifest(text: str, where: str | Path) -> Manifest:
    """The manifest in a file's metadata.

    Args:
        text: JSON.
        where: the file's name, for the message.

    Raises: ConfigError where it is damaged, has unknown keys, or is of a newer schema.
    """
    try:
        content: Any = json.loads(text)
        schema = content["schema"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{where}: its manifest is damaged; export it again.") from error
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ConfigError(
            f"{where}: its manifest has schema {schema}, this evitseg reads up to {SCHEMA}; "
            + ("pip install --upgrade evitseg." if isinstance(schema, int) and schema > SCHEMA else "export it again.")
        )
    if schema == 1:
        content = _current(content)
    import cattrs

    try:
        return _converter().structure(content, Manifest)
    except (cattrs.BaseValidationError, cattrs.StructureHandlerNotFoundError) as error:
        reasons = "; ".join(cattrs.transform_error(error, path="manifest"))
        raise ConfigError(f"{where}: its manifest cannot be read ({reasons}); export it again.") from error


def _current(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1 with the keys of today. Names inside `iou` and `settings` are data, not keys."""

    def renamed(value: Any) -> Any:
        return {_RENAMED.get(key, key): entry for key, entry in value.items()} if isinstance(value, dict) else value

    content = renamed(content) | {"schema": SCHEMA}
    if isinstance(content.get("accuracy"), list):
        content["accuracy"] = [renamed(entry) for entry in content["accuracy"]]
    if "verification" in content:
        content["verification"] = renamed(content["verification"])
    return content


@cache
def _converter() -> cattrs.Converter:
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _exactly)
    converter.register_structure_hook(ReadOptions, _reading)
    return converter


def _reading(value: Any, kind: type) -> ReadOptions:
    if not isinstance(value, dict) or not set(value) <= {"bands", "value_range", "page"}:
        raise TypeError(f"{value!r} does not say how files are read")
    bands, page = value.get("bands"), value.get("page")
    value_range: Any = value.get("value_range")
    if bands is not None:
        bands = tuple(_exactly(number, int) for number in bands)
    if value_range is not None and not isinstance(value_range, str):
        low, high = value_range
        value_range = _exactly(low, float), _exactly(high, float)
    try:
        return ReadOptions(bands, value_range, None if page is None else _exactly(page, int))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _exactly(value: Any, kind: type) -> Any:
    """The value, if it is of this very type; a whole number is a float, too."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise TypeError(f"{value!r} is not a {kind.__name__}")
