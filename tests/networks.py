"""Networks with weights as after training."""

from __future__ import annotations

from tests.optional import needs

needs("torch")

import torch

from evitseg.model.network import EfficientViT


def lively(model: EfficientViT, seed: int = 0) -> EfficientViT:
    """Random weights and batch-norm statistics that keep the signal alive through a deep network."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.6, 1.2, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (1.6 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.05, generator=generator)
    return model.eval()
