from __future__ import annotations

from tests.optional import needs

needs("torch", "accelerate")

from pathlib import Path

import pytest
import torch

from evitseg.labels import numbered
from evitseg.model.attention import AttentionSequence
from evitseg.model.layers import ConvSequence, drop_path
from evitseg.train import OptimConfig
from evitseg.train.initialize import initialize
from evitseg.train.wrapper import TrainingWrapper, set_drop_path, set_training_mode
from tests.train.scenes import SMALL


def test_drop_path_skips_blocks_of_some_samples_and_keeps_the_mean() -> None:
    addition = torch.ones(4000, 2, 1, 1)
    torch.manual_seed(0)
    dropped = drop_path(addition, 0.3)
    torch.testing.assert_close(torch.unique(dropped), torch.tensor([0, 1 / 0.7]))
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert (dropped[:, 0] == dropped[:, 1]).all()
    network = initialize(SMALL, numbered(4)).network
    set_drop_path(network, 0.2)
    rates = [m.drop_path for m in network.backbone.modules() if isinstance(m, ConvSequence | AttentionSequence)]
    assert max(rates) == pytest.approx(0.2)
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.eval()(pixels), network(pixels))
    assert not torch.equal(network.train()(pixels), network(pixels))


def test_frozen_statistics_are_those_of_every_kind_of_batch_norm(tmp_path: Path) -> None:
    trained = TrainingWrapper(initialize(SMALL, numbered(4)).network, auxiliary=True)
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(trained)  # type: ignore[no-untyped-call]
    set_training_mode(synced, OptimConfig(freeze_norm=True))
    kinds = [m for m in synced.network.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert kinds
    assert not any(module.training for module in kinds)
    assert all(m.training for m in synced.auxiliary.modules())
