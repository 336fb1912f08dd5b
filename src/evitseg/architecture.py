"""All variants of the network as rows of numbers, and the plan of convolutions that follows from a row.

The plan is the one description of the network: `evitseg.model` builds torch modules from it, and parameters and
multiply-adds are counted on it, without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from evitseg.errors import ConfigError, unknown

STRIDE = 32
"""Stride of the last stage in image pixels. The sides of the network's input are multiples of it."""
LOGIT_STRIDE = 8
"""Stride of the logits in image pixels, which is that of the finest stage that a segmentation head uses."""

# Limits for manifests, which may come from anyone: no number may demand more memory than a machine has.
MAX_WIDTH, MAX_DEPTH, MAX_EXPAND, MAX_KERNELS = 16_384, 1_000, 256, 16
MAX_PARAMETERS = 2**31
"""Eight times the parameters of the largest variant."""
MAX_CLASSES = 65_535

EARLY = ("stem", "stage1", "stage2")
"""The parts of a backbone where activations cost most: they have the most pixels, and in 8 bits the widest ranges."""

Activation = Literal["hardswish", "gelu_tanh", "relu"]
BlockKind = Literal["depthwise", "mbconv", "fused_mbconv", "resblock"]


@dataclass(frozen=True)
class Stage:
    """A stage after the stem: a block that halves the resolution, then `depth` blocks at the new resolution.

    Attributes:
        width: channels of the stage's output.
        depth: number of blocks after the first one.
        kind: kind of the convolution blocks.
        attends: whether each of the `depth` blocks is attention followed by a convolution block.
        expand: expansion factor of the `depth` blocks.
        expand_first: expansion factor of the first block.
        late_norm: whether blocks use biases, and batch norm only after their last convolution.
    """

    width: int
    depth: int
    kind: BlockKind
    attends: bool
    expand: int
    expand_first: int
    late_norm: bool

    def __post_init__(self) -> None:
        _check_range("width", self.width, 1, MAX_WIDTH)
        _check_range("depth", self.depth, 0, MAX_DEPTH)
        _check_range("expand", self.expand, 1, MAX_EXPAND)
        _check_range("expand_first", self.expand_first, 1, MAX_EXPAND)


@dataclass(frozen=True)
class Backbone:
    """The feature extractor, with every number written out.

    Attributes:
        stem_width, stem_depth, stem_kind: channels, number and kind of the blocks at stride 2.
        stages: four stages, at strides 4, 8, 16 and 32.
        head_dim: channels of one attention head.
        attention_kernels: odd kernel sizes of the depthwise convolutions that aggregate neighbouring tokens, one per
            scale.
        attention_eps: added to the divisor of attention. timm's weights were trained with 1e-5. The published 1e-15
            has no measurable effect and is 0 here.
        activation: hardswish in the B series, the tanh approximation of GELU in the L series.
        norm_eps: epsilon of batch norm and of the classifier's layer norm.
        early_activation: activation of the parts in `EARLY`, if it is another one. ReLU is for hardware with 8-bit
            activations: hard-swish needs 16 bits there.
    """

    stem_width: int
    stem_depth: int
    stem_kind: BlockKind
    stages: tuple[Stage, Stage, Stage, Stage]
    head_dim: int
    attention_kernels: tuple[int, ...] = (5,)
    attention_eps: float = 0.0
    activation: Activation = "hardswish"
    norm_eps: float = 1e-5
    early_activation: Activation | None = None

    def __post_init__(self) -> None:
        _check_range("stem_width", self.stem_width, 1, MAX_WIDTH)
        _check_range("stem_depth", self.stem_depth, 0, MAX_DEPTH)
        _check_range("head_dim", self.head_dim, 1, MAX_WIDTH)
        _check_range("number of attention_kernels", len(self.attention_kernels), 0, MAX_KERNELS)
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.attention_kernels):
            raise ConfigError(f"attention_kernels {self.attention_kernels} must be odd and positive, such as (3, 5).")
        for what, value in (("attention_eps", self.attention_eps), ("norm_eps", self.norm_eps)):
            if not 0 <= value <= 1:  # nor NaN
                raise ConfigError(f"{what} is {value}; it must be between 0 and 1.")
        for stage in self.stages:
            if stage.attends and stage.width % self.head_dim:
                raise ConfigError(f"stage width {stage.width} must be a multiple of head_dim {self.head_dim}.")

    def activation_in(self, part: str) -> Activation:
        """The activation of a part of the network, such as "stem", "stage1" or "head"."""
        return self.early_activation if self.early_activation and part in EARLY else self.activation


