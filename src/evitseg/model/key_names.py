"""The names of weights in the authors' and timm's files."""

from __future__ import annotations

import re

from evitseg.architecture import ModelConfig, SegmentationHead

_PARTS = {
    "depthwise": "depth_conv",
    "pointwise": "point_conv",
    "expand": "inverted_conv",
    "spatial": "spatial_conv",
    "first": "conv1",
    "second": "conv2",
}


_PART = rf"({'|'.join(_PARTS)})"


def _main(match: re.Match[str]) -> str:
    return f"{match[1]}.main.{_PARTS[match[2]]}."


def official_key(key: str, config: ModelConfig) -> str:
    """The authors' name for one of our weights."""
    # The L series counts its stem as the first stage.
    l_series = config.backbone.stem_kind == "resblock"
    key = re.sub(r"aggregate\.(\d+)\.depthwise\.conv", r"aggreg.\1.0", key)
    key = re.sub(r"aggregate\.(\d+)\.pointwise\.conv", r"aggreg.\1.1", key)
    key = re.sub(r"\.attention\.", ".context_module.main.", key)
    key = re.sub(rf"\.local\.{_PART}\.", lambda m: f".local_module.main.{_PARTS[m[1]]}.", key)
    key = re.sub(rf"^(backbone\.(?:stem|stages\.\d+)\.\d+|head\.blocks\.\d+)\.{_PART}\.", _main, key)
    key = re.sub(r"^backbone\.stages\.(\d+)\.", lambda m: f"backbone.stages.{int(m[1]) + l_series}.op_list.", key)
    key = re.sub(r"^backbone\.stem\.0\.conv\.", "backbone.stem.0.", key)
    key = re.sub(r"^backbone\.stem\.", f"backbone.{'stages.0' if l_series else 'input_stem'}.op_list.", key)
    if isinstance(config.head, SegmentationHead):
        key = re.sub(r"^head\.inputs\.([01])\.", r"head.input_ops.\1.op_list.0.", key)
        key = re.sub(r"^head\.inputs\.2\.", r"head.input_ops.2.", key)
        key = re.sub(r"^head\.blocks\.", "head.middle.op_list.", key)
        key = re.sub(r"^head\.outputs\.expand\.", "head.output_ops.0.op_list.0.", key)
        last = int(config.head.final_expand is not None)
        return re.sub(r"^head\.outputs\.classify\.", f"head.output_ops.0.op_list.{last}.", key)
    key = re.sub(r"^head\.widen\.", "head.op_list.0.", key)
    key = re.sub(r"^head\.features\.", "head.op_list.2.linear.", key)
    key = re.sub(r"^head\.norm\.", "head.op_list.2.norm.", key)
    return re.sub(r"^head\.classify\.", "head.op_list.3.linear.", key)


def timm_key(key: str, config: ModelConfig) -> str:
    """timm's name for one of our classifier's weights."""
    key = official_key(key, config)
    l_series = config.backbone.stem_kind == "resblock"
    stem = "stages.0" if l_series else "input_stem"
    key = re.sub(rf"^backbone\.{stem}\.op_list\.0\.", "stem.in_conv.", key)
    key = re.sub(rf"^backbone\.{stem}\.op_list\.(\d+)\.", lambda m: f"stem.res{int(m[1]) - 1}.", key)
    key = re.sub(r"^backbone\.stages\.(\d+)\.op_list\.", lambda m: f"stages.{int(m[1]) - l_series}.blocks.", key)
    key = re.sub(r"^head\.op_list\.0\.", "head.in_conv.", key)
    key = re.sub(r"^head\.op_list\.2\.linear\.", "head.classifier.0.", key)
    key = re.sub(r"^head\.op_list\.2\.norm\.", "head.classifier.1.", key)
    return re.sub(r"^head\.op_list\.3\.linear\.", "head.classifier.4.", key)


def _own_key(key: str, config: ModelConfig) -> str:
    return key


NAMINGS = {"ours": _own_key, "the authors'": official_key, "timm's": timm_key}
