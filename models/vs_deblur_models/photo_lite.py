"""The project's own light network for photos: a U-shape of ResBlocks at 1/2 to 1/32 of the size.

The published photo networks run ResBlocks at full size (1 to 5 million multiply-adds a pixel). This
one spends 50 thousand, most of them where a pixel stands for a block of 4x4 to 32x32, so that long
blur fits into its view and a photo takes seconds on a processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vs_deblur_models.blocks import ResBlock, initialise_
from vs_deblur_models.spec import NetworkSpec


@dataclass(frozen=True)
class PhotoLiteConfig:
    """Hyper-parameters.

    Attributes:
        channels: widths at 1/2, 1/4, 1/8 and so on.
        encoder_blocks: ResBlocks of each on the way down; the last is the bottom.
        decoder_blocks: ResBlocks on the way up, from the size above the bottom to 1/2.
    """

    channels: tuple[int, ...] = (32, 64, 96, 160, 224)
    encoder_blocks: tuple[int, ...] = (1, 2, 2, 2, 3)
    decoder_blocks: tuple[int, ...] = (2, 2, 2, 1)

    def __post_init__(self) -> None:
        sizes = len(self.channels)
        if sizes < 2 or len(self.encoder_blocks) != sizes or len(self.decoder_blocks) != sizes - 1:
            raise ValueError("one number of blocks for each size, down and up")


def _blocks(count: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(count)))


class PhotoLite(nn.Module):
    """A U-shape of ResBlocks whose output is added to the picture; it starts as the identity."""

    def __init__(self, config: PhotoLiteConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PhotoLiteConfig()
        c = config.channels
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.head = nn.Conv2d(12, c[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(c))
        self.encoders = nn.ModuleList(map(_blocks, config.encoder_blocks, c))
        above = c[-2::-1]  # widths from the size above the bottom to 1/2
        self.up = nn.ModuleList(
            nn.Conv2d(a, 4 * b, 1) for a, b in zip(c[:0:-1], above, strict=True)
        )
        self.decoders = nn.ModuleList(map(_blocks, config.decoder_blocks, above))
        self.output = nn.Conv2d(c[0], 12, 3, padding=1)
        initialise_(self)
        nn.init.zeros_(self.output.weight)

    @property
    def spec(self) -> NetworkSpec:
        """What a host needs to know (see :class:`NetworkSpec`)."""
        c = self.config.channels
        down, up = self.config.encoder_blocks, (*self.config.decoder_blocks[::-1], 0)
        work = 9 * 24 * c[0] / 4
        reach = 2 * 2 + 1
        for i, width in enumerate(c):
            size = 2 ** (i + 1)
            work += 18 * width**2 * (down[i] + up[i]) / size**2
            reach += 2 * (down[i] + up[i]) * size
            if i:
                work += (9 * c[i - 1] * width + 4 * c[i - 1] * width) / size**2
                reach += 2 * size
        multiple = 2 ** len(c)
        return NetworkSpec(
            network="photo_lite",
            multiple_of=multiple,
            minimum=multiple,
            receptive_field=reach,
            look_behind=0,
            look_ahead=0,
            is_recurrent=False,
            flops_per_pixel=2.0 * work,
            bytes_per_pixel=4.0 * (3 * c[0] / 4 + 2 * c[1] / 16 + 18),
            tile_overlap=192,
        )

    def forward(self, blurred: Tensor) -> Tensor:
        """Deblur pictures.

        Args:
            blurred: (B, 3, H, W), sRGB-encoded 0..1; multiples of ``spec.multiple_of``.

        Returns:
            (B, 3, H, W) float32.
        """
        x = (self.unshuffle(blurred) - 0.5).to(
            self.head.weight.dtype, memory_format=torch.channels_last
        )
        x = self.encoders[0](self.head(x))
        skips = []
        for down, encoder in zip(self.down, list(self.encoders)[1:], strict=True):
            skips.append(x)
            x = encoder(down(x))
        for up, decoder in zip(self.up, self.decoders, strict=True):
            x = decoder(self.shuffle(up(x)) + skips.pop())
        change: Tensor = self.shuffle(self.output(x))
        return blurred.float() + change.float()
