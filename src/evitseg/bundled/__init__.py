"""The files that ship with the package: checkpoints with their cards, and a photograph to try them on."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

EXAMPLE_IMAGE = _FOLDER / "street.jpg"
"""A street in France, photographed by Adrien Pavie; source and licence in NOTICE."""
EXAMPLE_LICENCE = _FOLDER / "street.LICENSE.txt"
"""The licence of the photograph, which goes with every copy of it."""

DEFAULT_MODEL = "b0-camvid"


def bundled_models() -> dict[str, Path]:
    """The checkpoints in the package, by name."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.safetensors"))}
