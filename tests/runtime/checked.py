"""A small model with a self-check."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evitseg.manifest import Manifest, SelfCheck
from evitseg.runtime import self_check
from evitseg.runtime.core import Core
from evitseg.runtime.evit_file import write_evit
from tests.runtime.programs import CONFIGS, manifest, program


def checked_model(folder: Path, size: tuple[int, int] = (64, 96)) -> tuple[Path, Manifest]:
    """A model file of the core whose self-check agrees with the core in float32."""
    network = CONFIGS["mbconv"]
    made = program(network)
    logits = Core(made)(self_check.scene(*size, 2))
    grid = self_check.grid_for(size, len(logits))
    stored = self_check.encoded(self_check.stored_places(logits, grid))
    check = SelfCheck(self_check.SCENES[1], size, grid, stored, 1e-3, 0.2, 0.9)
    about = replace(manifest(network), self_check=check)
    write_evit(folder / "model.evit", about, made)
    return folder / "model.evit", about
