"""Read YAML files that describe a dataset. All scalars stay text: a class called `no` is not a boolean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evitseg.errors import ConfigError, DatasetError, unknown
from evitseg.labels import LabelClass, LabelSpace, distinct_color, named
from evitseg.system.text import decoded

KEYS = ("path", "train", "val", "test", "masks_dir", "names", "label_mapping", "nc", "download")
_MAX_BYTES = 4 * 2**20
_MAX_DEPTH = 20
_MAX_EVENTS = 1_000_000
_MASKS = re.compile(r"^masks_dir\s*:", re.MULTILINE)
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")


def own_yaml(folder: Path) -> Path | None:
    """The YAML file in a folder that describes its masks, or None; other YAML files are ignored.

    Raises: DatasetError if several files describe masks.
    """
    found = []
    for path in sorted(folder.glob("*.y*ml")):
        try:
            is_own = _MASKS.search(decoded(path, most=_MAX_BYTES)) is not None
        except DatasetError:
            continue
        if is_own:
            found.append(path)
    if len(found) > 1:
        raise DatasetError(f"{found[0]} and {found[1]} both describe masks (masks_dir); pass one of the two files.")
    return found[0] if found else None


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a dataset's YAML file; scalars are text as written, and empty values are "".

    Raises: DatasetError for a file that cannot be read, is nested deeply, or has keys that are not in `KEYS`.
    """
    import yaml

    text = decoded(path, most=_MAX_BYTES)
    try:
        check_shape(path, text)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path}: cannot be read as YAML ({reason[:160]}).") from error
    if not isinstance(node, yaml.MappingNode):
        raise DatasetError(f"{path}: needs the key masks_dir, the folder that replaces images/ in the paths of masks.")
    content: dict[str, Any] = {}
    for key_node, value in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
        if key not in KEYS:
            raise DatasetError(f"{path}: {unknown('key', key[:80], KEYS)}")
        if key in content:
            raise DatasetError(f"{path}: the key {key} occurs twice; delete one.")
        content[key] = None if key == "download" else _plain(path, value, 0)
    if not isinstance(content.get("masks_dir"), str) or not content["masks_dir"]:
        raise DatasetError(f"{path}: needs the key masks_dir, the folder that replaces images/ in the paths of masks.")
    for key in ("path", "nc"):
        if not isinstance(content.get(key, ""), str):
            raise DatasetError(f"{path}: {key} must be a single value.")
    return content


def check_shape(path: Path, text: str) -> None:
    """Check the nesting and size of a YAML text before it is parsed. Raises: DatasetError, and yaml.YAMLError."""
    import yaml

    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.BaseLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or number > _MAX_EVENTS:
            raise DatasetError(
                f"{path}: is nested more than {_MAX_DEPTH} levels deep, or too long for a dataset's YAML."
            )
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise DatasetError(
                f"{path}, line {line}: aliases (*{event.anchor}) are not supported; write the value out."
            )


def _plain(path: Path, node: Any, depth: int) -> Any:
    """Text, a list of texts, or a mapping from text to text; deeper nesting is an error."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        is_null = node.style is None and node.value in ("", "~", "null", "Null", "NULL")
        return "" if is_null and depth == 0 else node.value
    if depth:
        raise DatasetError(f"{path}, line {node.start_mark.line + 1}: a list or mapping instead of a single value.")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, item, 1) for item in node.value]
    mapping: dict[str, str] = {}
    for key, value in node.value:
        name = _plain(path, key, 1)
        if name in mapping:
            raise DatasetError(f"{path}, line {key.start_mark.line + 1}: the key {name} occurs twice; delete one.")
        mapping[name] = _plain(path, value, 1)
    return mapping


def yaml_labels(path: Path, content: Mapping[str, Any]) -> LabelSpace | None:
    """The classes from `names`, `nc` and `label_mapping`, or None without `names`. Raises: DatasetError."""
    try:
        return _labels(path, content)
    except ConfigError as error:
        raise DatasetError(f"{path}: {error}") from error


def _labels(path: Path, content: Mapping[str, Any]) -> LabelSpace | None:
    names: Any = content.get("names") or None
    if names is None:
        return None
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise DatasetError(f"{path}: names must be a list, or number the classes from 0 without gaps.")
    ordered = [names[str(i)] for i in range(len(names))]
    if content.get("nc") and content["nc"] != str(len(ordered)):
        raise DatasetError(f"{path}: nc is {content['nc'][:20]}, but there are {len(ordered)} names; make them agree.")
    mapping: Any = content.get("label_mapping") or None
    if mapping is None:
        return named(path.stem, ordered)
    if not isinstance(mapping, dict) or not all(
        _NUMBER.fullmatch(number) for pair in mapping.items() for number in pair
    ):
        raise DatasetError(f"{path}: label_mapping must map every raw id to a class index or to 255.")
    raw_ids: list[list[int]] = [[] for _ in ordered]
    ignored = set()
    for raw, index in ((int(raw), int(index)) for raw, index in mapping.items()):
        if 0 <= index < len(ordered):
            raw_ids[index].append(raw)
        elif index == 255 or index < 0:
            ignored.add(raw)
        else:
            raise DatasetError(
                f"{path}: label_mapping must map every raw id to a class index or to 255, not to {index}."
            )
    assumed = frozenset() if ignored else frozenset({"ignored_ids"})
    ignored |= {255} - {raw for raws in raw_ids for raw in raws}
    classes = tuple(LabelClass(name, tuple(raw_ids[i]), distinct_color(i)) for i, name in enumerate(ordered))
    return LabelSpace(path.stem, classes, tuple(sorted(i for i in ignored if i >= 0)), assumed)
