"""Deep multi-scale convolutional network: Nah, Kim, Lee, CVPR 2017, and its discriminator.

Three networks without shared weights deblur the picture at 1/4, 1/2 and full size; each of the
finer two gets the result of the coarser one, enlarged by a convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vs_deblur_models.blocks import FromPixels, ResBlock, ToPixels
from vs_deblur_models.spec import NetworkSpec

PYRAMIDS = ("subsample", "average")


@dataclass(frozen=True)
class MscnnConfig:
    """Hyper-parameters; the defaults are the paper's.

    Attributes:
        scales: K, sizes of the pyramid.
        blocks: ResBlocks of each size.
        channels: width of the features.
        pyramid: how the picture is halved after the Gaussian: "subsample" takes every second pixel
            (the paper's code), "average" means of two by two (the authors' PyTorch port, whose
            checkpoints want it).
    """

    scales: int = 3
    blocks: int = 19
    channels: int = 64
    pyramid: str = "subsample"

    def __post_init__(self) -> None:
        if self.pyramid not in PYRAMIDS:
            raise ValueError(f"pyramid must be one of {', '.join(PYRAMIDS)}, not {self.pyramid}")
        if self.scales < 1:
            raise ValueError(f"scales must be 1 or more, got {self.scales}")


def _mirrored(n: int, radius: int, device: torch.device) -> Tensor:
    """Indices -radius … n + radius - 1 of a row that is mirrored at its ends (edge repeated)."""
    i = torch.arange(-radius, n + radius, device=device) % (2 * n)
    return torch.where(i < n, i, 2 * n - 1 - i)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) by a Gaussian cut at four sigma; borders mirrored."""
    radius = int(4 * sigma + 0.5)
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    kernel = torch.tensor(taps, dtype=x.dtype, device=x.device) / sum(taps)
    channels = x.shape[1]
    for dimension, shape in ((2, (channels, 1, -1, 1)), (3, (channels, 1, 1, -1))):
        x = x.index_select(dimension, _mirrored(x.shape[dimension], radius, x.device))
        weight = kernel.view(1, 1, *shape[2:]).expand(channels, -1, -1, -1)
        x = F.conv2d(x, weight, groups=channels)
    return x


def reduced(x: Tensor, pyramid: str = "subsample") -> Tensor:
    """The next size of the Gaussian pyramid, (B, C, H/2, W/2); sigma 2/3 (section 3.2)."""
    x = gaussian(x, 2.0 / 3.0)
    return x[..., ::2, ::2] if pyramid == "subsample" else F.avg_pool2d(x, 2)


class Mscnn(nn.Module):
    """The multi-scale network of Nah et al. 2017, figure 4."""

    def __init__(self, config: MscnnConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MscnnConfig()
        # Index 0 is the full size, as in :meth:`scales`.
        self.networks = nn.ModuleList(
            self._network(3 if s == config.scales - 1 else 6) for s in range(config.scales)
        )
        # Number s enlarges what size s + 1 gave, for size s.
        self.enlargements = nn.ModuleList(
            ToPixels(3, 12, 5, padding=2) for _ in range(config.scales - 1)
        )

    def _network(self, inputs: int) -> nn.Sequential:
        """Convolutions of one size: no activation after the first, none after the blocks."""
        c = self.config.channels
        blocks = (ResBlock(c, 5) for _ in range(self.config.blocks))
        return nn.Sequential(
            FromPixels(inputs, c, 5, padding=2), *blocks, ToPixels(c, 3, 5, padding=2)
        )

    @property
    def spec(self) -> NetworkSpec:
        """What a host needs to know (see :class:`NetworkSpec`)."""
        c, scales, blocks = self.config.channels, self.config.scales, self.config.blocks
        multiple = 2 ** (scales - 1)
        one = 25 * c * (6 + 3 + 2 * blocks * c)
        share = sum(0.25**s for s in range(scales))
        # 5x5 convolutions of each size, the one that enlarges, the Gaussian of each reduction.
        reach = sum((2 * (2 * blocks + 2) + 2) * 2**s for s in range(scales))
        return NetworkSpec(
            network="mscnn",
            multiple_of=multiple,
            minimum=multiple,
            receptive_field=reach + 4 * multiple,
            look_behind=0,
            look_ahead=0,
            is_recurrent=False,
            flops_per_pixel=2.0 * (one * share - 25 * c * 3 * 0.25 ** (scales - 1)),
            bytes_per_pixel=4.0 * (3.3 * c + 12),
            tile_overlap=128,  # a guess: no trained weights to measure it on
        )

    def reduce(self, picture: Tensor) -> Tensor:
        """The next size of the pyramid that predictions are compared at, (B, C, H/2, W/2)."""
        return reduced(picture, self.config.pyramid)

    def scales(self, blurred: Tensor) -> list[Tensor]:
        """Predictions from full size to the coarsest.

        Args:
            blurred: (B, 3, H, W), sRGB-encoded 0..1; H and W multiples of ``spec.multiple_of``.

        Returns:
            (B, 3, H, W), (B, 3, H/2, W/2) and so on, float32.
        """
        pyramid = [blurred.float() - 0.5]
        for _ in range(self.config.scales - 1):
            pyramid.append(reduced(pyramid[-1], self.config.pyramid))
        found: list[Tensor] = []
        for s in reversed(range(self.config.scales)):
            x = pyramid[s]
            if found:
                x = torch.cat((x, F.pixel_shuffle(self.enlargements[s](found[0]), 2)), dim=1)
            found.insert(0, self.networks[s](x))
        return [out + 0.5 for out in found]

    def forward(self, blurred: Tensor) -> Tensor:
        """Deblur pictures: (B, 3, H, W) sRGB-encoded 0..1 to the same, float32."""
        return self.scales(blurred)[0]


class MscnnDiscriminator(nn.Module):
    """Tells sharp pictures from deblurred ones (Nah et al. 2017, section 3.3, table 1).

    A patch of 256x256 gives one value, a larger one a map.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (
            (3, 32, 1),
            (32, 32, 2),
            (32, 64, 1),
            (64, 64, 2),
            (64, 128, 1),
            (128, 128, 4),
            (128, 256, 1),
            (256, 256, 4),
            (256, 512, 1),
        )
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 5, stride=stride, padding=2, bias=False) for a, b, stride in widths
        )
        self.layers.append(nn.Conv2d(512, 512, 4, stride=4, bias=False))
        self.output = nn.Conv2d(512, 1, 1, bias=False)

    def logits(self, x: Tensor) -> Tensor:
        """What goes into the sigmoid, (B, 1, H/256, W/256): losses take it, for its precision."""
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        out: Tensor = self.output(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Probability that pictures (B, 3, H, W) of at least 256x256 are sharp."""
        return torch.sigmoid(self.logits(x))
