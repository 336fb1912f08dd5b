"""Everything that decides a training run, in one value that is written into the run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import cattrs

from evitseg.architecture import BACKBONES, STRIDE
from evitseg.errors import ConfigError, TrainError, unknown
from evitseg.image import ReadOptions
from evitseg.preprocess import check_size

CONFIG_FILE = "config.json"
"""In a run's folder."""
FRESH = "none"
"""The `start` that is no start: random weights."""
PRECISIONS = ("float32", "bfloat16", "float16")
CHOSEN: Any = None
"""A setting that `evitseg.train.defaults.settled` chooses, from the images and the start, before a run begins."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    `batch`, `crop`, `size`, `scale`, `learning_rate`, `warm_up`, `ema` and `freeze_norm` follow from the number and
    size of the images and from the start where they are None (`evitseg.train.defaults` has the formulas). A running
    training has no None.

    Attributes:
        variant: a row of `evitseg.architecture.BACKBONES`.
        start: weights to start from: a checkpoint's path (ours, the authors', timm's; a classifier gives its backbone)
            or a published model's name, a bundled model's name or an .onnx artefact; "none" for random ones.
        classes_from: by class, the names of the start's and the teachers' classes it is made of, where its own name
            is not among theirs: {"pavement": ["sidewalk"]}.
        train_on: splits to train on; none for "train", or what `split_pairs` gives where there are no splits.
        epochs: passes over the training images.
        batch: images a step, over all processes.

        bands, value_range, page: how the images' files are read, as the options --bands, --range and --page say it; ""
            and 0 leave it to the files. The model reads files in the same way afterwards.
        crop: (height, width) of the pieces that are trained on, in pixels; both divisible by 32.
        size: short side to which images are scaled before anything else, 0 for their own; None for the size that the
            start works at, or their own. The model works at this size afterwards.
        scale: images are scaled by a random factor in this range, every factor's logarithm equally likely.
        rotate: pieces are turned by up to this many degrees.
        jitter: brightness, contrast and saturation change by up to this share.
        blur, jpeg: share of the pieces that are blurred, or show the artefacts of a JPEG of quality 20 to 80.
        classmix: share of the pieces on which half of another piece's classes are pasted (arXiv:2007.07936).

        learning_rate: at its highest, after the warm-up; it then falls to zero as a cosine does.
        warm_up: share of the steps in which it rises.
        weight_decay: of AdamW, on weights of convolutions and linear layers alone.
        clip: largest norm of all gradients together.
        ema: decay of the moving average of the weights, which is what is measured and kept.
        keep_start: share of the starting weights in what is measured and kept (arXiv:2109.01903); it keeps what the
            start knew about images unlike these.
        freeze_backbone: train the head alone.
        freeze_norm: batch norm keeps the start's statistics, in training and in what is kept. Training is stable only
            at a low rate, so the default rate is ten times lower.
        drop_path: share of samples that skip the last residual block, earlier ones less (arXiv:1603.09382).

        cross_entropy, dice, lovasz, boundary: weights of the loss's terms; `boundary` is by how much more than
            others pixels near another class count in the cross-entropy.
        lovasz_from: part of the run after which the Lovász term sets in, 0 to 1.
        ohem: share of the pixels, the hardest, that count in the cross-entropy at least; 1 for all.
        label_smoothing: of the cross-entropy.
        balance: how strongly rare classes count more: 0 not at all, 1 by 1 / ln(1.10 + share) (arXiv:1606.02147).
        auxiliary: weight of the losses of two more heads, on stages 3 and 4, that the result does not have.
        teachers: checkpoints or published models whose mean answer on the same pieces is to be matched.
        distill: weight of that term.
        temperature: of that term.
        loss_stride: the loss looks at every n-th pixel of every n-th row, from a random one on.

        precision: "float32", or "bfloat16" or "float16" for mixed precision.
        workers: processes that read images; 0 for none beside the training one.
        measure_every: epochs between measurements on the validation images; the last epoch is always measured.
        save_every: steps between checkpoints, beside one after every epoch.
        seed: of everything that is random.
    """

    variant: str = "b0"
    start: str = FRESH
    classes_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    train_on: tuple[str, ...] = ()
    epochs: int = 100
    batch: int = CHOSEN

    bands: str = ""
    value_range: str = ""
    page: int = 0
    crop: tuple[int, int] = CHOSEN
    size: int = CHOSEN
    scale: tuple[float, float] = CHOSEN
    rotate: float = 0.0
    jitter: float = 0.3
    blur: float = 0.0
    jpeg: float = 0.0
    classmix: float = 0.0

    learning_rate: float = CHOSEN
    warm_up: float = CHOSEN
    weight_decay: float = 0.05
    clip: float = 2.0
    ema: float = CHOSEN
    keep_start: float = 0.0
    freeze_backbone: bool = False
    freeze_norm: bool = CHOSEN
    drop_path: float = 0.0

    cross_entropy: float = 1.0
    dice: float = 0.0
    lovasz: float = 0.0
    lovasz_from: float = 0.5
    boundary: float = 0.0
    ohem: float = 1.0
    label_smoothing: float = 0.0
    balance: float = 0.5
    auxiliary: float = 0.0
    teachers: tuple[str, ...] = ()
    distill: float = 1.0
    temperature: float = 1.0
    loss_stride: int = 2

    precision: str = "float32"
    workers: int = 1
    measure_every: int = 1
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _NAMES:  # lists become tuples, whole numbers floats
            object.__setattr__(self, name, _of_kind(name, getattr(self, name), "TrainConfig"))
        if self.variant not in BACKBONES:
            raise unknown("variant", self.variant, BACKBONES)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.size:
            check_size(self.size)
        if self.crop is not CHOSEN and any(side % STRIDE or side < STRIDE for side in self.crop):
            raise ConfigError(f"crop {self.crop}: both sides must be multiples of {STRIDE}, such as 352 and 480.")
        if self.scale is not CHOSEN and not 0.01 <= self.scale[0] <= self.scale[1] <= 100:
            raise ConfigError(f"scale {self.scale}: give the smallest and the largest factor, 0.01 to 100.")
        ReadOptions.parse(self.bands, self.value_range, self.page or None)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not CHOSEN and not low <= value <= high:
                raise ConfigError(f"{name} is {value}; it must be {low} to {high}.")
        taught = self.distill if self.teachers else 0.0
        if not any((self.cross_entropy, self.dice, taught, self.lovasz if self.lovasz_from == 0 else 0.0)):
            raise ConfigError(
                "nothing to minimise from the beginning: one of cross_entropy, dice, distill (with teachers) and "
                "lovasz (with lovasz_from=0) must be above 0."
            )
        if self.keep_start and self.start == FRESH:
            raise ConfigError("keep_start keeps weights that the run starts from; there are none with start none.")
        known = self.batch is not CHOSEN and self.crop is not CHOSEN
        if known and not self.freeze_norm and self.batch * self.crop[0] * self.crop[1] < 2 * STRIDE**2:
            raise ConfigError("batch norm needs two values to normalise; give a larger batch or crop.")

    @property
    def reading(self) -> ReadOptions:
        """How the images' files are read."""
        return ReadOptions.parse(self.bands, self.value_range, self.page or None)


