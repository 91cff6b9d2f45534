"""Scale-recurrent network: Tao, Gao, Shen, Wang, Jia, CVPR 2018 (SRN-DeblurNet).

One encoder-decoder, with the same weights, deblurs the picture at 1/4, 1/2 and full size; each size
gets the prediction of the one before, and a ConvLSTM carries features along. Sizes change and
borders are padded as in the authors' TensorFlow 1 graph, so that their checkpoints give their
pictures: the bilinear resize of that time has no half-pixel offset (halving takes every second
pixel), and a strided convolution pads one row at the top and two at the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vs_deblur_models.blocks import FromPixels, ResBlock, ToPixels, draw_kernels_
from vs_deblur_models.spec import NetworkSpec

SCALES = 3


@dataclass(frozen=True)
class SrnConfig:
    """Hyper-parameters.

    Attributes:
        colour: three planes at once (6 input channels); otherwise the planes are a batch of
            pictures with one channel each (2 input channels), as in the published checkpoint.
        lstm: a ConvLSTM at the bottleneck.
    """

    colour: bool = False
    lstm: bool = True


def halved(x: Tensor, times: int = 1) -> Tensor:
    """(B, C, H, W) at 1 / 2^times of its size: every second pixel, as TensorFlow 1 resizes."""
    step = 2**times
    return x[..., ::step, ::step]


def doubled(x: Tensor) -> Tensor:
    """(B, C, H, W) at twice its size, bilinear without half-pixel offset, as TensorFlow 1 resizes.

    Every second output pixel is an input pixel, those between are means of two; the last one of a
    row or column repeats.
    """
    for dimension in (2, 3):
        n = x.shape[dimension]
        following = torch.cat(
            (x.narrow(dimension, 1, n - 1), x.narrow(dimension, n - 1, 1)), dimension
        )
        x = torch.stack((x, (x + following) / 2), dimension + 1).flatten(dimension, dimension + 1)
    return x


class ConvLstm(nn.Module):
    """Convolutional LSTM cell (Shi et al. 2015) with gates i, j, f, o and forget bias 1.

    Args:
        channels: of input, memory and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Map input (B, C, H, W) and state (c, h) to the new (c, h); h is the output."""
        c, h = state
        i, j, f, o = self.conv(torch.cat((x, h), dim=1)).chunk(4, dim=1)
        c = c * torch.sigmoid(f + 1.0) + torch.sigmoid(i) * torch.tanh(j)
        return c, torch.tanh(c) * torch.sigmoid(o)


class _Down(nn.Module):
    """5x5 convolution with stride 2 and ReLU; padded as TensorFlow's "SAME" for even sizes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/2, W/2)."""
        return torch.relu(self.conv(F.pad(x, (1, 2, 1, 2))))


def _blocks(channels: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels, 5) for _ in range(3)))


class Srn(nn.Module):
    """SRN-DeblurNet, in colour or plane by plane, with or without the ConvLSTM."""

    def __init__(self, config: SrnConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SrnConfig()
        planes = 3 if config.colour else 1
        self.encoder1 = FromPixels(2 * planes, 32, 5, padding=2)
        self.blocks1 = _blocks(32)
        self.encoder2 = _Down(32, 64)
        self.blocks2 = _blocks(64)
        self.encoder3 = _Down(64, 128)
        self.blocks3 = _blocks(128)
        if config.lstm:
            self.lstm = ConvLstm(128)
        self.unblocks3 = _blocks(128)
        self.decoder2 = nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1)
        self.unblocks2 = _blocks(64)
        self.decoder1 = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
        self.unblocks1 = _blocks(32)
        self.output = ToPixels(32, planes, 5, padding=2)
        # Glorot uniform with zero biases; the LSTM's kernel N(0, 0.001) cut at two sigma.
        draw_kernels_(self, lambda layer: nn.init.xavier_uniform_(layer.weight))
        if self.config.lstm:
            nn.init.trunc_normal_(self.lstm.conv.weight, std=1e-3, a=-2e-3, b=2e-3)

    @property
    def spec(self) -> NetworkSpec:
        """What a host needs to know (see :class:`NetworkSpec`)."""
        planes = 3 if self.config.colour else 1
        # Multiply-adds a pixel of one pass: at 1, 1/2 and 1/4 of the size.
        full = 25 * 32 * (3 * planes + 2 * 6 * 32)
        half = 25 * 64 * (32 + 12 * 64) + 16 * 64 * 32
        quarter = 25 * 128 * (64 + 12 * 128) + 16 * 128 * 64
        if self.config.lstm:
            quarter += 9 * 256 * 512
        one = (full + half / 4 + quarter / 16) * (3 // planes)
        # Reach of one pass at its own size: 5x5 convolutions at 1, 1/2, 1/4, strided and
        # transposed ones, the LSTM; then the sum over the sizes with what resizing adds.
        reach = (
            2 * (2 + 12) + 2 * (2 + 4) + 2 * 2 * 12 + 4 * 2 * 12 + (4 if self.config.lstm else 0)
        )
        return NetworkSpec(
            network="srn",
            multiple_of=16,
            minimum=16,
            receptive_field=reach * (1 + 2 + 4) + 2 * 3 + 15,
            look_behind=0,
            look_ahead=0,
            is_recurrent=False,
            flops_per_pixel=2.0 * one * (1 + 1 / 4 + 1 / 16),
            bytes_per_pixel=4.0 * (9 * 32 + 14) * (3 // planes),
            tile_overlap=192,  # a guess: no trained weights to measure it on
        )

    def _pass(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """One size: blurred and predicted planes in, sharp planes and the LSTM's state out."""
        x1 = self.blocks1(torch.relu(self.encoder1(x)))
        x2 = self.blocks2(self.encoder2(x1))
        z = self.blocks3(self.encoder3(x2))
        if self.config.lstm:
            if state is None:
                state = (torch.zeros_like(z), torch.zeros_like(z))
            state = self.lstm(z, state)
            z = state[1]
        z = torch.relu(self.decoder2(self.unblocks3(z))) + x2
        z = torch.relu(self.decoder1(self.unblocks2(z))) + x1
        return self.output(self.unblocks1(z)), state

    def reduce(self, picture: Tensor) -> Tensor:
        """The next size that predictions are compared at, (B, C, H/2, W/2)."""
        return halved(picture)

    def scales(self, blurred: Tensor) -> list[Tensor]:
        """Predictions at full, half and quarter size.

        Gradients do not flow from one size to the one before (as in the authors' code).

        Args:
            blurred: (B, 3, H, W), sRGB-encoded 0..1, multiples of 16.

        Returns:
            (B, 3, H, W), (B, 3, H/2, W/2), (B, 3, H/4, W/4), float32.
        """
        batch, _, height, width = blurred.shape
        x = blurred
        if not self.config.colour:
            x = x.reshape(3 * batch, 1, height, width)
        predicted = halved(x, SCALES - 1)
        state: tuple[Tensor, Tensor] | None = None
        found: list[Tensor] = []
        for times in reversed(range(SCALES)):
            if found:
                predicted = doubled(predicted.detach())
                if state is not None:
                    state = (doubled(state[0]), doubled(state[1]))
            predicted, state = self._pass(torch.cat((halved(x, times), predicted), dim=1), state)
            found.insert(0, predicted.reshape(batch, 3, *predicted.shape[-2:]))
        return found

    def forward(self, blurred: Tensor) -> Tensor:
        """Deblur pictures: (B, 3, H, W) sRGB-encoded 0..1 to the same, float32."""
        return self.scales(blurred)[0]
