"""Multi-scale ReLU linear attention, in one form that is correct for any height, width and precision."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from evitseg.architecture import Activation, AttentionBlock
from evitseg.model.layers import ConvNormAct, ConvSequence, drop_path

SMALLEST = 2.0**-14
"""The smallest normal float16 number. Divisors are at least this large: a processor may round smaller ones to zero."""
SMALLEST_WIDE = 2.0**-100
"""The smallest divisor in float32 and bfloat16."""


def relu_linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 0.0, smallest: float | None = None) -> Tensor:
    """Attention whose cost grows with the number of tokens, not with its square.

    A factor of all keys of a head, or of one token's query, cancels in the quotient. Such factors keep every
    intermediate inside float16's range, for any image size and any scale of queries and keys: they make a head's
    largest key 1, divide keys by the square root of the number of tokens (dividing by the number itself would lose a
    single key, and not dividing would let a long sum overflow), and make the largest sum of keys and the largest
    entry of every query 1. Values are not scaled: at 1024×2048 they may reach 700, and B0's largest is 10. A query
    that matches no key gives 0.

    Args:
        q, k, v: (batch, heads, head_dim, tokens).
        eps: added to the divisor, which is a sum over tokens; only weights trained with a large epsilon need it.
        smallest: lower limit of divisors, for a number format with the range of float16. Each query is then divided by
            what it matches before it is multiplied with the sums, so that one that matches less than `smallest` of the
            largest sum still gives an exact result, down to the square of `smallest`. None for the limit of the
            tensors' format; if gradients are needed, queries below it give a smaller result.

    Returns: (batch, heads, head_dim, tokens).

    Source: ReLU linear attention of EfficientViT, arXiv:2205.14756, section 3.1.
    """
    narrow = smallest is not None or q.dtype == torch.float16
    if smallest is None:
        # A gradient divides by a divisor's square, which must stay inside float32's range, too.
        smallest = SMALLEST if q.dtype == torch.float16 or q.requires_grad else SMALLEST_WIDE
    q, k = q.relu(), k.relu()
    # The scales cancel, so no gradient needs to flow through them.
    query_scale = q.detach().amax(-2, keepdim=True).clamp(min=smallest)
    key_scale = k.shape[-1] ** -0.5 / k.detach().amax((-2, -1), keepdim=True).clamp(min=smallest)
    k = k * key_scale
    # v·kᵀ first: head_dim² numbers, never tokens². The last row, the sum of the keys, gives the divisor.
    sums = torch.cat([v @ k.transpose(-1, -2), k.sum(-1).unsqueeze(-2)], dim=-2)
    sum_scale = sums[..., -1:, :].detach().amax(-1, keepdim=True).clamp(min=smallest)
    sums, q = sums / sum_scale, q / query_scale
    added = eps * key_scale / (sum_scale * query_scale) if eps else None
    if narrow:
        matched = sums[..., -1:, :] @ q
        matched = (matched if added is None else matched + added).clamp(min=smallest)
        q, added = q / matched, None if added is None else added / matched
    out = sums @ q
    divisor = out[..., -1:, :] if added is None else out[..., -1:, :] + added
    attended: Tensor = out[..., :-1, :] / divisor.clamp(min=smallest)
    return attended


class MultiScaleAttention(nn.Module):
    """Linear attention over tokens, and over tokens that aggregate their neighbours at other scales.

    q, k and v are a 1×1 convolution of the features. Every scale aggregates them with a depthwise convolution and a
    grouped 1×1 convolution that mixes the channels of one head's q, of its k, or of its v. All scales' heads attend
    in one product; a last 1×1 convolution merges them.

    Input and output: (batch, width, h, w).

    Attributes:
        smallest: see `relu_linear_attention`; set it to `SMALLEST` on a copy that is converted to float16.
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
    """Attention for the context, then a convolution block for the neighbourhood; both are residual."""

    def __init__(self, plan: AttentionBlock, act: Activation, norm_eps: float) -> None:
        super().__init__()
        self.attention = MultiScaleAttention(plan, act, norm_eps)
        self.local = ConvSequence(plan.local, act, norm_eps)
        self.drop_path = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.local(x + drop_path(self.attention(x), self.drop_path if self.training else 0.0))
        return out
