"""Which tool wrote a file or folder of annotations, and its objects."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from evitseg.data.annotations.coco import FORM, is_coco, read_coco
from evitseg.data.annotations.objects import Annotations
from evitseg.errors import DatasetError


def read_annotations(source: str | os.PathLike[str], images: str | os.PathLike[str] | None = None) -> Annotations:
    """The objects in a file or folder that an annotation tool exported.

    Args:
        images: the folder that the names of images start from; None to look near the annotations.

    Raises: DatasetError for what no known tool writes, with what was looked for.
    """
    source, images = Path(source), Path(images) if images is not None else None
    content = read_json(source)
    if is_coco(content):
        return read_coco(content, source, images)
    raise DatasetError(f"{source}: not COCO's form; {FORM}.")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises: DatasetError."""
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: not a regular file.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}).") from error