@dataclass(frozen=True)
class SegmentationHead:
    """A head that adds stages 4, 3 and 2 at stride 8, refines the sum, and computes the logits.

    Attributes:
        width: channels at which the three stages are added.
        depth, kind, expand: number, kind and expansion factor of the residual blocks after the sum.
        final_expand: expansion factor of a convolution before the last one; None for no such convolution.
        num_classes: channels of the logits.
    """

    width: int
    depth: int
    kind: BlockKind
    expand: int
    final_expand: int | None
    num_classes: int

    def __post_init__(self) -> None:
        _check_range("head's width", self.width, 1, MAX_WIDTH)
        _check_range("head's depth", self.depth, 0, MAX_DEPTH)
        _check_range("head's expand", self.expand, 1, MAX_EXPAND)
        _check_range("final_expand", self.final_expand or 1, 1, MAX_EXPAND)
        _check_num_classes(self.num_classes)


@dataclass(frozen=True)
class ClassificationHead:
    """A head that widens stage 4, averages it over the image, and scores the classes; for ImageNet's weights.

    Attributes:
        widths: channels before and after the first linear layer.
        num_classes: number of scores.
    """

    widths: tuple[int, int]
    num_classes: int

    def __post_init__(self) -> None:
        for width in self.widths:
            _check_range("head's width", width, 1, MAX_WIDTH)
        _check_num_classes(self.num_classes)


Head: TypeAlias = SegmentationHead | ClassificationHead


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{what} is {value}; it must be between {low} and {high}.")


def _check_num_classes(num_classes: int) -> None:
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ConfigError(f"num_classes is {num_classes}; it must be between 1 and {MAX_CLASSES}.")


@dataclass(frozen=True)
class ModelConfig:
    """A whole network: a backbone and a head."""

    backbone: Backbone
    head: Head

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return self.head.num_classes

    @property
    def variant(self) -> str:
        """The name of this backbone in `BACKBONES`, or "custom"."""
        backbone = replace(self.backbone, attention_eps=0.0)
        return next((name for name, row in BACKBONES.items() if row == backbone), "custom")


def _b_series(
    widths: tuple[int, ...], depths: tuple[int, ...], head_dim: int, early_activation: Activation | None = None
) -> Backbone:
    return Backbone(
        stem_width=widths[0],
        stem_depth=depths[0],
        stem_kind="depthwise",
        stages=_stages(
            # The paper counts the block that halves the resolution only in the first two stages.
            Stage(width, depth - (not late), "mbconv", attends=late, expand=4, expand_first=4, late_norm=late)
            for width, depth, late in zip(widths[1:], depths[1:], (False, False, True, True), strict=True)
        ),
        head_dim=head_dim,
        early_activation=early_activation,
    )


def _l_series(widths: tuple[int, ...], depths: tuple[int, ...]) -> Backbone:
    kinds: tuple[BlockKind, ...] = ("fused_mbconv", "fused_mbconv", "mbconv", "mbconv")
    expands = (4, 4, 4, 6)
    return Backbone(
        stem_width=widths[0],
        stem_depth=depths[0],
        stem_kind="resblock",
        stages=_stages(
            Stage(width, depth, kind, attends=i == 3, expand=expand, expand_first=4 * expand, late_norm=i >= 2)
            for i, (width, depth, kind, expand) in enumerate(zip(widths[1:], depths[1:], kinds, expands, strict=True))
        ),
        head_dim=32,
        activation="gelu_tanh",
        norm_eps=1e-7,
    )


