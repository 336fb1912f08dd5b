from __future__ import annotations

from tests.optional import needs

needs("torch", "accelerate")


from evitseg.train.batch_size import MIN_GAIN, fastest_batch_size
from tests.train.scenes import SMALL


def test_tuning_takes_the_fastest_batch() -> None:
    config = SMALL.updated({"data.crop": (32, 32)})
    chosen, tried = fastest_batch_size(config, 1000)
    assert chosen.batch_size in tried
    assert {8, 16} <= set(tried)
    assert tried[chosen.batch_size] * MIN_GAIN >= max(tried.values())
    assert set(fastest_batch_size(config, 100)[1]) == {8}  # an epoch of 12 steps would become one of 6
    assert chosen == config.updated(
        {"batch_size": chosen.batch_size}
    )  # all else is left as it was: the rate follows the batch
