"""Multi-scale ReLU linear attention, in one form that is right for any height, width and precision."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from evitseg.architecture import Activation, AttentionBlock
from evitseg.model.layers import ConvNormAct, ConvSequence, sometimes

SMALLEST = 2.0**-14
"""The smallest normal float16 number. Divisors stop here: below it a processor may round them to zero."""
SMALLEST_WIDE = 2.0**-100
"""The same for float32 and bfloat16."""


def relu_linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 0.0, smallest: float | None = None) -> Tensor:
    """Attention whose cost grows with the number of tokens, not with its square.

    Any factor of a head's keys, or of one token's query, cancels in the quotient. Such factors keep every
    intermediate inside float16's range, whatever the size of the image and the scale of queries and keys: a head's
    largest key is made 1, keys are divided by the square root of the number of tokens (by the number itself a single
    key would vanish, by nothing a long sum would overflow), the largest sum of keys is made 1, and so is the largest
    entry of every query. Values are left as they are: at 1024×2048 they may reach 700, and B0's largest is 10. A query
    that no key matches gets 0.

    Args:
        q, k, v: (batch, heads, head_dim, tokens).
        eps: added to the divisor, which is a sum over tokens; only weights trained with a noticeable one need it.
        smallest: at which divisors stop; None for what the tensors' number format allows. In float16, and where
            gradients are wanted, a query that hardly a key matches, by less than 1 / 16384 of the largest sum, is
            answered by less than its share.

    Returns: (batch, heads, head_dim, tokens).

    Source: ReLU linear attention of EfficientViT, arXiv:2205.14756, section 3.1.
    """
    if smallest is None:
        # A gradient divides by a divisor's square, which must not leave float32's range either.
        smallest = SMALLEST if q.dtype == torch.float16 or q.requires_grad else SMALLEST_WIDE
    q, k = q.relu(), k.relu()
    # The scales cancel, so no gradient needs to flow through them.
    query_scale = q.detach().amax(-2, keepdim=True).clamp(min=smallest)
    key_scale = k.shape[-1] ** -0.5 / k.detach().amax((-2, -1), keepdim=True).clamp(min=smallest)
    k = k * key_scale
    # v·kᵀ first: head_dim² numbers, never tokens². The last row, the sum of the keys, gives the divisor.
    sums = torch.cat([v @ k.transpose(-1, -2), k.sum(-1).unsqueeze(-2)], dim=-2)
    sum_scale = sums[..., -1:, :].detach().amax(-1, keepdim=True).clamp(min=smallest)
    out = (sums / sum_scale) @ (q / query_scale)
    divisor = out[..., -1:, :]
    if eps:
        divisor = divisor + eps * key_scale / (sum_scale * query_scale)
    attended: Tensor = out[..., :-1, :] / divisor.clamp(min=smallest)
    return attended


class MultiScaleAttention(nn.Module):
    """Linear attention over tokens, and over tokens that aggregate their neighbours at other scales.

    q, k and v are a 1×1 convolution of the features. Every scale aggregates them with a depthwise convolution and a
    grouped 1×1 convolution that mixes the channels of one head's q, of its k, or of its v. All scales' heads attend
    in one product; a last 1×1 convolution merges them.

    Input and output: (batch, width, h, w).

    Attributes:
        smallest: as `relu_linear_attention` takes it; set it to `SMALLEST` on a copy that is converted for float16.
    """

    def __init__(self, plan: AttentionBlock, act: Activation, norm_eps: float) -> None:
        super().__init__()
        self.smallest: float | None = None
        convs = {name: ConvNormAct(conv, act, norm_eps) for name, conv in plan.convs.items()}
        self.head_dim, self.eps = plan.head_dim, plan.eps
        self.num_heads = plan.heads_per_scale * (1 + len(plan.kernels))
        self.qkv = convs["qkv"]
        self.aggregate = nn.ModuleList(
            nn.Sequential(OrderedDict((part, convs[f"aggregate.{i}.{part}"]) for part in ("depthwise", "pointwise")))
            for i in range(len(plan.kernels))
        )
        self.proj = convs["proj"]

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.qkv(x)
        scales = [qkv, *(aggregate(qkv) for aggregate in self.aggregate)]
        # Along the channels: scale, head, then q, k, v of head_dim each.
        tokens = torch.cat(scales, dim=1).reshape(b, self.num_heads, 3 * self.head_dim, h * w)
        q, k, v = torch.split(tokens, self.head_dim, dim=2)
        out: Tensor = self.proj(relu_linear_attention(q, k, v, self.eps, self.smallest).reshape(b, -1, h, w))
        return out


class AttentionSequence(nn.Module):
    """Attention for the context, then a convolution block for the neighbourhood; both residual."""

    def __init__(self, plan: AttentionBlock, act: Activation, norm_eps: float) -> None:
        super().__init__()
        self.attention = MultiScaleAttention(plan, act, norm_eps)
        self.local = ConvSequence(plan.local, act, norm_eps)
        self.drop_path = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.local(x + sometimes(self.attention(x), self.drop_path if self.training else 0.0))
        return out