_SHARE = (0, 1)
_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1_000_000), "batch": (1, 4096), "learning_rate": (0, 10), "warm_up": _SHARE,
    "weight_decay": (0, 10), "clip": (1e-6, 1e6), "ema": _SHARE, "keep_start": _SHARE, "label_smoothing": _SHARE,
    "balance": _SHARE, "jitter": _SHARE, "rotate": (0, 180), "blur": _SHARE, "jpeg": _SHARE, "classmix": _SHARE,
    "drop_path": (0, 0.9), "cross_entropy": (0, 100), "dice": (0, 100), "lovasz": (0, 100), "lovasz_from": _SHARE,
    "boundary": (0, 100), "ohem": (1e-6, 1), "auxiliary": (0, 100), "distill": (0, 100), "temperature": (0.1, 100),
    "loss_stride": (1, 8), "workers": (0, 256), "measure_every": (1, 1_000_000), "save_every": (1, 1_000_000_000),
    "seed": (0, 2**31), "page": (0, 10**9),
}  # fmt: skip

_NAMES = [field.name for field in fields(TrainConfig)]
CHOOSABLE = tuple(field.name for field in fields(TrainConfig) if field.default is CHOSEN)
"""Settings that follow from the data where they are None."""


def structured(content: Any, where: str | Path) -> TrainConfig:
    """Settings from a JSON object; what it does not name has its default.

    Raises: ConfigError where a name is unknown, or a value of the wrong kind.
    """
    if not isinstance(content, dict):
        raise ConfigError(f'{where}: settings are a JSON object, such as {{"epochs": 50}}.')
    for name in content:
        if name not in _NAMES:
            raise ConfigError(f"{where}: {unknown('setting', name, _NAMES)}")
    return TrainConfig(**{name: _of_kind(name, value, where) for name, value in content.items()})


def _of_kind(name: str, value: Any, where: str | Path) -> Any:
    """The value as its field's type. Raises: ConfigError where it is another's."""
    if value is CHOSEN and name in CHOOSABLE:
        return CHOSEN
    # A word would pass for a tuple of letters.
    words = [value, *value.values()] if isinstance(value, Mapping) else [value]
    try:
        if _KINDS[name] is not str and any(isinstance(word, str) for word in words):
            raise ValueError
        return _CONVERTER.structure(value, _KINDS[name])
    except Exception as error:  # cattrs' groups, and whatever a constructor makes of a wrong value
        example = f"; such as {json.dumps([value])}" if isinstance(value, str) and "tuple" in str(_KINDS[name]) else ""
        raise ConfigError(f"{where}: {name} cannot be {json.dumps(value, default=str)}{example}.") from error


def _exactly(value: Any, kind: type) -> Any:
    wrong = isinstance(value, bool) if kind is not bool else not isinstance(value, bool)
    if wrong or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError
    return kind(value)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _exactly)
    return converter


_CONVERTER = _converter()


_KINDS: dict[str, Any] = get_type_hints(TrainConfig)


def recipes() -> dict[str, Path]:
    """The packaged recipes by name."""
    folder = Path(str(resources.files("evitseg.train"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def read_recipe(name: str, changes: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a recipe: a packaged one's name, or a JSON file's path.

    Args:
        changes: "name=value" each, over the recipe's; a value is JSON, or a word.

    Raises: ConfigError.
    """
    content: dict[str, Any] = {}
    if name:
        path = recipes().get(name, Path(name))
        if not path.suffix:
            raise unknown("recipe", name, recipes())
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: no such recipe; {unknown('recipe', name, recipes())}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: not JSON ({error}).") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: a recipe is a JSON object of settings.")
        content.pop("about", None)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"{change!r}: settings are given as name=value, such as rotate=10.")
        try:
            content[key] = json.loads(text)
        except ValueError:
            content[key] = text
    return content


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in a folder. Raises: TrainError where there is none."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return structured(content["settings"], folder / CONFIG_FILE)
    except FileNotFoundError as error:
        raise TrainError(f"{folder}: there is no run to resume ({CONFIG_FILE} is missing).") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
        reason = error if isinstance(error, ConfigError) else f"{folder / CONFIG_FILE}: damaged."
        raise TrainError(f"{reason} The run cannot be resumed; begin a new one in another folder.") from error
