"""Translate the names of weights between our checkpoints, the authors' files and timm's."""

from __future__ import annotations

import re
from enum import Enum

from evitseg.architecture import ModelConfig, SegmentationHead, stem_plan


class Naming(Enum):
    """Whose names a file's weights have; the value completes the phrase "by ... names"."""

    OURS = "our own"
    AUTHORS = "the authors'"
    TIMM = "timm's"

    def key(self, key: str, config: ModelConfig) -> str:
        """This naming's name for one of our weights."""
        if self is Naming.OURS:
            return key
        for pattern, replacement in _INSIDE_BLOCKS:
            key = pattern.sub(replacement, key)
        prefixes = _authors_prefixes(config) if self is Naming.AUTHORS else _timm_prefixes(config)
        for ours, theirs in prefixes.items():
            if key.startswith(ours):
                return theirs + key.removeprefix(ours)
        return key


_CONVOLUTIONS = {
    "depthwise": "depth_conv",
    "pointwise": "point_conv",
    "expand": "inverted_conv",
    "spatial": "spatial_conv",
    "first": "conv1",
    "second": "conv2",
}
_BLOCK = r"^(backbone\.(?:stem|stages\.\d+)\.\d+|head\.blocks\.\d+)"

_INSIDE_BLOCKS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"aggregate\.(\d+)\.depthwise\.conv", r"aggreg.\1.0"),
        (r"aggregate\.(\d+)\.pointwise\.conv", r"aggreg.\1.1"),
        (r"\.attention\.", ".context_module.main."),
        *((rf"\.local\.{ours}\.", f".local_module.main.{theirs}.") for ours, theirs in _CONVOLUTIONS.items()),
        *((rf"{_BLOCK}\.{ours}\.", rf"\1.main.{theirs}.") for ours, theirs in _CONVOLUTIONS.items()),
    )
)
"""Patterns in our names and their replacements, in both foreign namings."""


def _authors_prefixes(config: ModelConfig) -> dict[str, str]:
    """Beginnings of our names and of the authors'; the first that fits counts."""
    first = _first_stage(config)
    stem = "backbone.stages.0" if first else "backbone.input_stem"
    prefixes = {"backbone.stem.0.conv.": f"{stem}.op_list.0.", "backbone.stem.": f"{stem}.op_list."}
    for stage in range(len(config.backbone.stages)):
        prefixes[f"backbone.stages.{stage}."] = f"backbone.stages.{stage + first}.op_list."
    if isinstance(config.head, SegmentationHead):
        last = int(config.head.final_expand is not None)
        return prefixes | {
            "head.inputs.0.": "head.input_ops.0.op_list.0.",
            "head.inputs.1.": "head.input_ops.1.op_list.0.",
            "head.inputs.2.": "head.input_ops.2.",
            "head.blocks.": "head.middle.op_list.",
            "head.outputs.expand.": "head.output_ops.0.op_list.0.",
            "head.outputs.classify.": f"head.output_ops.0.op_list.{last}.",
        }
    return prefixes | {
        "head.widen.": "head.op_list.0.",
        "head.features.": "head.op_list.2.linear.",
        "head.norm.": "head.op_list.2.norm.",
        "head.classify.": "head.op_list.3.linear.",
    }


def _timm_prefixes(config: ModelConfig) -> dict[str, str]:
    """Beginnings of our classifier's names and of timm's; the first that fits counts."""
    prefixes = {"backbone.stem.0.conv.": "stem.in_conv.", "backbone.stem.0.": "stem.in_conv."}
    for block in range(1, len(stem_plan(config.backbone))):
        prefixes[f"backbone.stem.{block}."] = f"stem.res{block - 1}."
    for stage in range(len(config.backbone.stages)):
        prefixes[f"backbone.stages.{stage}."] = f"stages.{stage}.blocks."
    return prefixes | {
        "head.widen.": "head.in_conv.",
        "head.features.": "head.classifier.0.",
        "head.norm.": "head.classifier.1.",
        "head.classify.": "head.classifier.4.",
    }


def _first_stage(config: ModelConfig) -> int:
    """The authors' number of our first stage: in the L series their first stage is the stem."""
    return int(config.backbone.stem_kind == "resblock")
