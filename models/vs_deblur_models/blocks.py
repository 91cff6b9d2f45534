"""Building blocks shared by the networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vs_deblur_kernels import dtb, dtb_conv, resblock, resblock5

Convolution = nn.Conv2d | nn.ConvTranspose2d


class FromPixels(nn.Conv2d):
    """A convolution that takes pixels, exactly, in a network of any type (see :func:`cast_`).

    bfloat16 tells 128 values between 0.5 and 1, so that a picture cast to it has steps: in 16 bits
    the picture goes in as two, its rounded values and what rounding left. Features are mixed from
    many values each: rounded there, errors average out.
    """

    features: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of any type to features of the network's type."""
        if self.features is None or self.features == self.weight.dtype:
            return super().forward(x.to(self.weight.dtype))
        kernel = self.weight.to(self.features)
        bias = None if self.bias is None else self.bias.to(self.features)
        if x.dtype == self.features:  # there is nothing that rounding would leave
            return F.conv2d(x, kernel, bias, self.stride, self.padding)
        x = x.to(self.weight.dtype)
        rounded = x.to(self.features)
        rest = (x - rounded).to(self.features)
        return F.conv2d(
            torch.cat((rounded, rest), dim=1),
            torch.cat((kernel, kernel), dim=1),
            bias,
            self.stride,
            self.padding,
        )


class ToPixels(nn.Conv2d):
    """A convolution that puts out pixels: :func:`cast_` leaves it in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Features of the network's type to (B, C, H, W) of the weights' (float32 as a rule)."""
        return super().forward(x.to(self.weight.dtype))


def cast_(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast a network in place, but for what touches pixels (:class:`FromPixels`, …)."""
    for module in network.modules():
        if isinstance(module, FromPixels):
            module.features = dtype
        elif not isinstance(module, ToPixels):
            for p in module.parameters(recurse=False):
                p.data = p.data.to(dtype)


class ResBlock(nn.Module):
    """``x + conv(relu(conv(x)))``: no batch normalisation and no ReLU after the sum.

    The block of Nah et al. 2017, section 3.1 (there with 5x5 kernels), which Kim et al. 2017
    and the networks here use with 3x3 kernels.

    Args:
        channels: width of input, middle and output.
        kernel_size: odd kernel size; padding keeps height and width.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.conv1 = nn.Conv2d(channels, channels, kernel_size, padding=pad)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size, padding=pad)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        parts = (self.conv1.weight, self.conv1.bias, self.conv2.weight, self.conv2.bias)
        for kernel in (resblock, resblock5):
            fused: Tensor | None = kernel.fused(x, *parts)
            if fused is not None:
                return fused
        out: Tensor = x + self.conv2(torch.relu(self.conv1(x)))
        return out


class GatedBlock(nn.Module):
    """The block of NAFNet (Chen, Chu, Zhang, Sun, ECCV 2022, figure 3), without channel attention.

    Two residual branches: a depthwise 3x3 convolution between pointwise ones, then pointwise ones
    alone. The activation is a product of halves of the channels (SimpleGate), so that no unit can
    die. The attention is left out: its mean over the picture would tie every tile to all others.

    Args:
        channels: width of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.expand1 = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.reduce1 = nn.Conv2d(channels, channels, 1)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.expand2 = nn.Conv2d(channels, 2 * channels, 1)
        self.reduce2 = nn.Conv2d(channels, channels, 1)
        # Zero: the block starts as the identity.
        self.scale1 = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale2 = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        a, b = self.depthwise(self.expand1(_normalised(self.norm1, x))).chunk(2, dim=1)
        x = x + self.scale1 * self.reduce1(a * b)
        a, b = self.expand2(_normalised(self.norm2, x)).chunk(2, dim=1)
        out: Tensor = x + self.scale2 * self.reduce2(a * b)
        return out


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalise each pixel's channels; no copy where the channels come last in memory."""
    out: Tensor = norm(x.permute(0, 2, 3, 1))
    return out.permute(0, 3, 1, 2)


class DynamicTemporalBlending(nn.Module):
    r"""Dynamic temporal blending of Kim et al. 2017, section 3.2, equations 2 and 3.

    .. math::

        w_n = \min(1, |\tanh(A [\tilde h_{n-1}, h_n])| + \beta), \qquad
        \tilde h_n = w_n \odot h_n + (1 - w_n) \odot \tilde h_{n-1}

    ``A`` is a 5x5 convolution with bias and ``beta`` a trained scalar. The optimiser may push
    ``beta`` out of [0, 1]; :meth:`project_` puts it back, and ``forward`` clamps it, so that a
    checkpoint can never hold a blend that extrapolates. Because ``w`` lies in [0, 1], the blended
    state is a convex combination and cannot grow from frame to frame.

    Args:
        channels: width of ``h``.
        beta: start value of the bias.
    """

    def __init__(self, channels: int, beta: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 5, padding=2)
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, h: Tensor, previous: Tensor) -> Tensor:
        """Blend the features of this frame with the blended features of the last one.

        Args:
            h: features of this frame, (B, C, H, W).
            previous: blended features of the last frame, (B, C, H, W).

        Returns:
            blended features, (B, C, H, W).
        """
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        fused = dtb_conv.fused(h, previous, weight, bias, self.beta)
        if fused is not None:
            return fused
        a = self.conv(torch.cat((previous, h), dim=1))
        return dtb.blend(a, h, previous, self.beta)

    @torch.no_grad()
    def project_(self) -> None:
        """Put ``beta`` back into [0, 1] (called by the training loop after each step)."""
        self.beta.clamp_(0.0, 1.0)


@torch.no_grad()
def draw_kernels_(network: nn.Module, draw: Callable[[Convolution], object]) -> None:
    """Initialise all convolutions: kernels as drawn, biases zero. Shapes without values stay so.

    Args:
        network: the network; changed in place.
        draw: fills the kernel of a convolution.
    """
    if all(p.is_meta for p in network.parameters()):
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            draw(module)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def initialise_(network: nn.Module, residual_scale: float = 0.1) -> None:
    """He initialisation with quiet residual branches, for networks that start as the identity.

    Plain initialisation lets the optimiser lower the loss fastest by silencing the random output,
    which kills every ReLU inside the ResBlocks for good; with the second convolution of each
    block at a tenth of its size this does not happen.

    Args:
        network: the network; changed in place.
        residual_scale: factor on the second convolution of each :class:`ResBlock`.
    """
    draw_kernels_(network, lambda c: nn.init.kaiming_normal_(c.weight, nonlinearity="relu"))
    for module in network.modules():
        if isinstance(module, ResBlock):
            module.conv2.weight.mul_(residual_scale)
        elif isinstance(module, DynamicTemporalBlending):
            # a = 0 gives w = beta everywhere: the blend starts out uniform.
            module.conv.weight.mul_(residual_scale)
