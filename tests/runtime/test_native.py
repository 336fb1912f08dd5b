"""Our own core: right against PyTorch, the same bits however it runs, safe on damaged programs."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.optional import needs

needs("torch")

from dataclasses import replace

from evitseg.architecture import (
    BACKBONES,
    CLASSIFICATION_HEADS,
    PUBLISHED_SEGMENTATION,
    Backbone,
    ModelConfig,
    Stage,
    model_config,
)
from evitseg.errors import ConfigError, EngineError, WeightsError
from evitseg.labels import numbered
from evitseg.loading import load
from evitseg.manifest import Manifest, Training
from evitseg.model.checkpoints import save_checkpoint
from evitseg.preprocess import Preprocess
from evitseg.runtime.core import Core, instruction_sets, library
from evitseg.runtime.evit_file import write_evit
from evitseg.runtime.program import CONV3, IMAGE, POOL, STORE, compile_program
from evitseg.runtime.upsample import argmax_upsampled
from tests.programs import image, network, program_of, shallow, torch_logits
from tests.runtime.programs import CLASSIFIER, CONFIGS, manifest, random_weights
from tests.runtime.programs import program as random_program

FUSED = [name for name in instruction_sets() if name != "sse4"]  # those with fused multiply-add


@pytest.mark.parametrize("name", PUBLISHED_SEGMENTATION)
def test_every_published_network_gives_pytorchs_logits(name: str) -> None:
    made, pixels = network(PUBLISHED_SEGMENTATION[name]), image(64, 96)
    expected = torch_logits(made, pixels)
    difference = np.abs(Core(program_of(made))(pixels) - expected).max() / np.abs(expected).max()
    assert difference < 1e-5  # float32, summed in another order


@pytest.mark.parametrize("variant", ["b0", "b0-relu", "l0"])
@pytest.mark.parametrize("size", [(32, 32), (256, 96), (160, 1088), (544, 64)])
def test_threads_and_instruction_sets_give_the_same_bytes(variant: str, size: tuple[int, int]) -> None:
    made, pixels = network(shallow(model_config(variant, 5))), image(*size)
    program = program_of(made)
    expected = Core(program, isa=FUSED[-1])(pixels)
    np.testing.assert_allclose(expected, torch_logits(made, pixels), atol=1e-5 * np.abs(expected).max())
    for isa in FUSED:
        for threads in (1, 2, 3, 9):
            assert Core(program, threads, isa=isa)(pixels).tobytes() == expected.tobytes(), (isa, threads)


def test_masks_are_the_same_for_all_threads_and_instruction_sets() -> None:
    program = small_program([(16, 8)], ([HALVE, HALVE, HALVE, PUT], 8))
    rng = np.random.default_rng(0)
    for classes, h, w, size in ((19, 40, 60, (320, 480)), (5, 7, 9, (50, 33)), (300, 12, 20, (77, 150))):
        logits = rng.normal(size=(classes, h, w)).astype(np.float32)
        expected = argmax_upsampled(logits, size)
        for isa in instruction_sets():
            for threads in (1, 2, 5):
                mask = argmax_upsampled(logits, size, core=Core(program, threads, isa=isa))
                np.testing.assert_array_equal(mask, expected, err_msg=f"{isa}, {threads} threads")


@pytest.mark.parametrize("variant", ["b0", "l0"])
def test_a_classifier_gives_pytorchs_scores_however_it_runs(variant: str) -> None:
    backbone = replace(BACKBONES[variant], attention_eps=1e-5)  # as in timm's
    made = network(shallow(ModelConfig(backbone, CLASSIFICATION_HEADS[variant])))
    program = program_of(made)
    for size in ((224, 224), (32, 64), (160, 2080)):
        pixels = image(*size)
        expected = torch_logits(made, pixels)
        scores = Core(program, isa=FUSED[-1])(pixels)
        np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        for isa in FUSED:
            for threads in (1, 2, 5):
                assert Core(program, threads, isa=isa)(pixels).tobytes() == scores.tobytes(), (isa, threads)
        for isa in instruction_sets("float16"):
            half = Core(program, 2, isa=isa, precision="float16")(pixels)
            np.testing.assert_allclose(half, expected, atol=0.05 * np.abs(expected).max(), rtol=0)


def test_a_model_file_with_a_classifier_is_refused(tmp_path: Path) -> None:
    network = CONFIGS["mbconv"]
    same_classes = replace(network, head=replace(network.head, num_classes=CLASSIFIER.num_classes))
    write_evit(tmp_path / "model.evit", manifest(same_classes), random_program(CLASSIFIER))
    with pytest.raises(WeightsError, match="holds a classifier"):
        load(tmp_path / "model.evit")


def test_weights_that_overflow_float32_are_an_error() -> None:
    weights = [replace(own, kernel=own.kernel * np.float32(1e20)) for own in random_weights(CONFIGS["mbconv"])]
    core = Core(compile_program(CONFIGS["mbconv"], Preprocess(), weights))
    with pytest.raises(EngineError, match="beyond what float32 can hold; its weights are damaged"):
        core(image(32, 32))


def test_a_classifier_without_its_last_layers_is_refused() -> None:
    made = network(ModelConfig(BACKBONES["b0"], CLASSIFICATION_HEADS["b0"]))
    with pytest.raises(ConfigError, match="gives no masks"):
        compile_program(made.config, Preprocess(), [])


def test_a_custom_network_runs_if_the_core_knows_its_parts() -> None:
    late = Stage(32, 1, "mbconv", True, 4, 4, True)
    stages = (Stage(8, 1, "fused_mbconv", False, 2, 4, False), Stage(24, 0, "mbconv", False, 4, 3, False), late, late)
    config = model_config("b0", 3)
    custom = ModelConfig(Backbone(8, 1, "resblock", stages, 16, (3, 5), 1e-5, "gelu_tanh"), config.head)
    made, pixels = network(custom), image(96, 160)
    expected = torch_logits(made, pixels)
    np.testing.assert_allclose(Core(program_of(made))(pixels), expected, atol=1e-5 * np.abs(expected).max())
    small_heads = ModelConfig(Backbone(8, 1, "depthwise", stages, 8), config.head)
    with pytest.raises(ConfigError, match="multiple of 16"):
        program_of(network(small_heads))


def test_streams_run_side_by_side() -> None:
    from concurrent.futures import ThreadPoolExecutor

    core, pixels = Core(program_of(network(model_config("b0", 5))), threads=2, streams=2), image(128, 128)
    expected = core(pixels)
    with ThreadPoolExecutor(4) as pool:
        assert all((logits == expected).all() for logits in pool.map(core, [pixels] * 12))


FORK = """
import os, sys
import numpy as np
from evitseg.runtime.core import Core

