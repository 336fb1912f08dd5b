"""Random networks as programs of the core, and what PyTorch computes with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tests.optional import needs

needs("torch")

import torch

from evitseg.architecture import ModelConfig
from evitseg.exporters.evit import network_program
from evitseg.model.network import EfficientViT, NormalizedModel
from evitseg.preprocess import Preprocess


def network(config: ModelConfig) -> EfficientViT:
    """Random weights, with batch norms that do something."""
    torch.manual_seed(0)
    made = EfficientViT(config).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return made


def shallow(config: ModelConfig) -> ModelConfig:
    """The same kinds of blocks at the same widths, each once per stage."""
    first, second, third, fourth = (replace(stage, depth=1) for stage in config.backbone.stages)
    return replace(config, backbone=replace(config.backbone, stages=(first, second, third, fourth)))


def program_of(made: EfficientViT) -> bytes:
    return network_program(made, Preprocess())


def image(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_logits(made: EfficientViT, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = NormalizedModel(made, Preprocess())(torch.from_numpy(pixels)[None])[0].numpy()
    return logits
