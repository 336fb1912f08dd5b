from __future__ import annotations

import pytest

from tests.optional import needs

needs("torch")

import torch
from torch import Tensor

from evitseg.architecture import AttentionBlock, conv_block
from evitseg.model.attention import MultiScaleAttention, relu_linear_attention


def quadratic(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with ReLU in the place of the exponential: every token with every token."""
    weights = k.relu().transpose(-1, -2) @ q.relu()  # (batch, heads, keys, queries)
    return v @ (weights / weights.sum(-2, keepdim=True))


def tokens(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return q, k, v


@pytest.mark.parametrize("count", [1, 2, 50, 333])
def test_attention_equals_its_quadratic_form(count: int) -> None:
    # Positive queries and keys: with one token and random signs a query may match no key at all.
    q, k, v = (t.abs() if i < 2 else t for i, t in enumerate(tokens(2, 4, 16, count)))
    torch.testing.assert_close(relu_linear_attention(q, k, v), quadratic(q, k, v))


def test_attention_equals_its_quadratic_form_where_signs_differ() -> None:
    q, k, v = tokens(2, 4, 16, 50)
    torch.testing.assert_close(relu_linear_attention(q, k, v), quadratic(q, k, v))


def test_the_scale_of_queries_and_keys_does_not_matter() -> None:
    q, k, v = tokens(1, 2, 16, 40)
    expected = relu_linear_attention(q, k, v)
    torch.testing.assert_close(relu_linear_attention(q * 1e3, k / 1e3, v), expected)


def test_a_query_that_hardly_a_key_matches_gets_its_share() -> None:
    q, k, v = (t.abs() for t in tokens(1, 1, 8, 20))
    k[:, :, 0] *= 1e-9
    q[..., 1:, 3] = 0  # only the first channel, in which keys are tiny
    torch.testing.assert_close(relu_linear_attention(q.float(), k.float(), v.float()), quadratic(q, k, v).float())


def test_a_query_that_no_key_matches_gets_zero() -> None:
    q, k, v = tokens(1, 1, 8, 20)
    q[..., 3] = -1
    assert relu_linear_attention(q, k, v)[..., 3].eq(0).all()
    assert relu_linear_attention(q, -k.abs(), v).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("count", [4, 64 * 128, 256 * 256])
def test_half_precision_neither_overflows_nor_underflows(dtype: torch.dtype, scale: float, count: int) -> None:
    # 256×256 tokens are an image of 4096×4096 pixels; unscaled, 30·30 times that many is 900 times float16's largest.
    q, k, v = (t * scale for t in tokens(1, 2, 16, count))
    expected = relu_linear_attention(q, k, v)
    actual = relu_linear_attention(q.to(dtype), k.to(dtype), v.to(dtype))
    assert actual.isfinite().all()
    error = (actual.double() - expected).norm() / expected.norm()
    assert error < 8 * torch.finfo(dtype).eps  # a few roundings of each number


def test_gradients_are_finite_where_no_key_matches() -> None:
    q, k, v = (t.float() for t in tokens(1, 1, 8, 20))
    q, k, v = (t.requires_grad_() for t in (q, -k.abs(), v))
    for gradient in torch.autograd.grad(relu_linear_attention(q, k, v).sum(), (q, k, v)):
        assert gradient.isfinite().all()


def test_gradients_are_those_of_the_quadratic_form() -> None:
    q, k, v = (t.requires_grad_() for t in tokens(1, 2, 8, 30))
    weighting = torch.randn(1, 2, 8, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    linear = torch.autograd.grad((relu_linear_attention(q, k, v) * weighting).sum(), (q, k, v))
    square = torch.autograd.grad((quadratic(q, k, v) * weighting).sum(), (q, k, v))
    for ours, theirs in zip(linear, square, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kernels", [(), (3,), (5,), (3, 5, 7)])
def test_any_set_of_scales_attends(kernels: tuple[int, ...]) -> None:
    local = conv_block("mbconv", 32, 32, 4)
    module = MultiScaleAttention(AttentionBlock(32, 16, kernels, 0.0, local), "hardswish", 1e-5).eval()
    x = torch.randn(2, 32, 7, 9, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert module(x).shape == x.shape
        # Each scale's heads attend for themselves: written out, head by head.
        qkv = module.qkv(x)
        heads = []
        for scale in [qkv, *(aggregate(qkv) for aggregate in module.aggregate)]:
            for head in scale.split(48, dim=1):
                q, k, v = head.flatten(2).unsqueeze(1).split(16, dim=2)
                heads.append(quadratic(q, k, v).nan_to_num().reshape(2, 16, 7, 9))
        torch.testing.assert_close(module(x), module.proj(torch.cat(heads, 1)), atol=1e-5, rtol=1e-4)
