"""The settings of a training run, in groups: data, augment, optim, average, loss, distill."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar, get_type_hints

from evitseg.architecture import BACKBONES, STRIDE
from evitseg.errors import ConfigError, unknown
from evitseg.image import ReadOptions
from evitseg.preprocess import check_size
from evitseg.system.json_types import MismatchError, typed
from evitseg.train.old_names import accept_old_keywords

FRESH = "none"
"""The `start` that means random weights."""
PRECISIONS = ("float32", "bfloat16", "float16")
AUTO: Any = None
"""A setting that `evitseg.train.defaults.resolve_defaults` derives from the images and the start."""

_Range = tuple[float, float]
_FRACTION: _Range = (0, 1)


class SettingError(ConfigError):
    """A setting has a value that it cannot have.

    Args:
        key: of the setting, with which the message begins.
        problem: the rest of the message.
        where: what the settings were read from.
    """

    def __init__(self, key: str, problem: str, where: str = "") -> None:
        super().__init__(f"{where}: {key} {problem}" if where else f"{key} {problem}")
        self.key, self.problem = key, problem


class _Settings:
    """Checks the fields of a dataclass when it is made: their types, then the ranges of the numbers."""

    GROUP: ClassVar[str] = ""
    RANGES: ClassVar[Mapping[str, _Range]]

    def __post_init__(self) -> None:
        prefix = f"{self.GROUP}." if self.GROUP else ""
        kinds = _kinds(type(self))  # type: ignore[arg-type]  # a class is hashable
        for one in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            key, given = prefix + one.name, getattr(self, one.name)
            kind = kinds[one.name]
            if is_dataclass(kind):
                if not isinstance(given, kind):  # type: ignore[arg-type]
                    raise ConfigError(f"{key} must be a {one.type}, not {given!r:.80}.")
            elif given is not AUTO or one.default is not AUTO:
                value = _typed(key, kind, given)
                object.__setattr__(self, one.name, value)
                low, high = self.RANGES.get(one.name, (-math.inf, math.inf))
                if one.name in self.RANGES and not low <= value <= high:
                    raise SettingError(key, f"is {value}; it must be {low} to {high}.")


@dataclass(frozen=True)
class DataConfig(_Settings):
    """How images are read and cropped.

    Attributes:
        splits: splits to train on. Empty means "train", or the training part of `split_pairs` if the data has no
            splits.
        size: short side that images are scaled to before anything else; 0 keeps their own size. The trained model
            works at this size. None uses the start's size.
        crop: (height, width) of the training crops in pixels, each divisible by 32. None derives it from the images.
        bands, value_range, page: how image files are read, in the syntax of --bands, --range and --page; "" and 0 leave
            it to the file. The trained model reads files the same way.
        workers: processes that load images; 0 loads them in the training process.
    """

    GROUP: ClassVar[str] = "data"
    RANGES: ClassVar[Mapping[str, _Range]] = {"workers": (0, 256), "page": (0, 10**9)}

    splits: tuple[str, ...] = ()
    size: int = AUTO
    crop: tuple[int, int] = AUTO
    bands: str = ""
    value_range: str = ""
    page: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size:
            check_size(self.size)
        if self.crop is not AUTO and any(side % STRIDE or side < STRIDE for side in self.crop):
            raise ConfigError(f"data.crop {self.crop}: both sides must be multiples of {STRIDE}, such as 352 and 480.")
        ReadOptions.parse(self.bands, self.value_range, self.page or None)

    @property
    def reading(self) -> ReadOptions:
        """How the image files are read."""
        return ReadOptions.parse(self.bands, self.value_range, self.page or None)


@dataclass(frozen=True)
class AugmentConfig(_Settings):
    """Random changes to the training crops.

    Attributes:
        scale: range of the random scale factor, sampled uniformly on a logarithmic scale. None derives it from the
            images and the crop.
        rotate: largest rotation in degrees; half of the crops are rotated.
        color_jitter: largest relative change of brightness, contrast and saturation.
        blur_prob: probability of a Gaussian blur.
        jpeg_prob: probability of JPEG artefacts, at a quality of 20 to 80.
        classmix_prob: probability that half of the classes of another crop are pasted in (arXiv:2007.07936).
        paste_prob: probability that rare classes of another crop are pasted in, half of them on average.
        rare_below: a class is rare if it has less than this fraction of the training images' labelled pixels.
    """

    GROUP: ClassVar[str] = "augment"
    RANGES: ClassVar[Mapping[str, _Range]] = {
        "rotate": (0, 180), "color_jitter": _FRACTION, "blur_prob": _FRACTION, "jpeg_prob": _FRACTION,
        "classmix_prob": _FRACTION, "paste_prob": _FRACTION, "rare_below": _FRACTION,
    }  # fmt: skip

    scale: tuple[float, float] = AUTO
    rotate: float = 0.0
    color_jitter: float = 0.3
    blur_prob: float = 0.0
    jpeg_prob: float = 0.0
    classmix_prob: float = 0.0
    paste_prob: float = 0.0
    rare_below: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not AUTO and not 0.01 <= self.scale[0] <= self.scale[1] <= 100:
            raise ConfigError(f"augment.scale {self.scale}: give the smallest and the largest factor, 0.01 to 100.")


@dataclass(frozen=True)
class OptimConfig(_Settings):
    """AdamW, its schedule, and what else changes how the weights are updated.

    Attributes:
        learning_rate: peak rate, after the warm-up; it then falls to zero along a cosine. None derives it from the
            batch size and the start.
        warmup_fraction: fraction of the steps in which the rate rises. None derives it from the number of steps.
        weight_decay: applied to the weights of convolutions and linear layers only.
        grad_clip_norm: largest norm of the gradient of all parameters together.
        freeze_backbone: train only the head.
        freeze_norm: batch norm uses and keeps the start's statistics. Training is then stable only at a low rate, so
            the default rate is 30 times lower. None derives it from the number of images and steps.
        drop_path: fraction of samples that skip the last residual block; earlier blocks are skipped less often
            (arXiv:1603.09382).
    """

    GROUP: ClassVar[str] = "optim"
    RANGES: ClassVar[Mapping[str, _Range]] = {
        "learning_rate": (0, 10), "warmup_fraction": _FRACTION, "weight_decay": (0, 10), "grad_clip_norm": (1e-6, 1e6),
        "drop_path": (0, 0.9),
    }  # fmt: skip

    learning_rate: float = AUTO
    warmup_fraction: float = AUTO
    weight_decay: float = 0.05
    grad_clip_norm: float = 2.0
    freeze_backbone: bool = False
    freeze_norm: bool = AUTO
    drop_path: float = 0.0


@dataclass(frozen=True)
class AverageConfig(_Settings):
    """How the weights that are evaluated and saved follow from those that are trained.

    Attributes:
        ema_decay: decay of the exponential moving average of the weights. None derives it from the number of steps.
        start_weight: fraction of the initial weights mixed into the average (WiSE-FT, arXiv:2109.01903), so that the
            network forgets less about images unlike the training images.
    """

    GROUP: ClassVar[str] = "average"
    RANGES: ClassVar[Mapping[str, _Range]] = {"ema_decay": _FRACTION, "start_weight": _FRACTION}

    ema_decay: float = AUTO
    start_weight: float = 0.0


@dataclass(frozen=True)
class LossConfig(_Settings):
    """The terms of the loss and their weights.

    Attributes:
        cross_entropy, dice, lovasz: weights of these terms.
        lovasz_from: fraction of the run after which the Lovász term begins.
        boundary_weight: additional weight of pixels near another class in the cross-entropy: they count
            1 + boundary_weight.
        ohem_fraction: smallest fraction of pixels, the hardest, that count in the cross-entropy (online hard example
            mining); 1 counts all pixels.
        label_smoothing: of the cross-entropy.
        class_weight_power: how strongly rare classes are weighted up: 0 not at all, 1 by 1 / ln(1.10 + frequency)
            (arXiv:1606.02147).
        auxiliary: weight of the losses of two additional heads, on stages 3 and 4; they are not part of the result.
        stride: the loss uses every n-th pixel of every n-th row, from a random offset.
    """

    GROUP: ClassVar[str] = "loss"
    RANGES: ClassVar[Mapping[str, _Range]] = {
        "cross_entropy": (0, 100), "dice": (0, 100), "lovasz": (0, 100), "lovasz_from": _FRACTION,
        "boundary_weight": (0, 100), "ohem_fraction": (1e-6, 1), "label_smoothing": _FRACTION,
        "class_weight_power": _FRACTION, "auxiliary": (0, 100), "stride": (1, 8),
    }  # fmt: skip

    cross_entropy: float = 1.0
    dice: float = 0.0
    lovasz: float = 0.0
    lovasz_from: float = 0.5
    boundary_weight: float = 0.0
    ohem_fraction: float = 1.0
    label_smoothing: float = 0.0
    class_weight_power: float = 0.5
    auxiliary: float = 0.0
    stride: int = 2


@dataclass(frozen=True)
class DistillConfig(_Settings):
    """Distillation: matching the mean probabilities of other networks (arXiv:1503.02531).

    Attributes:
        teachers: checkpoints, published segmentation models, or models on the Hugging Face Hub (hf://owner/name); none
            turns distillation off.
        weight: weight of this term of the loss.
        temperature: divides the logits of teachers and student.
        features: weight of the difference between the features of the network's stages and those of teachers with the
            same widths. None is 0.3 with qat if its start is the teacher, else 0.
    """

    GROUP: ClassVar[str] = "distill"
    RANGES: ClassVar[Mapping[str, _Range]] = {"weight": (0, 100), "temperature": (0.1, 100), "features": (0, 100)}

    teachers: tuple[str, ...] = ()
    weight: float = 1.0
    temperature: float = 1.0
    features: float = AUTO


@accept_old_keywords
@dataclass(frozen=True)
class TrainConfig(_Settings):
    """All settings that decide a training run.

    Settings that are None (`AUTO_KEYS`) are derived from the number and size of the images and from the start before
    the run begins; `evitseg.train.defaults` has the formulas.

    Attributes:
        variant: a row of `BACKBONES`, such as "b0".
        start: initial weights, "the start": the path of a checkpoint (ours, the authors' or timm's; a classifier
            supplies its backbone) or of an exported .onnx model, the name of a published or bundled model or of one on
            the Hugging Face Hub (hf://owner/name), or "none" for random weights.
        classes_from: maps a class of the data to classes of the start and the teachers, for classes whose names differ:
            {"pavement": ["sidewalk"]}.
        epochs: passes over the training images.
        batch_size: images per step, over all processes. None derives it from the number of images.
        precision: "float32", or "bfloat16" or "float16" for mixed precision.
        eval_interval: epochs between evaluations on the validation images; the last epoch is always evaluated.
        save_interval: steps between saved states, in addition to one after every epoch.
        seed: of all random numbers.
        qat: train with the roundings of 8-bit integers, for `evitseg export --w8a8`. The start must be trained; by
            default it is also the teacher.
    """

    RANGES: ClassVar[Mapping[str, _Range]] = {
        "epochs": (1, 1_000_000), "batch_size": (1, 4096), "eval_interval": (1, 1_000_000),
        "save_interval": (1, 1_000_000_000), "seed": (0, 2**31),
    }  # fmt: skip

    variant: str = "b0"
    start: str = FRESH
    classes_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = AUTO
    precision: str = "float32"
    eval_interval: int = 1
    save_interval: int = 500
    seed: int = 0
    qat: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in BACKBONES:
            raise unknown("variant", self.variant, BACKBONES)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.qat:
            self._check_qat()
        loss, distill = self.loss, self.distill.weight if self.distill.teachers else 0.0
        if not any((loss.cross_entropy, loss.dice, distill, loss.lovasz if loss.lovasz_from == 0 else 0.0)):
            raise ConfigError(
                "the loss is empty at the first step: set one of loss.cross_entropy, loss.dice, distill.weight (with "
                "distill.teachers) and loss.lovasz (with loss.lovasz_from=0) above 0."
            )
        if self.average.start_weight and self.start == FRESH:
            raise ConfigError("average.start_weight mixes in the starting weights, but start is none.")
        crop = self.data.crop
        known = self.batch_size is not AUTO and crop is not AUTO
        if known and not self.optim.freeze_norm and self.batch_size * crop[0] * crop[1] < 2 * STRIDE**2:
            raise ConfigError("batch norm needs at least two values per channel; use a larger batch_size or data.crop.")

    def _check_qat(self) -> None:
        if self.start == FRESH:
            raise ConfigError("qat needs trained weights to start from; give the checkpoint as start.")
        without = {
            "precision": self.precision == "float32", "loss.auxiliary": not self.loss.auxiliary,
            "optim.freeze_backbone": not self.optim.freeze_backbone, "optim.drop_path": not self.optim.drop_path,
            "optim.freeze_norm": self.optim.freeze_norm is not False,
            "average.start_weight": not self.average.start_weight,
        }  # fmt: skip
        if wrong := [key for key, fits in without.items() if not fits]:
            raise ConfigError(
                f"{wrong[0]} cannot be set with qat, which trains the whole network in float32, with batch norm folded "
                "into the convolutions; leave it out."
            )

    def to_dict(self) -> dict[str, object]:
        """The settings as a nested dictionary, as a JSON recipe has them."""
        return asdict(self)

    def flat(self) -> dict[str, object]:
        """Every setting by its key, such as "epochs" or "optim.learning_rate"."""
        return {key: _value(self, key) for key in KEYS}

    def updated(self, changes: Mapping[str, object]) -> TrainConfig:
        """The settings with some changed, by key: `config.updated({"epochs": 3, "optim.learning_rate": 3e-4})`.

        Raises: ConfigError for an unknown key or a value that does not fit.
        """
        top: dict[str, Any] = {}
        groups: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            if key not in KEYS:
                raise unknown("setting", key, KEYS)
            group, _, name = key.rpartition(".")
            (groups.setdefault(group, {}) if group else top)[name] = value
        top |= {group: replace(getattr(self, group), **values) for group, values in groups.items()}
        return replace(self, **top)


def _typed(key: str, kind: Any, value: Any) -> Any:
    """The value as its setting's type: lists become tuples, whole numbers floats."""
    try:
        return typed(value, kind, key)
    except MismatchError as error:
        example = f"; use {json.dumps([value])}" if isinstance(value, str) and "tuple" in str(kind) else ""
        raise SettingError(key, f"{str(error).removeprefix(key).strip()}{example}.") from error


@cache
def _kinds(settings: Any) -> dict[str, Any]:
    """The type of every field."""
    hints = get_type_hints(settings)
    return {f.name: hints[f.name] for f in fields(settings)}


def _key_types() -> dict[str, Any]:
    kinds: dict[str, Any] = {}
    for name, kind in _kinds(TrainConfig).items():
        if is_dataclass(kind):
            kinds |= {f"{name}.{inner}": its for inner, its in _kinds(kind).items()}  # type: ignore[arg-type]
        else:
            kinds[name] = kind
    return kinds


KEYS: Mapping[str, Any] = _key_types()
"""Every setting's key and type; the keys of a group's settings have its name before a point."""
GROUPS: tuple[str, ...] = tuple(name for name, kind in _kinds(TrainConfig).items() if is_dataclass(kind))


def _value(config: TrainConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


AUTO_KEYS: tuple[str, ...] = tuple(key for key in KEYS if _value(TrainConfig(), key) is AUTO)
"""The settings that follow from the data and the start if they are None."""
