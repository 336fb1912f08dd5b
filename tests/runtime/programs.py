"""Small programs for the core, one for every kind of block, with random weights; none needs PyTorch.

`python -m tests.runtime.programs FOLDER` writes them to files, for the core's own tests. FOLDER/tables has them without
their weights and with 16 further bytes, as core/tests/fuzz_program.cpp begins with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evitseg.architecture import (
    Activation,
    Backbone,
    BlockKind,
    ClassificationHead,
    ModelConfig,
    SegmentationHead,
    Stage,
    placed_convs,
)
from evitseg.labels import numbered
from evitseg.manifest import Manifest, Training
from evitseg.preprocess import Preprocess
from evitseg.runtime.evit_file import write_evit
from evitseg.runtime.program import ClassifierLayers, compile_program
from evitseg.runtime.weights import Weights


def config(
    stem: BlockKind,
    kind: BlockKind,
    head_kind: BlockKind,
    kernels: tuple[int, ...],
    classes: int,
    head_dim: int = 16,
    last: int = 32,
) -> ModelConfig:
    """A network whose stages have 16 channels at first and `last` at last; its last two stages attend."""
    activation: Activation = "hardswish" if stem == "depthwise" else "gelu_tanh"
    first = Stage(16, 0, kind, False, 2, 2, kind == "mbconv"), Stage(24, 1, kind, False, 2, 2, False)
    later = Stage(last, 1, "mbconv", True, 2, 2, True)
    head = SegmentationHead(16, 1, head_kind, 2, 2 if kind == "mbconv" else None, classes)
    return ModelConfig(Backbone(8, 1, stem, (*first, later, later), head_dim, kernels, 1e-5, activation), head)


CONFIGS = {
    "mbconv": config("depthwise", "mbconv", "mbconv", (5,), 5),
    # Three heads: in half precision, a block of channels holds the last one's queries and the next one's after it.
    "fused": config("resblock", "fused_mbconv", "fused_mbconv", (3, 5), 19, last=48),
    "depthwise": config("mbconv", "depthwise", "resblock", (7,), 1, 32),
}

CLASSIFIER = ModelConfig(CONFIGS["mbconv"].backbone, ClassificationHead((72, 40), 10))
ALL = CONFIGS | {"classifier": CLASSIFIER}


def random_layers(head: ClassificationHead) -> ClassifierLayers:
    rng, (hidden, features) = np.random.default_rng(1), head.widths

    def numbers(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    scale, shift = 1 + numbers(features), numbers(features)
    return ClassifierLayers(
        numbers(features, hidden), scale, shift, numbers(head.num_classes, features), numbers(head.num_classes)
    )


def random_weights(network: ModelConfig) -> list[Weights]:
    rng, made = np.random.default_rng(0), []
    for placed in placed_convs(network):
        conv = placed.conv
        inputs = conv.inputs // conv.groups
        scale = (1.6 / (inputs * conv.kernel**2)) ** 0.5
        kernel = rng.normal(0, scale, (conv.outputs, inputs, conv.kernel, conv.kernel)).astype(np.float32)
        made.append(Weights(kernel, rng.normal(0, 0.1, conv.outputs).astype(np.float32)))
    return made


def program(network: ModelConfig) -> bytes:
    layers = random_layers(network.head) if isinstance(network.head, ClassificationHead) else None
    return compile_program(network, Preprocess(), random_weights(network), layers)


def manifest(network: ModelConfig) -> Manifest:
    return Manifest("test", network, numbered(network.num_classes), Preprocess(64), Training("none", "Apache-2.0"))


def tables(made: bytes) -> int:
    """Bytes of a program before its weights."""
    return len(made) - 4 * int(np.frombuffer(made, "<i8", 1, 32)[0])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, network in ALL.items():
        made = program(network)
        (folder / f"{name}.program").write_bytes(made)
        (folder / "tables" / name).write_bytes(made[: tables(made)] + bytes(16))
    for name, network in CONFIGS.items():
        write_evit(folder / f"{name}.evit", manifest(network), program(network))
