"""Batch norm's statistics, estimated over whole training images for averaged weights.

The running statistics of training belong to random crops and to the weights of the last tens of steps, so they fit no
average of weights. benchmarks/finetune.py measures what they cost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from evitseg.architecture import STRIDE
from evitseg.data.lists import Pair
from evitseg.errors import ImageError
from evitseg.image import ImageArray
from evitseg.model.network import EfficientViT
from evitseg.preprocess import Preprocess
from evitseg.raster.files import read_image

MOST_IMAGES = 64
"""Number of images that statistics are estimated over; more do not change the masks."""
MOST_PIXELS = 8 * 512 * 512
MOST_UNFOLDED = 16
_FEWEST_VALUES = 16
"""Total number of values below which a layer keeps its statistics."""
_Norm = nn.modules.batchnorm._BatchNorm  # SyncBatchNorm, too


def estimate_over(
    network: nn.Module,
    pairs: Sequence[Pair],
    preprocess: Preprocess,
    most_pixels: int = MOST_PIXELS,
    keep: Callable[[str], bool] = lambda name: False,
) -> int:
    """Estimate over the images of at most `MOST_IMAGES` pairs, preprocessed as for prediction (see `estimate`).

    Args:
        most_pixels: largest number of pixels in a batch of more than one image.

    Returns: the number of images; those that cannot be read are left out.

    Raises: ImageError if none can be read.
    """
    device = next(network.parameters()).device
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in (preprocess.mean, preprocess.std)
    )
    chosen = [pairs[at] for at in spread(len(pairs))]
    used = 0

    def images() -> Iterator[ImageArray]:
        nonlocal used
        problem: ImageError | None = None
        for pair in chosen:
            try:
                image = read_image(pair.image, pair.reading)
            except ImageError as error:
                problem = error
                continue
            used += 1
            yield image
        if problem and not used:
            raise problem

    batches = whole_images(images(), preprocess, most_pixels, lambda stack: (stack.to(device).float() - mean) / std)
    estimate(network, batches, keep)
    return used


def unfolded(network: EfficientViT, pairs: Sequence[Pair], preprocess: Preprocess) -> EfficientViT:
    """A copy that computes the same function, with real statistics in the batch norms that only add a bias.

    Exported models and averages of weights have such norms, because theirs are folded into the convolutions. In
    training they would normalise what was never normalised.

    Args:
        pairs: at most `MOST_UNFOLDED` of their images are used.

    Raises: ImageError for an image that cannot be read.
    """
    network = copy.deepcopy(network).eval()
    folded = [m for m in network.modules() if isinstance(m, _Norm) and _is_folded(m)]
    sums = {module: torch.zeros(2, module.num_features, dtype=torch.float64) for module in folded}

    def add(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _Norm)
        variance, mean = (part.double() for part in torch.var_mean(given[0], (0, 2, 3), correction=0))
        sums[module] += torch.stack([mean, variance + mean**2])

    hooks = [module.register_forward_pre_hook(add) for module in folded]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (preprocess.mean, preprocess.std))
    chosen = [pairs[at] for at in spread(len(pairs), MOST_UNFOLDED)] if folded else []
    with torch.no_grad():
        for pair in chosen:
            image = preprocess.apply(read_image(pair.image, pair.reading))
            network((_stacked([image]).float() - mean) / std)
        for module, (first, second) in sums.items():
            first, second = first / len(chosen), second / len(chosen)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(first)
            module.running_var.copy_((second - first**2).clamp(min=0))
            module.weight.copy_((module.running_var.double() + module.eps).sqrt())
            module.bias.add_(first)
    for hook in hooks:
        hook.remove()
    return network


def _is_folded(module: _Norm) -> bool:
    """Whether a batch norm only adds its bias, as `evitseg.model.fold.set_folded` leaves it."""
    assert module.running_mean is not None
    assert module.running_var is not None
    only_bias = bool((module.weight == 1).all() and (module.running_mean == 0).all())
    return only_bias and bool((module.running_var == torch.tensor(1 - module.eps)).all())


def spread(count: int, most: int = MOST_IMAGES) -> list[int]:
    """Indices of at most `most` out of `count` images, evenly spaced."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(most, count))})


def whole_images(
    images: Iterable[ImageArray], preprocess: Preprocess, most_pixels: int, normalised: Callable[[Tensor], Tensor]
) -> Iterable[Tensor]:
    """Batches (n, 3, h, w) of images at the working size; consecutive images of one size share a batch.

    Args:
        most_pixels: largest number of pixels in a batch of more than one image.
        normalised: turns (n, 3, h, w) uint8 into network input.
    """
    for _, group in groupby(map(preprocess.apply, images), key=lambda image: image.shape):
        batch: list[ImageArray] = []
        for image in group:
            batch.append(image)
            if (len(batch) + 1) * image.shape[0] * image.shape[1] > most_pixels:
                yield normalised(_stacked(batch))
                batch = []
        if batch:
            yield normalised(_stacked(batch))


def _stacked(images: Sequence[ImageArray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@torch.no_grad()
def estimate(network: nn.Module, batches: Iterable[Tensor], keep: Callable[[str], bool] = lambda name: False) -> None:
    """Replace batch norm's running mean and variance by those over these batches.

    Each layer normalises a batch by the batch's own statistics, as in training. The result is the mean and variance
    over all pixels of all batches. The network is left in eval mode.

    Args:
        keep: whether the module of this name keeps its statistics.
    """
    network.eval()
    norms = {name: m for name, m in network.named_modules() if isinstance(m, _Norm) and not keep(name)}
    sums = {name: torch.zeros(3, m.num_features, dtype=torch.float64) for name, m in norms.items()}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            values = given[0].detach().float()
            variance, mean = (part.double().cpu() for part in torch.var_mean(values, (0, 2, 3), correction=0))
            count = values.numel() // values.shape[1]
            sums[name] += count * torch.stack([torch.ones_like(mean), mean, variance + mean**2])

        return add

    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in norms.items()]
    momenta = [module.momentum for module in norms.values()]
    try:
        for module in norms.values():
            module.momentum = 0.0  # normalise by the batch's statistics, leave the running ones
        for batch in batches:
            alone = len(batch) * batch.shape[2] * batch.shape[3] < 2 * STRIDE**2  # one value has no variance
            for module in norms.values():
                module.train(not alone)
            network(batch)
    finally:
        for handle in hooks:
            handle.remove()
        for module, momentum in zip(norms.values(), momenta, strict=True):
            module.momentum = momentum
        network.eval()
    for name, module in norms.items():
        count, total, squares = sums[name]
        if count[0] < _FEWEST_VALUES:
            continue
        mean = total / count
        # Not the unbiased variance: with this many pixels it is the same.
        variance = (squares / count - mean**2).clamp(min=0)
        for buffer, value in ((module.running_mean, mean), (module.running_var, variance)):
            assert buffer is not None
            buffer.copy_(value)
