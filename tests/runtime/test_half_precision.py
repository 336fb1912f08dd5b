"""The core in half precision: close to float32, the same bits for any number of threads, no mask of infinities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.optional import needs

needs("torch")

import torch

from evitseg.architecture import BACKBONES, PUBLISHED_SEGMENTATION, model_config
from evitseg.errors import EngineError, EvitsegWarning
from evitseg.labels import numbered
from evitseg.manifest import Manifest, Training
from evitseg.model.checkpoints import save_checkpoint
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.runtime.core import CORE_PRECISIONS, ISA_VARIABLE, Core, CorePrecision, NotFiniteError, instruction_sets
from evitseg.runtime.native import open_native
from tests.programs import image, network, program_of, shallow

SETS: list[tuple[CorePrecision, str]] = [
    (each, isa) for each in CORE_PRECISIONS if each != "float32" for isa in instruction_sets(each)
]

computes_in_float16 = pytest.mark.skipif(
    not instruction_sets("float16"), reason="this processor does not compute in float16"
)
computes_in_half_precision = pytest.mark.skipif(not SETS, reason="this processor does not compute in half precision")


def checkpoint(made: EfficientViT, path: Path) -> Path:
    manifest = Manifest("random", made.config, numbered(5), Preprocess(), Training("none", "Apache-2.0"))
    save_checkpoint(made, manifest, path)
    return path


def too_large(made: EfficientViT) -> EfficientViT:
    """The same network with features beyond 65504 in the middle."""
    with torch.no_grad():
        for parameter in made.backbone.stages[1].parameters():
            parameter.mul_(10)
    return made


@computes_in_half_precision
@pytest.mark.parametrize("name", [*PUBLISHED_SEGMENTATION, "b0-relu"])
def test_every_network_is_close_to_float32(name: str) -> None:
    config = PUBLISHED_SEGMENTATION.get(name) or model_config(name, 5)
    program, pixels = program_of(network(config)), image(64, 96)
    expected = Core(program)(pixels)
    for precision, isa in SETS:
        found = Core(program, precision=precision, isa=isa)(pixels)
        assert np.sqrt(np.mean((found - expected) ** 2)) < 0.03 * np.sqrt(np.mean(expected**2))
        assert not np.array_equal(found, expected)


@computes_in_half_precision
@pytest.mark.parametrize("size", [(32, 32), (256, 96), (160, 1088), (544, 64)])
@pytest.mark.parametrize(("variant", "classes"), [("b0", 5), ("b0", 19), ("l0", 5)])
def test_threads_change_no_bit(variant: str, classes: int, size: tuple[int, int]) -> None:
    program, pixels = program_of(network(shallow(model_config(variant, classes)))), image(*size)
    for precision, isa in SETS:
        expected = Core(program, 1, isa=isa, precision=precision)(pixels)
        for threads in (2, 3, 9):
            assert Core(program, threads, isa=isa, precision=precision)(pixels).tobytes() == expected.tobytes()


@computes_in_float16
def test_memory_is_half_of_that_of_float32() -> None:
    program = program_of(network(model_config("b0", 19)))
    assert Core(program, precision="float16").memory(512, 1024) < 0.6 * Core(program).memory(512, 1024)


@computes_in_float16
def test_numbers_beyond_float16_are_an_error_or_computed_in_float32(tmp_path: Path) -> None:
    made, pixels = too_large(network(model_config("b0", 5))), image(64, 96)
    with pytest.raises(NotFiniteError, match="float16 can hold; use float32"):
        Core(program_of(made), precision="float16")(pixels)
    path = checkpoint(made, tmp_path / "large.safetensors")
    with pytest.raises(EngineError, match="use float32"):
        open_native(path, "float16")(pixels[None])
    engine = open_native(path)
    assert engine.info.precision == "float16"
    with pytest.warns(EvitsegWarning, match="goes on in float32"):
        found = engine(pixels[None])
    assert engine.info.precision == "float32"
    np.testing.assert_array_equal(found, open_native(path, "float32")(pixels[None]))
    assert np.isfinite(found).all()


@computes_in_float16
def test_relu_does_not_hide_numbers_beyond_float16() -> None:
    """Infinities of both signs add up to no number; a ReLU that made 0 of it would give finite, wrong logits."""
    made = network(model_config("b0-relu", 5))
    with torch.no_grad():
        for parameter in made.backbone.stem.parameters():
            parameter.mul_(30)
    with pytest.raises(NotFiniteError, match="float16 can hold; use float32"):
        Core(program_of(made), precision="float16")(image(64, 96))


def test_a_precision_that_does_not_exist_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(network(model_config("b0", 5)), tmp_path / "model.safetensors")
    monkeypatch.setattr("evitseg.runtime.core.instruction_sets", lambda *_, **__: [])
    for precision in ("float16", "bfloat16"):
        with pytest.raises(EngineError, match=f"does not compute in {precision}; use float32"):
            open_native(path, precision)


def test_an_instruction_set_chooses_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(network(model_config("b0", 5)), tmp_path / "model.safetensors")
    half = next((each for each in ("float16", "bfloat16") if instruction_sets(each)), "float32")
    assert open_native(path).info.precision == half
    for precision, isa in [("float32", instruction_sets("float32")[-1]), *SETS]:
        monkeypatch.setenv(ISA_VARIABLE, isa)
        info = open_native(path).info
        assert (info.engine, info.precision) == (f"evitseg core ({isa})", precision)


def test_wide_networks_use_tile_registers_where_there_are_some(tmp_path: Path) -> None:
    if "amxbf16" not in instruction_sets("bfloat16"):
        pytest.skip("this processor has no tile registers")
    path = checkpoint(network(model_config("b1", 5)), tmp_path / "model.safetensors")
    assert open_native(path).info.engine == "evitseg core (amxbf16)"


def test_heads_that_do_not_fit_blocks_of_32_channels_run_in_float32(tmp_path: Path) -> None:
    b0 = BACKBONES["b0"]
    first, second, third, fourth = (replace(stage, width=48 * (i + 1)) for i, stage in enumerate(b0.stages))
    config = replace(model_config("b0", 5), backbone=replace(b0, stages=(first, second, third, fourth), head_dim=48))
    path = checkpoint(network(config), tmp_path / "model.safetensors")
    assert open_native(path).info.precision == "float32"
    with pytest.raises(EngineError, match="this network in float32 only"):
        open_native(path, "float16")


@computes_in_half_precision
def test_an_odd_number_of_heads_reads_nothing_that_was_not_written() -> None:
    """Answers of 9 heads of 16 channels fill half of their last block; the other half lies in memory used before."""
    b1 = BACKBONES["b1"]
    first, second, third, fourth = (replace(stage, width=48) for stage in b1.stages)
    backbone = replace(b1, stages=(first, second, third, fourth), head_dim=16, attention_kernels=(3, 5))
    program = program_of(network(replace(model_config("b1", 5), backbone=backbone)))
    for precision, isa in SETS:
        used = Core(program, 1, isa=isa, precision=precision)
        for size in ((64, 96), (256, 320), (32, 512), (160, 96)):
            pixels = image(*size)
            fresh = Core(program, 2, isa=isa, precision=precision)(pixels)
            assert used(pixels).tobytes() == fresh.tobytes()
            expected = Core(program)(pixels)
            assert np.sqrt(np.mean((fresh - expected) ** 2)) < 0.03 * np.sqrt(np.mean(expected**2))
