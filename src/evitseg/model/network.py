"""Build networks, a backbone with a head, from a `ModelConfig`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evitseg.architecture import (
    STRIDE,
    AttentionBlock,
    Backbone,
    Block,
    ClassificationHead,
    Conv,
    ModelConfig,
    SegmentationHead,
    head_plan,
    model_config,
    stage_plans,
    stem_plan,
)
from evitseg.errors import ConfigError
from evitseg.model.attention import AttentionSequence
from evitseg.model.layers import ConvNormAct, ConvSequence, activation
from evitseg.preprocess import Preprocess


class EfficientViTBackbone(nn.Module):
    """The feature extractor of any variant.

    Input: (batch, 3, height, width), normalised pixels.
    Output: the four stages' features, at strides 4, 8, 16 and 32.
    """

    def __init__(self, config: Backbone) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(_block(plan, config, "stem") for plan in stem_plan(config)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_block(plan, config, f"stage{number}") for plan in plans))
            for number, plans in enumerate(stage_plans(config), 1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


def _block(plan: Block, config: Backbone, part: str) -> nn.Module:
    block = AttentionSequence if isinstance(plan, AttentionBlock) else ConvSequence
    return block(plan, config.activation_in(part), config.norm_eps)  # type: ignore[arg-type]  # mypy joins the two classes


class SegmentationNetworkHead(nn.Module):
    """The head that adds stages 4, 3 and 2 at stride 8, refines the sum and scores the classes.

    Input: the four stages' features. Output: logits (batch, classes, height / 8, width / 8).
    """

    def __init__(self, config: SegmentationHead, backbone: Backbone) -> None:
        super().__init__()
        act, eps = backbone.activation, backbone.norm_eps
        plan = head_plan(backbone, config)
        self.inputs = nn.ModuleList(ConvNormAct(conv, act, eps) for conv in plan.inputs)
        self.blocks = nn.Sequential(*(ConvSequence(block, act, eps) for block in plan.blocks))
        self.outputs = nn.Sequential()
        for name, conv in plan.outputs.items():
            self.outputs.add_module(name, ConvNormAct(conv, act, eps))

    def forward(self, features: list[Tensor]) -> Tensor:
        _, fine, middle, coarse = features
        # Bicubic, because the published weights were trained with it.
        merged = (
            F.interpolate(self.inputs[0](coarse), scale_factor=4, mode="bicubic", align_corners=False)
            + F.interpolate(self.inputs[1](middle), scale_factor=2, mode="bicubic", align_corners=False)
            + self.inputs[2](fine)
        )
        logits: Tensor = self.outputs(self.blocks(merged))
        return logits


class ClassificationNetworkHead(nn.Module):
    """The head that widens stage 4, averages it over the image and scores the classes.

    Input: the four stages' features. Output: logits (batch, classes).
    """

    def __init__(self, config: ClassificationHead, backbone: Backbone) -> None:
        super().__init__()
        hidden, features = config.widths
        widen = Conv(backbone.stages[-1].width, hidden, act=True)
        self.widen = ConvNormAct(widen, backbone.activation, backbone.norm_eps)
        self.features = nn.Linear(hidden, features, bias=False)
        self.norm = nn.LayerNorm(features, eps=backbone.norm_eps)
        self.act = activation(backbone.activation)
        self.classify = nn.Linear(features, config.num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        pooled = self.widen(features[-1]).mean(dim=(-2, -1))
        logits: Tensor = self.classify(self.act(self.norm(self.features(pooled))))
        return logits


class EfficientViT(nn.Module):
    """A backbone with its head.

    Input: (batch, 3, height, width), pixels normalised with the mean and std of `evitseg.preprocess.Preprocess`. For
    segmentation both sides are multiples of 32, the network's stride.
    Output: logits, for segmentation at an eighth of the size.

    Raises: ConfigError for other sides.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = EfficientViTBackbone(config.backbone)
        self.head: nn.Module
        if isinstance(config.head, SegmentationHead):
            self.head = SegmentationNetworkHead(config.head, config.backbone)
        else:
            self.head = ClassificationNetworkHead(config.head, config.backbone)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and isinstance(self.config.head, SegmentationHead):
            height, width = x.shape[-2:]
            if height % STRIDE or width % STRIDE:
                raise ConfigError(
                    f"input of {height}×{width} pixels: both sides must be multiples of {STRIDE}; "
                    "Preprocess.fit gives the size that fits."
                )
        logits: Tensor = self.head(self.backbone(x))
        return logits


class NormalizedModel(nn.Module):
    """The network with normalisation as its first step.

    Input: (batch, height, width, 3) uint8 RGB. Output: logits (batch, classes, height / 8, width / 8) float32.
    """

    def __init__(self, network: EfficientViT, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (preprocess.mean, preprocess.std))
        self.shift, self.scale = nn.Buffer(-mean), nn.Buffer(1 / std)

    def forward(self, image: Tensor) -> Tensor:
        pixels = (image.permute(0, 3, 1, 2).float() + self.shift) * self.scale
        logits: Tensor = self.network(pixels.to(self.network.dtype))
        return logits


def build(variant: str, num_classes: int, head: str | None = None) -> EfficientViT:
    """A segmentation network with random weights.

    Args:
        variant: "b0" to "b3", "l0" to "l3".
        num_classes: channels of the logits.
        head: a row of `evitseg.architecture.SEGMENTATION_HEADS`; None for the variant's head for Cityscapes.

    Raises: ConfigError for an unknown name.
    """
    return EfficientViT(model_config(variant, num_classes, head))
