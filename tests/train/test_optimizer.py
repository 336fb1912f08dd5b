from __future__ import annotations

import pytest

from tests.optional import needs

needs("torch", "accelerate")

import torch

from evitseg.model.network import build
from evitseg.train import OptimConfig
from evitseg.train.optimizer import count_updates, learning_rate, moving_average

OPTIM = OptimConfig(learning_rate=0.1, warmup_fraction=0.1)


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [learning_rate(OPTIM, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[55] == pytest.approx(0.05)
    assert rates[-1] < 1e-4


def test_the_rate_is_that_of_pytorchs_schedulers() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[10])
    for step in range(100):
        assert learning_rate(OPTIM, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_moving_average_is_bit_for_bit_that_of_its_formula() -> None:
    torch.manual_seed(0)
    network = build("b0", 3)
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    average = moving_average(network, 0.5)
    for step in range(1, 13):  # at 0.5 from the eighth on
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value))
            else:
                value.add_(1)
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                expected[key].lerp_(value, 1 - decay)
            else:
                expected[key] = value.clone()
        if step == 6:  # as a resumed run does
            resumed = moving_average(network, 0.5)
            resumed.module.load_state_dict(average.module.state_dict())
            count_updates(resumed, step - 1)
            average = resumed
        average.update_parameters(network)
    for key, value in average.module.state_dict().items():
        assert torch.equal(value, expected[key]), key
