"""The network in a form for converters: the same function in fewer and simpler operators, at one size.

Batch norm is folded into the convolutions, bicubic up-sampling is a product with fixed matrices, and the weights of
attention are permuted so that queries, keys and values are contiguous. No tensor has more than four axes, and nothing
is gathered or padded.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evitseg.errors import ConfigError
from evitseg.model.attention import SMALLEST, SMALLEST_WIDE, MultiScaleAttention, relu_linear_attention
from evitseg.model.fold import folded
from evitseg.model.layers import ConvNormAct
from evitseg.model.network import EfficientViT, SegmentationNetworkHead
from evitseg.preprocess import Preprocess


def plain(block: ConvNormAct) -> nn.Module:
    """The convolution with batch norm folded in, followed by its activation."""
    weight, bias = (None if values is None else torch.from_numpy(values).float() for values in folded(block))
    assert weight is not None
    conv = copy.deepcopy(block.conv)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    if not hasattr(block, "act"):
        return conv
    act = copy.deepcopy(block.act)
    if isinstance(act, nn.Hardswish | nn.ReLU):
        act.inplace = False
    return nn.Sequential(conv, act)


class Bicubic(nn.Module):
    """Bicubic up-sampling by a whole factor as two products with fixed matrices; borders as in PyTorch.

    Input: (1, channels, h, w) of the size given. Output: (1, channels, factor * h, factor * w).
    """

    def __init__(self, size: tuple[int, int], factor: int) -> None:
        super().__init__()
        down, across = (up_sampling(side, factor) for side in size)
        # Layers, because converters store a layer's matrix once, but other constants once per channel.
        self.down, self.across = (_linear(rows) for rows in (down, across))

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.across(x)
        tall: Tensor = self.down(wide.transpose(2, 3))
        return tall.transpose(2, 3)


def up_sampling(side: int, factor: int) -> Tensor:
    """(factor * side, side): bicubic interpolation along one axis as a matrix, computed from unit vectors."""
    # A single row is interpolated to copies of itself, because an axis's weights add up to one.
    units = torch.eye(side)[None, :, :, None]
    return F.interpolate(units, scale_factor=factor, mode="bicubic", align_corners=False)[0, :, :, 0].T.contiguous()


def _linear(matrix: Tensor) -> nn.Linear:
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight = nn.Parameter(matrix, requires_grad=False)
    return layer


class ContiguousAttention(nn.Module):
    """Multi-scale ReLU linear attention with queries, keys and values contiguous.

    Input and output: (1, width, h, w) of the size given.

    Args:
        half: includes the factors that keep `relu_linear_attention` inside float16's range; it is faster without.
    """

    def __init__(self, attention: MultiScaleAttention, size: tuple[int, int], half: bool) -> None:
        super().__init__()
        self.half_precision, self.attention_eps = half, attention.eps
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.size, self.eps = size, attention.eps or SMALLEST_WIDE
        heads = attention.num_heads // (1 + len(attention.aggregate))
        dim = attention.head_dim
        self.width = heads * dim
        # Channels are ordered by head, then q, k, v; reorder them by q, k, v, then head.
        order = torch.arange(3 * heads * dim).view(heads, 3, dim).transpose(0, 1).flatten()
        groups = torch.arange(3 * heads).view(heads, 3).T.flatten()
        self.qkv = plain(attention.qkv)
        _permute(self.qkv, order)
        self.aggregate = nn.ModuleList()
        for branch in attention.aggregate:
            assert isinstance(branch, nn.Sequential)
            depthwise, pointwise = (plain(block) for block in branch)  # type: ignore[arg-type]
            _permute(depthwise, order)
            # Each group keeps its inputs and outputs; only the groups are reordered.
            _permute(pointwise, (groups[:, None] * dim + torch.arange(dim)).flatten())
            self.aggregate.append(nn.Sequential(depthwise, pointwise))
        self.proj = plain(attention.proj)
        self.ones = nn.Buffer(torch.ones(self.num_heads, 1, size[0] * size[1]))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        scales = [qkv, *(aggregate(qkv) for aggregate in self.aggregate)]
        width = self.width  # slices, not chunks: ExecuTorch's XNNPACK has no operator with several outputs
        q, k, v = (torch.cat([scale[:, i * width : (i + 1) * width] for scale in scales], dim=1) for i in range(3))
        tokens = self.size[0] * self.size[1]
        q, k, v = (t.reshape(self.num_heads, self.head_dim, tokens) for t in (q, k, v))
        if self.half_precision:
            out = relu_linear_attention(q[None], k[None], v[None], self.attention_eps, SMALLEST)
        else:
            q, keys = q.relu(), k.relu().transpose(1, 2)
            # Batched products: `@` would expand, and ExecuTorch's XNNPACK does not run a sum.
            divisor = torch.bmm(torch.bmm(self.ones, keys), q)
            out = torch.bmm(torch.bmm(v, keys), q) / (divisor + self.eps)
        projected: Tensor = self.proj(out.reshape(1, self.num_heads * self.head_dim, *self.size))
        return projected


def _permute(conv: nn.Module, order: Tensor) -> None:
    assert isinstance(conv, nn.Conv2d)
    conv.weight = nn.Parameter(conv.weight[order])
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias[order])


class ExportModel(nn.Module):
    """A segmentation network for converters, with normalisation as its first step, at one size.

    Input: (1, height, width, 3) uint8 RGB, or with `planes` (1, 3, height, width) float32 from 0 to 255. Output: logits
    (1, classes, height / 8, width / 8) float32, equal to those of `NormalizedModel` except for rounding.

    Args:
        preprocess: has a fixed size.
        half: makes the network fit for arithmetic in float16.
        planes: takes float planes as input, for formats whose programs provide them.

    Raises: ConfigError for a classifier.
    """

    def __init__(self, network: EfficientViT, preprocess: Preprocess, half: bool = False, planes: bool = False) -> None:
        super().__init__()
        assert preprocess.fixed is not None
        size, self.planes = preprocess.fixed, planes
        if not isinstance(network.head, SegmentationNetworkHead):
            raise ConfigError("only segmentation networks can be exported.")
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (preprocess.mean, preprocess.std))
        self.shift, self.scale = nn.Buffer(-mean), nn.Buffer(1 / std)
        self.example = torch.zeros(
            (1, 3, *size) if planes else (1, *size, 3), dtype=torch.float32 if planes else torch.uint8
        )
        network = copy.deepcopy(network).eval().requires_grad_(False)
        self.stem = _converted(network.backbone.stem, size, 2, half)
        self.stages = nn.ModuleList(
            _converted(stage, size, 2 ** (number + 2), half) for number, stage in enumerate(network.backbone.stages)
        )
        head = network.head
        assert isinstance(head, SegmentationNetworkHead)
        self.inputs = nn.ModuleList(plain(block) for block in head.inputs)  # type: ignore[arg-type]
        self.up = nn.ModuleList(Bicubic((size[0] // stride, size[1] // stride), stride // 8) for stride in (32, 16))
        self.blocks = _converted(head.blocks, size, 8, half)
        self.outputs = _converted(head.outputs, size, 8, half)

    def forward(self, image: Tensor) -> Tensor:
        pixels = image if self.planes else image.permute(0, 3, 1, 2).float()
        x = self.stem((pixels + self.shift) * self.scale)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        _, fine, middle, coarse = features
        merged = self.up[0](self.inputs[0](coarse)) + self.up[1](self.inputs[1](middle)) + self.inputs[2](fine)
        logits: Tensor = self.outputs(self.blocks(merged))
        return logits


def _converted(module: nn.Module, size: tuple[int, int], stride: int, half: bool) -> nn.Module:
    """A copy whose convolutions are folded, and whose attention is `ContiguousAttention`.

    Args:
        size: of the image; stride: of the attention layers in this module.
    """
    if isinstance(module, ConvNormAct):
        return plain(module)
    if isinstance(module, MultiScaleAttention):
        return ContiguousAttention(module, (size[0] // stride, size[1] // stride), half)
    for name, child in module.named_children():
        setattr(module, name, _converted(child, size, stride, half))
    return module
