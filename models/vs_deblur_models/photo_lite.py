"""The project's own light network for photos: a U-shape of gated blocks at 1/4 to 1/32 of the size.

The published photo networks run ResBlocks at full size (1 to 5 million multiply-adds a pixel). This
one spends 30 thousand, all of them where a pixel stands for a block of 4x4 to 32x32, so that long
blur fits into its view and a photo takes seconds on a processor.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vs_deblur_models.blocks import GatedBlock
from vs_deblur_models.spec import NetworkSpec

BLOCK = 4  # height and width of the pixels that make one of the first feature map


@dataclass(frozen=True)
class PhotoLiteConfig:
    """Hyper-parameters.

    Attributes:
        channels: widths at 1/4, 1/8 and so on.
        encoder_blocks: blocks of each on the way down; the last is the bottom.
        decoder_blocks: blocks on the way up, from the size above the bottom to 1/4.
    """

    channels: tuple[int, ...] = (64, 128, 224, 320)
    encoder_blocks: tuple[int, ...] = (2, 2, 4, 4)
    decoder_blocks: tuple[int, ...] = (3, 2, 2)

    def __post_init__(self) -> None:
        sizes = len(self.channels)
        if sizes < 2 or len(self.encoder_blocks) != sizes or len(self.decoder_blocks) != sizes - 1:
            raise ValueError("one number of blocks for each size, down and up")


def _blocks(count: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(GatedBlock(channels) for _ in range(count)))


class PhotoLite(nn.Module):
    """A U-shape of gated blocks whose output is added to the picture; it starts as the identity."""

    def __init__(self, config: PhotoLiteConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PhotoLiteConfig()
        c = config.channels
        samples = 3 * BLOCK**2
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(BLOCK), nn.PixelShuffle(BLOCK)
        self.shuffle2 = nn.PixelShuffle(2)
        self.head = nn.Conv2d(samples, c[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(c))
        self.encoders = nn.ModuleList(map(_blocks, config.encoder_blocks, c))
        above = c[-2::-1]  # widths from the size above the bottom to 1/4
        self.up = nn.ModuleList(
            nn.Conv2d(a, 4 * b, 1) for a, b in zip(c[:0:-1], above, strict=True)
        )
        self.decoders = nn.ModuleList(map(_blocks, config.decoder_blocks, above))
        self.output = nn.Conv2d(c[0], samples, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        if self.output.bias is not None:
            nn.init.zeros_(self.output.bias)

    @property
    def spec(self) -> NetworkSpec:
        """What a host needs to know (see :class:`NetworkSpec`)."""
        c = self.config.channels
        down, up = self.config.encoder_blocks, (*self.config.decoder_blocks[::-1], 0)
        work = 2 * 9 * 3 * BLOCK**2 * c[0] / BLOCK**2
        reach = 2 * BLOCK
        for i, width in enumerate(c):
            size = BLOCK * 2**i
            # Pointwise: 2 + 1 and 2 + 1 times the width; depthwise: 9 for each of twice the width.
            work += (6 * width**2 + 18 * width) * (down[i] + up[i]) / size**2
            reach += (down[i] + up[i]) * size
            if i:
                work += (4 * c[i - 1] * width + 4 * c[i - 1] * width) / size**2
        multiple = BLOCK * 2 ** (len(c) - 1)
        return NetworkSpec(
            network="photo_lite",
            multiple_of=multiple,
            minimum=multiple,
            # What a pixel of the bottom stands for is off its middle by less than its size.
            receptive_field=reach + multiple - 1,
            look_behind=0,
            look_ahead=0,
            is_recurrent=False,
            flops_per_pixel=2.0 * work,
            bytes_per_pixel=4.0 * (7 * c[0] / BLOCK**2 + 11),
            tile_overlap=192,  # 52.8 dB or more between tiles and the whole (benchmarks/tiles.py)
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
            x = decoder(self.shuffle2(up(x)) + skips.pop())
        change: Tensor = self.shuffle(self.output(x))
        return blurred.float() + change.float()
