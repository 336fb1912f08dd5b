"""The model card: README.md of a repository, with metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from evitseg.architecture import PUBLISHED_SEGMENTATION, short_name
from evitseg.errors import ConfigError, reason
from evitseg.manifest import Accuracy, Manifest
from evitseg.model.published import PUBLISHED, published_name
from evitseg.system.hub import SCHEME, import_hub, is_hub_name, parse_hub_name

_LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl
postgresql unlicense wtfpl zlib
"""
HUB_LICENCES = frozenset(_LICENCES.split())
"""Licences that the hub knows; it takes any other as "other", with a name."""
UNKNOWN = "unknown"
NOT_STATED = ("", UNKNOWN, "set by whoever owns the data")
"""Licences in manifests that name none."""


@dataclass(frozen=True)
class CardRequest:
    """What a card says beyond the manifest.

    Attributes:
        repository: "owner/name".
        licence: of the weights; None if the person named none.
        base_model: repository of the weights that training started from; None for the one in the manifest's recipe.
        samples: files beside the card: an image, the same with its classes, and the image's licence if it is known.
        sha256: of the file of weights.
    """

    repository: str
    licence: str | None
    base_model: str | None
    samples: tuple[str, ...]
    sha256: str


def licence_in(manifest: Manifest, licence: str | None) -> str:
    """The licence for the manifest: the one that was named, with the conditions that the manifest had before."""
    before = manifest.training.licence.strip()
    if licence is None:
        return UNKNOWN if before in NOT_STATED else before
    if before in NOT_STATED or before.lower().startswith(licence.lower()):
        return licence if before in NOT_STATED else before
    return f"{licence}; {before}"


def base_model_of(manifest: Manifest) -> str | None:
    """The repository of the weights that training started from, if the recipe says so; a card links to it."""
    found = re.search(r"\bstart (\S+)$", manifest.training.recipe)
    if found is None:
        return None
    if is_hub_name(found[1]):
        return parse_hub_name(found[1]).repository
    name = short_name(found[1])
    return PUBLISHED[published_name(name)].repository if name in PUBLISHED_SEGMENTATION else None


def model_card(manifest: Manifest, request: CardRequest) -> str:
    """The text of README.md. Raises: ConfigError for metadata that the hub would refuse, MissingPackageError."""
    import_hub("a model card")
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    base_model = request.base_model or base_model_of(manifest)
    licence = (request.licence or UNKNOWN).strip()
    of_hub, of_hub_name = hub_licence(request.licence)
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=_slug(accuracy.data),
            dataset_name=accuracy.data,
            metric_type="mean_iou",
            metric_name="mean IoU in percent",
            metric_value=accuracy.miou,
            metric_config=", ".join(accuracy.settings.values()) or None,
        )
        for accuracy in manifest.accuracy
    ]
    data = ModelCardData(
        library_name="evitseg",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "semantic-segmentation", "efficientvit"],
        license=of_hub,
        license_name=of_hub_name,
        base_model=base_model,
        metrics=["mean_iou"] if results else None,
        model_name=request.repository.rpartition("/")[2],
        eval_results=results or None,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(manifest, request, licence, base_model)}"
    try:
        card = ModelCard(text)
    except ValueError as error:
        raise ConfigError(
            f"{request.repository}: its card would have metadata that is no YAML ({reason(error)})."
        ) from error
    return str(card)


def hub_licence(licence: str | None) -> tuple[str, str | None]:
    """A licence in the hub's metadata: its identifier, or "other" and a name."""
    known = (licence or UNKNOWN).strip().lower()
    return (known, None) if known in HUB_LICENCES | {UNKNOWN} else ("other", _slug(known))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:96] or UNKNOWN


