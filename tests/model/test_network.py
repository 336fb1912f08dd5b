from __future__ import annotations

import pytest

from tests.optional import needs

needs("torch")

import torch

import evitseg
from evitseg.errors import ConfigError


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (96, 160)])
def test_logits_come_at_an_eighth_of_the_size(height: int, width: int) -> None:
    with torch.inference_mode():
        logits = evitseg.build("b0", num_classes=4).eval()(torch.zeros(2, 3, height, width))
    assert logits.shape == (2, 4, height // 8, width // 8)


def test_a_size_that_32_does_not_divide_is_an_error() -> None:
    with pytest.raises(ConfigError, match="100×64 pixels: both sides must be multiples of 32"):
        evitseg.build("b0", num_classes=4)(torch.zeros(1, 3, 100, 64))


def test_an_unknown_head_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'b1-ade20k'"):
        evitseg.build("b1", 4, head="b1-ade")