core, pixels = Core(open(sys.argv[1], "rb").read(), threads=2), np.ones((64, 64, 3), np.uint8)
expected = core(pixels)
child = os.fork()
if child == 0:
    os._exit(0 if (core(pixels) == expected).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_has_threads_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(program_of(network(model_config("b0", 5))))
    # In a process of its own: others in this one warn of forks.
    subprocess.run([sys.executable, "-c", FORK, tmp_path / "program"], check=True, timeout=120)


@pytest.mark.parametrize("variant", ["b0", "l0"])
def test_a_checkpoint_runs_as_it_is(variant: str, tmp_path: Path) -> None:
    made, pixels = network(model_config(variant, 5)), image(64, 96)
    manifest = Manifest(f"{variant}-test", made.config, numbered(5), Preprocess(), Training("none", "Apache-2.0"))
    save_checkpoint(made, manifest, tmp_path / "run.safetensors")
    segment = load(tmp_path / "run.safetensors", engine="native", precision="float32", size="native")
    np.testing.assert_array_equal(segment.logits(pixels), Core(program_of(made))(pixels))
    assert segment.manifest.name == manifest.name
    bad = made.state_dict()
    bad["head.outputs.classify.conv.weight"][0, 0] = float("nan")
    save_checkpoint(made, manifest, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match="not finite"):
        load(tmp_path / "nan.safetensors", engine="native")
    bad["head.outputs.classify.conv.weight"][0, 0] = 0
    next(values for name, values in bad.items() if name.endswith("running_var"))[0] = -1
    save_checkpoint(made, manifest, tmp_path / "negative.safetensors")
    with pytest.raises(WeightsError, match="negative variances"):
        load(tmp_path / "negative.safetensors", engine="native")


def small_program(values: list[tuple[int, int]], *segments: tuple[list[tuple[int, int]], int]) -> bytes:
    """Of 16 channels everywhere and weights that are 0; the logits are the last value.

    Args:
        values: channels and stride of each.
        segments: what follows the image, as (kind, stride), and the segment's stride; each stores the next value.
    """
    size = 256  # bytes of an operation
    rows: list[list[int]] = []
    places: list[list[int]] = []
    for number, (steps, stride) in enumerate(segments):
        places.append([len(rows), 1 + len(steps), stride])
        rows.append([IMAGE, 0, 0, 0, 3, 1, 0, 0])
        rows += [[kind, 0, 3 if i == 0 else 16, 0, 16, step, 0, number] for i, (kind, step) in enumerate(steps)]
    ops = np.zeros((len(rows), size // 4), "<i4")
    ops[:, :8] = rows
    weights = 16 * 16 * 9
    counts = np.array([size, len(ops), len(values), len(places), 16, len(values) - 1], "<i4")
    start = b"EVITSEG2" + counts.tobytes() + np.array([weights], "<i8").tobytes() + ops.tobytes()
    start += np.array(values, "<i4").tobytes() + np.array(places, "<i4").tobytes()
    return start + bytes(-len(start) % 64) + bytes(4 * weights)


HALVE, PUT = (CONV3, 2), (STORE, 1)


def test_a_small_program_gives_the_bias() -> None:
    logits = Core(small_program([(16, 8)], ([HALVE, HALVE, HALVE, PUT], 8)))(image(64, 32))
    assert logits.shape == (16, 8, 4)
    assert not logits.any()


def test_an_operation_that_only_passes_rows_on_cannot_halve_them() -> None:
    """It would get rows of twice the length that it has room for."""
    with pytest.raises(EngineError, match="damaged"):
        Core(small_program([(16, 8)], ([HALVE, HALVE, (STORE, 2)], 8)))


def test_a_program_that_halves_the_size_until_nothing_is_left_is_refused() -> None:
    """32 halvings overflow 32 bits: the stride is 0, by which the engine would divide."""
    to_nothing, logits = ([*[HALVE] * 32, PUT], 0), ([HALVE, HALVE, HALVE, PUT], 8)
    with pytest.raises(EngineError, match="damaged"):
        Core(small_program([(16, 0), (16, 8)], to_nothing, logits))


def with_number(program: bytes, at: int, number: int) -> bytes:
    return program[:at] + number.to_bytes(4, "little") + program[at + 4 :]


def test_logits_of_another_segment_than_the_last_are_refused() -> None:
    """A run gives as many as the last segment has rows and columns: here sixteen times as many as there is room for."""
    made = small_program([(16, 8), (16, 2)], ([HALVE, HALVE, HALVE, PUT], 8), ([HALVE, PUT], 2))
    with pytest.raises(EngineError, match="damaged"):
        Core(with_number(made, 28, 0))


def test_a_mean_over_all_pixels_is_refused_unless_it_gives_the_scores() -> None:
    """A window of such a segment would add to sums where there are none: it places them in the whole image."""
    made = small_program([(16, 2), (16, 8)], ([HALVE, (POOL, 1)], 2), ([HALVE, HALVE, HALVE, PUT], 8))
    with pytest.raises(EngineError, match="damaged"):
        Core(with_number(made, 40 + 2 * 256 + 12, 16))  # the pool's features


def test_operations_of_no_segment_are_refused() -> None:
    """An attention could take their numbers for those of the operation that added up its sums."""
    made = small_program([(16, 8), (16, 8)], *[([HALVE, HALVE, HALVE, PUT], 8)] * 2)
    assert Core(made)(image(32, 32)).shape == (16, 4, 4)
    places = 40 + 10 * 256 + 2 * 8  # of the segments, of 12 bytes each
    second = with_number(made, 20, 1)[:places] + made[places + 12 : places + 24] + bytes(12) + made[places + 24 :]
    with pytest.raises(EngineError, match="damaged"):
        Core(second)


def test_a_missing_library_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError, match="install evitseg again"):
        library(tmp_path / "libevitseg.so")
    with pytest.raises(EngineError, match="install evitseg again"):
        Core(b"", path=tmp_path / "libevitseg.so")
    gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [(0, 32), (32, 33), (16, 64)])
def test_a_size_that_32_does_not_divide_is_refused(size: tuple[int, int]) -> None:
    core = Core(program_of(network(model_config("b0", 5))))
    with pytest.raises(EngineError, match="multiples of 32"):
        core(np.zeros((*size, 3), np.uint8))