def _stages(stages: Iterator[Stage]) -> tuple[Stage, Stage, Stage, Stage]:
    first, second, third, fourth = stages
    return first, second, third, fourth


BACKBONES: dict[str, Backbone] = {
    #               widths                         depths
    "b0": _b_series((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), head_dim=16),
    "b1": _b_series((16, 32, 64, 128, 256), (1, 2, 3, 3, 4), head_dim=16),
    "b2": _b_series((24, 48, 96, 192, 384), (1, 3, 4, 4, 6), head_dim=32),
    "b3": _b_series((32, 64, 128, 256, 512), (1, 4, 6, 6, 9), head_dim=32),
    "b0-relu": _b_series((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), head_dim=16, early_activation="relu"),
    "l0": _l_series((32, 64, 128, 256, 512), (1, 1, 1, 4, 4)),
    "l1": _l_series((32, 64, 128, 256, 512), (1, 1, 1, 6, 6)),
    "l2": _l_series((32, 64, 128, 256, 512), (1, 2, 2, 8, 8)),
    "l3": _l_series((64, 128, 256, 512, 1024), (1, 2, 2, 8, 8)),
}

SEGMENTATION_HEADS: dict[str, SegmentationHead] = {
    #                                width depth kind      expand final_expand classes
    "b0-cityscapes": SegmentationHead(32, 1, "mbconv", 4, 4, 19),
    "b1-cityscapes": SegmentationHead(64, 3, "mbconv", 4, 4, 19),
    "b2-cityscapes": SegmentationHead(96, 3, "mbconv", 4, 4, 19),
    "b3-cityscapes": SegmentationHead(128, 3, "mbconv", 4, 4, 19),
    "l1-cityscapes": SegmentationHead(256, 3, "fused_mbconv", 1, None, 19),
    "l2-cityscapes": SegmentationHead(256, 5, "fused_mbconv", 1, None, 19),
    "b1-ade20k": SegmentationHead(64, 3, "mbconv", 4, None, 150),
    "b2-ade20k": SegmentationHead(96, 3, "mbconv", 4, None, 150),
    "b3-ade20k": SegmentationHead(128, 3, "mbconv", 4, None, 150),
    "l1-ade20k": SegmentationHead(128, 3, "fused_mbconv", 4, 8, 150),
    "l2-ade20k": SegmentationHead(128, 3, "fused_mbconv", 4, 8, 150),
}
"""Heads of the published segmentation models. A name is that of the backbone and of the training data."""

CLASSIFICATION_HEADS: dict[str, ClassificationHead] = {
    "b0": ClassificationHead((1024, 1280), 1000),
    "b1": ClassificationHead((1536, 1600), 1000),
    "b2": ClassificationHead((2304, 2560), 1000),
    "b3": ClassificationHead((2304, 2560), 1000),
    "l0": ClassificationHead((3072, 3200), 1000),
    "l1": ClassificationHead((3072, 3200), 1000),
    "l2": ClassificationHead((3072, 3200), 1000),
    "l3": ClassificationHead((6144, 6400), 1000),
}

# Variants without a published segmentation model use the head of the nearest published variant.
_NEIGHBOURS = {"b0-relu": "b0-cityscapes", "l0": "l1-cityscapes", "l3": "l2-cityscapes"}

PUBLISHED_SEGMENTATION = {
    name: ModelConfig(BACKBONES[name.split("-")[0]], head) for name, head in SEGMENTATION_HEADS.items()
}
"""The published segmentation networks by short name."""


def published_start(variant: str) -> str | None:
    """The published segmentation network to start training from: the one whose backbone differs in its early
    activation at most; None for a variant without one.

    Raises: ConfigError for an unknown name.
    """
    backbone = replace(backbone_named(variant), early_activation=None)
    return next((name for name, config in PUBLISHED_SEGMENTATION.items() if config.backbone == backbone), None)


