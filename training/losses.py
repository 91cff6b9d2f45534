"""Losses on sharp frames, sRGB-encoded 0..1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(predicted: Tensor, sharp: Tensor) -> Tensor:
    """The data term of Kim et al. 2017, equation 4."""
    return (predicted - sharp).square().mean()


def charbonnier(predicted: Tensor, sharp: Tensor, epsilon: float = 1e-3) -> Tensor:
    """``mean(sqrt(d^2 + epsilon^2))``: an L1 loss, smooth at zero (Charbonnier et al. 1994)."""
    return ((predicted - sharp).square() + epsilon**2).sqrt().mean()


def log_mse(predicted: Tensor, sharp: Tensor, floor: float = 3e-4) -> Tensor:
    """``mean(10 log10(MSE + floor))`` over frames: negative PSNR in dB, as it is measured.

    ``floor`` (35 dB) keeps samples without blur, whose PSNR is unbounded, from drowning the rest.
    """
    mse = (predicted - sharp).square().mean(dim=(-3, -2, -1))
    return 10.0 * torch.log10(mse + floor).mean()


LOSSES: dict[str, Loss] = {
    "mse": mean_squared_error,
    "charbonnier": charbonnier,
    "log_mse": log_mse,
}


def weight_penalty(network: nn.Module) -> Tensor:
    """``||W||^2`` over the convolutions' kernels, the second term of equation 4."""
    kernels = [p for p in network.parameters() if p.ndim == 4]
    return torch.stack([k.square().sum() for k in kernels]).sum()


def scales_of(network: nn.Module, predicted: list[Tensor], sharp: Tensor) -> list[Tensor]:
    """The sharp picture at the sizes of a multi-scale network's predictions.

    Args:
        network: which reduces its input as its authors do.
        predicted: (B, 3, H, W), (B, 3, H/2, W/2) and so on.
        sharp: (B, 3, H, W).
    """
    reduce = getattr(network, "reduce", None)
    found = [sharp]
    for _ in predicted[1:]:
        assert reduce is not None
        found.append(reduce(found[-1]))
    return found


def multi_scale(
    loss: Loss, predicted: list[Tensor], sharp: list[Tensor], halved_mean: bool = False
) -> Tensor:
    """A loss summed over all sizes.

    With the mean squared error this is the loss of SRN (Tao et al. 2018, section 3.4); with
    ``halved_mean`` (times 1 / (2K) for K sizes) that of Nah et al. 2017, equation 5; with one size
    that of DMPHN (Zhang et al. 2019, section 3.2: the error of level 1 only).
    """
    total = torch.stack([loss(p, s) for p, s in zip(predicted, sharp, strict=True)]).sum()
    return total / (2 * len(predicted)) if halved_mean else total