def _cell(text: object) -> str:
    """Text inside a table or a sentence of Markdown: on one line, without what Markdown or HTML would read."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _body(manifest: Manifest, request: CardRequest, licence: str, base_model: str | None) -> str:
    name = f"{SCHEME}{request.repository}"
    cost, rule = manifest.cost, manifest.preprocess
    fixed = f"{rule.fixed[0]}×{rule.fixed[1]} pixels" if rule.fixed else None
    short = f"a short side of {rule.short_side} pixels" if rule.short_side else "their own size"
    classes = ", ".join(map(_cell, manifest.labels.names))
    parts = [
        f"# {_cell(manifest.name)}",
        f"Semantic segmentation with EfficientViT-{manifest.model.variant.upper()}: every pixel of an image gets one "
        f"of {len(manifest.labels.names)} classes ({classes}). {cost.parameters / 1e6:.2f} million parameters, "
        f"{cost.macs(1024, 2048) / 1e9:.1f} G multiply-adds at 1024×2048. Images go through the network at "
        f"{fixed or short}.",
    ]
    if request.samples:
        image, overlay, *licence_file = request.samples
        parts.append(f"| image | classes |\n| --- | --- |\n| ![An image]({image}) | ![Its classes]({overlay}) |")
        parts += [f"[Author and licence of the image]({file})" for file in licence_file]
    parts += [
        "## How to use",
        "With `evitseg` and its extra `hub` installed:",
        f'```python\nimport evitseg\n\nsegment = evitseg.load("{name}")\n'
        'prediction = segment("photo.jpg")\nprint(prediction.fractions())\nprediction.save("mask.png")\n```',
        f"```sh\nevitseg predict photo.jpg --model {name}\n```",
        "## Accuracy",
        *(_accuracy(manifest.accuracy) or ["Not measured."]),
        "## Training",
        f"- Data: {_cell(manifest.training.data or UNKNOWN)}",
        f"- Recipe: {_cell(manifest.training.recipe or UNKNOWN)}",
        *([f"- Base model: [{base_model}](https://huggingface.co/{base_model})"] if base_model else []),
        "## Licence",
        _licence(manifest, licence),
        "## Files",
        f"`model.safetensors` has the weights and a manifest: the classes, how images are prepared, and all of the "
        f"above. Its sha256 is `{request.sha256}`.",
    ]
    lines = [f"{part}\n" if part.startswith("- ") and later.startswith("- ") else f"{part}\n\n"
             for part, later in zip(parts, [*parts[1:], ""], strict=True)]  # fmt: skip
    return "".join(lines).rstrip() + "\n"


def _licence(manifest: Manifest, licence: str) -> str:
    stated = licence_in(manifest, None)
    named = f"{_cell(licence)}." if licence != UNKNOWN else (
        "Unknown: whoever shared this model named no licence, which gives nobody a right to use it. Ask them."
    )  # fmt: skip
    return (
        named
        if stated == UNKNOWN or stated.lower() == licence.lower()
        else f"{named} The manifest says: {_cell(stated)}"
    )


def _accuracy(measured: Sequence[Accuracy]) -> list[str]:
    """For each dataset a sentence and a table of the IoU per class, with a column per setting."""
    parts = []
    for (data, protocol), group in groupby(measured, lambda accuracy: (accuracy.data, accuracy.protocol)):
        same = list(group)
        titles = [_cell(accuracy.settings.get("precision", "")) for accuracy in same]
        if len(set(titles)) < len(same):
            titles = [_cell(", ".join(accuracy.settings.values())) for accuracy in same]
        names = dict.fromkeys(name for accuracy in same for name in accuracy.iou)
        rows = [["class", *(title or "IoU" for title in titles)], ["---", *["---:"] * len(same)]]
        rows += [
            [_cell(name), *(f"{accuracy.iou[name]:.1f}" if name in accuracy.iou else "–" for accuracy in same)]
            for name in names
        ]
        rows.append(["**mean**", *(f"**{accuracy.miou:.2f}**" for accuracy in same)])
        parts.append(f"IoU in percent on {_cell(data)} ({same[0].images} images; {_cell(protocol)}):")
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return parts