def short_name(name: str) -> str:
    """The short name of a published segmentation network, from its short or full name; other names are unchanged."""
    return name.removeprefix("efficientvit-seg-")


def model_config(variant: str, num_classes: int, head: str | None = None) -> ModelConfig:
    """The configuration of a segmentation network, by the names of its parts.

    Args:
        variant: a row of `BACKBONES`, such as "b1".
        num_classes: channels of the logits.
        head: a row of `SEGMENTATION_HEADS`; by default that of the variant's Cityscapes model.

    Raises: ConfigError for an unknown name.
    """
    backbone = backbone_named(variant)
    head = head or _NEIGHBOURS.get(variant, f"{variant}-cityscapes")
    if head not in SEGMENTATION_HEADS:
        raise unknown("segmentation head", head, SEGMENTATION_HEADS)
    return ModelConfig(backbone, replace(SEGMENTATION_HEADS[head], num_classes=num_classes))


def backbone_named(variant: str) -> Backbone:
    """The row of `BACKBONES` with this name. Raises: ConfigError for an unknown name."""
    if variant not in BACKBONES:
        raise unknown("variant", variant, BACKBONES)
    return BACKBONES[variant]


@dataclass(frozen=True)
class Conv:
    """A convolution, with its batch norm and activation. Padding keeps the input size, divided by the stride.

    Attributes:
        inputs, outputs: numbers of channels.
        kernel, stride, groups: as in PyTorch; the kernel is square.
        bias, norm, act: whether there is a bias, a batch norm after it, and an activation after that.
    """

    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool = False
    norm: bool = True
    act: bool = False

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, including those of batch norm."""
        weights = self.outputs * self.inputs // self.groups * self.kernel**2
        return weights + self.outputs * (self.bias + 2 * self.norm)

    @property
    def macs(self) -> int:
        """Multiply-adds per output pixel."""
        return self.outputs * self.inputs // self.groups * self.kernel**2


@dataclass(frozen=True)
class ConvBlock:
    """A sequence of named convolutions; if `residual`, its input is added to its output."""

    convs: dict[str, Conv]
    residual: bool

    @property
    def stride(self) -> int:
        """Stride of the whole block."""
        return max(conv.stride for conv in self.convs.values())


@dataclass(frozen=True)
class AttentionBlock:
    """Multi-scale ReLU linear attention, then a convolution block; both are residual.

    Attributes:
        width: input and output channels.
        head_dim, kernels, eps: as in `Backbone`.
        local: the convolution block.
    """

    width: int
    head_dim: int
    kernels: tuple[int, ...]
    eps: float
    local: ConvBlock
    stride: int = field(default=1, init=False)

    @property
    def heads_per_scale(self) -> int:
        """Number of attention heads per scale."""
        return self.width // self.head_dim

    @property
    def convs(self) -> dict[str, Conv]:
        """The convolutions of attention by name: qkv, two per scale for aggregation, and the projection."""
        tokens = 3 * self.width  # q, k and v
        convs = {"qkv": Conv(self.width, tokens, norm=False)}
        for i, kernel in enumerate(self.kernels):
            convs[f"aggregate.{i}.depthwise"] = Conv(tokens, tokens, kernel, groups=tokens, norm=False)
            convs[f"aggregate.{i}.pointwise"] = Conv(tokens, tokens, groups=3 * self.heads_per_scale, norm=False)
        return convs | {"proj": Conv(self.width * (1 + len(self.kernels)), self.width)}

    @property
    def product_macs(self) -> int:
        """Multiply-adds per token in the two matrix products; the second one has an extra row for the divisor."""
        heads = self.heads_per_scale * (1 + len(self.kernels))
        return heads * self.head_dim * (2 * self.head_dim + 1)


Block: TypeAlias = ConvBlock | AttentionBlock


def conv_block(
    kind: BlockKind, inputs: int, outputs: int, expand: int, *, stride: int = 1, late_norm: bool = False
) -> ConvBlock:
    """A convolution block, which is residual if its input and output have the same shape."""
    hidden = inputs * expand
    early = {"bias": late_norm, "norm": not late_norm, "act": True}
    match kind:
        case "depthwise":
            convs = {
                "depthwise": Conv(inputs, inputs, 3, stride, groups=inputs, **early),
                "pointwise": Conv(inputs, outputs),
            }
        case "mbconv":
            convs = {
                "expand": Conv(inputs, hidden, **early),
                "depthwise": Conv(hidden, hidden, 3, stride, groups=hidden, **early),
                "pointwise": Conv(hidden, outputs),
            }
        case "fused_mbconv":
            convs = {"spatial": Conv(inputs, hidden, 3, stride, **early), "pointwise": Conv(hidden, outputs)}
        case "resblock":
            convs = {"first": Conv(inputs, hidden, 3, stride, **early), "second": Conv(hidden, outputs, 3)}
        case _:
            raise unknown("kind of block", kind, ("depthwise", "mbconv", "fused_mbconv", "resblock"))
    return ConvBlock(convs, residual=stride == 1 and inputs == outputs)


def stem_plan(backbone: Backbone) -> list[ConvBlock]:
    """The blocks at stride 2; the first one is a single convolution."""
    width = backbone.stem_width
    first = ConvBlock({"conv": Conv(3, width, 3, stride=2, act=True)}, residual=False)
    return [first] + [conv_block(backbone.stem_kind, width, width, 1) for _ in range(backbone.stem_depth)]


def stage_plans(backbone: Backbone) -> list[list[Block]]:
    """The blocks of the four stages."""
    plans, inputs = [], backbone.stem_width
    for stage in backbone.stages:
        width, late = stage.width, stage.late_norm
        blocks: list[Block] = [conv_block(stage.kind, inputs, width, stage.expand_first, stride=2, late_norm=late)]
        for _ in range(stage.depth):
            local = conv_block(stage.kind, width, width, stage.expand, late_norm=late)
            attention = AttentionBlock(
                width, backbone.head_dim, backbone.attention_kernels, backbone.attention_eps, local
            )
            blocks.append(attention if stage.attends else local)
        plans.append(blocks)
        inputs = width
    return plans


@dataclass(frozen=True)
class HeadPlan:
    """The convolutions of a segmentation head.

    Attributes:
        inputs: the convolutions from stages 4, 3 and 2, in this order, to the common width.
        blocks: the residual blocks after the sum.
        outputs: the last convolutions by name; the last one computes the logits.
    """

    inputs: list[Conv]
    blocks: list[ConvBlock]
    outputs: dict[str, Conv]


def head_plan(backbone: Backbone, head: SegmentationHead) -> HeadPlan:
    """The convolutions of a segmentation head on this backbone."""
    hidden = head.width * (head.final_expand or 1)
    widen = {"expand": Conv(head.width, hidden, act=True)} if head.final_expand else {}
    return HeadPlan(
        inputs=[Conv(stage.width, head.width) for stage in reversed(backbone.stages[1:])],
        blocks=[conv_block(head.kind, head.width, head.width, head.expand) for _ in range(head.depth)],
        outputs=widen | {"classify": Conv(hidden, head.num_classes, bias=True, norm=False)},
    )


@dataclass(frozen=True)
class Cost:
    """The size and the computational cost of a network.

    Attributes:
        parameters: number of trainable parameters.
        macs_per_pixel: multiply-adds per image pixel. They do not depend on the image's size (a multiple of 32),
            because convolutions and linear attention are linear in the number of pixels. Interpolation, activations,
            batch norm (folded into convolutions) and a classifier's layers after the average are not counted.
    """

    parameters: int
    macs_per_pixel: float

    def macs(self, height: int, width: int) -> float:
        """Multiply-adds for one image of this size in pixels."""
        return self.macs_per_pixel * height * width


def cost(config: ModelConfig) -> Cost:
    """Parameters and multiply-adds of a network, counted on its plan."""
    parts = list(placed_convs(config))
    parameters = sum(part.conv.parameters for part in parts)
    macs = sum(part.conv.macs / part.stride**2 for part in parts)
    macs += sum(block.product_macs / stride**2 for block, stride in _attention(config.backbone))
    if isinstance(config.head, ClassificationHead):
        hidden, features = config.head.widths
        parameters += hidden * features + 2 * features + (features + 1) * config.head.num_classes
    return Cost(parameters, macs)


def softmax_macs(config: ModelConfig, height: int, width: int) -> float:
    """Multiply-adds for one image with softmax attention over the same tokens instead of linear attention.

    The two matrix products of softmax attention grow with the square of the number of tokens.
    """
    macs = cost(config).macs(height, width)
    for block, stride in _attention(config.backbone):
        tokens = height * width / stride**2
        channels = block.width * (1 + len(block.kernels))
        macs += tokens * (2 * channels * tokens - block.product_macs)
    return macs


def _attention(backbone: Backbone) -> Iterator[tuple[AttentionBlock, int]]:
    """All attention blocks with their strides."""
    for number, blocks in enumerate(stage_plans(backbone), 2):
        yield from ((block, 2**number) for block in blocks if isinstance(block, AttentionBlock))


@dataclass(frozen=True)
class PlacedConv:
    """A convolution and its place in the network.

    Attributes:
        block: its block, such as "stage3.block1.attention"; stages count from 1.
        name: its name in the block, such as "qkv".
        conv: the convolution.
        stride: stride of its output in image pixels.
    """

    block: str
    name: str
    conv: Conv
    stride: int

    @property
    def module_name(self) -> str:
        """Name of the module in the PyTorch network and in checkpoints."""
        where = self.block.split(".")
        if where[0] == "stem":
            return f"backbone.stem.{where[1].removeprefix('block')}.{self.name}"
        if where == ["head"]:
            return f"head.{self.name}"
        if where[0] == "head":
            if where[1].startswith("from_stage"):
                return f"head.inputs.{4 - int(where[1].removeprefix('from_stage'))}"
            if where[1] == "outputs":
                return f"head.outputs.{self.name}"
            return f"head.blocks.{where[1].removeprefix('block')}.{self.name}"
        stage, block = int(where[0].removeprefix("stage")) - 1, where[1].removeprefix("block")
        return ".".join(["backbone.stages", str(stage), block, *where[2:], self.name])


def placed_convs(config: ModelConfig) -> Iterator[PlacedConv]:
    """All convolutions in the order of exported graphs; for a classifier, only those before the average."""
    stride = 1

    def placed(block: str, convs: dict[str, Conv]) -> Iterator[PlacedConv]:
        nonlocal stride
        for name, conv in convs.items():
            stride *= conv.stride
            yield PlacedConv(block, name, conv, stride)

    for i, block in enumerate(stem_plan(config.backbone)):
        yield from placed(f"stem.block{i}", block.convs)
    for number, blocks in enumerate(stage_plans(config.backbone), 1):
        for i, part in enumerate(blocks):
            where = f"stage{number}.block{i}"
            if isinstance(part, AttentionBlock):
                yield from placed(f"{where}.attention", part.convs)
                yield from placed(f"{where}.local", part.local.convs)
            else:
                yield from placed(where, part.convs)
    if isinstance(config.head, ClassificationHead):
        widen = Conv(config.backbone.stages[-1].width, config.head.widths[0], act=True)
        yield PlacedConv("head", "widen", widen, STRIDE)
        return
    head = head_plan(config.backbone, config.head)
    for number, conv, at in zip((4, 3, 2), head.inputs, (32, 16, 8), strict=True):
        yield PlacedConv(f"head.from_stage{number}", "conv", conv, at)
    stride = LOGIT_STRIDE
    for i, block in enumerate(head.blocks):
        yield from placed(f"head.block{i}", block.convs)
    yield from placed("head.outputs", head.outputs)
