"""Deep stacked hierarchical multi-patch network: Zhang, Dai, Li, Koniusz, CVPR 2019 (DMPHN).

The picture is cut into 8, 4, 2 and 1 patches. Each level corrects the patches of the next finer
cut and hands its features and its correction on; the last level puts out the whole picture. Stacks
of such networks (SDNet) run one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vs_deblur_models.blocks import Convolution, FromPixels, ResBlock, ToPixels, draw_kernels_
from vs_deblur_models.spec import NetworkSpec

# How a patch of level l is cut for level l + 1: into top and bottom (dimension 2) or left and
# right (dimension 3). Level 1 is the whole picture.
_CUTS = (2, 3, 2)


@dataclass(frozen=True)
class DmphnConfig:
    """Hyper-parameters.

    Attributes:
        levels: 2, 3 or 4 for DMPHN-1-2, -1-2-4 and -1-2-4-8.
        stacks: networks one after the other; more than 1 is SDNet, whose parts have three levels.
    """

    levels: int = 4
    stacks: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 4:
            raise ValueError(f"levels must be 2, 3 or 4, got {self.levels}")
        if self.stacks < 1 or (self.stacks > 1 and self.levels != 3):
            raise ValueError("stacks have three levels each")


class Encoder(nn.Sequential):
    """(B, 3, H, W) to features (B, 128, H/4, W/4), section 3.2; no activation between the parts."""

    def __init__(self) -> None:
        super().__init__(
            FromPixels(3, 32, 3, padding=1),
            ResBlock(32),
            ResBlock(32),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            ResBlock(64),
            ResBlock(64),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            ResBlock(128),
            ResBlock(128),
        )


class Decoder(nn.Sequential):
    """Features (B, 128, H/4, W/4) to (B, 3, H, W); nothing is handed over from the encoder."""

    def __init__(self) -> None:
        super().__init__(
            ResBlock(128),
            ResBlock(128),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
            ResBlock(64),
            ResBlock(64),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            ResBlock(32),
            ResBlock(32),
            ToPixels(32, 3, 3, padding=1),
        )


def _cut(patches: Tensor, dimension: int) -> Tensor:
    """Halve every patch of a batch: first all halves of the first patch, then of the second …"""
    halves = torch.stack(patches.chunk(2, dimension), dim=1)
    return halves.flatten(0, 1)


def _merge(patches: Tensor, dimension: int) -> Tensor:
    """Put neighbours of a batch together: what :func:`_cut` took apart."""
    return torch.cat((patches[0::2], patches[1::2]), dimension)


@dataclass(frozen=True)
class _Trace:
    """What a stack hands to the next: its output, and the features of each level (merged there)."""

    output: Tensor
    features: list[Tensor]


class Hierarchy(nn.Module):
    """One stack: an encoder and a decoder for each level, the finest cut first to run."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(Encoder() for _ in range(levels))
        self.decoders = nn.ModuleList(Decoder() for _ in range(levels))

    def run(self, picture: Tensor, before: _Trace | None, first: Tensor | None) -> _Trace:
        """Run all levels.

        Args:
            picture: (B, 3, H, W), centred.
            before: what the stack before gave, whose features are added level by level.
            first: output of the very first stack, added to the correction that level 1 gets.
        """
        levels = len(self.encoders)
        cuts = _CUTS[: levels - 1]
        patches = [picture]
        for dimension in cuts:
            patches.append(_cut(patches[-1], dimension))
        merged: Tensor | None = None  # features of the finer level, put together
        correction: Tensor | None = None
        features: list[Tensor] = []
        for level in reversed(range(levels)):
            x = patches[level] if correction is None else patches[level] + correction
            f: Tensor = self.encoders[level](x)
            finest = merged is None
            if merged is not None:
                f = f + merged
                if before is not None:
                    f = f + before.features[level]
                features.insert(0, f)
            if level:
                f = _merge(f, cuts[level - 1])
            if finest:
                if before is not None:
                    f = f + before.features[level]
                features.insert(0, f)
            merged = f
            correction = self.decoders[level](f)
            if level == 1 and first is not None:
                correction = correction + first
        assert correction is not None
        return _Trace(correction, features)


def _draw(layer: Convolution) -> None:
    """N(0, 0.5 sqrt(2 / n)) with n = kernel area times output channels, as the authors do."""
    n = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
    nn.init.normal_(layer.weight, 0.0, 0.5 * (2.0 / n) ** 0.5)


class Dmphn(nn.Module):
    """DMPHN-1-2, -1-2-4, -1-2-4-8 and the stacks SDNet2 to SDNet4.

    Patches are fractions of the picture and are padded with zeros, so a tile of a picture is
    another function than the picture: ``spec.is_tileable`` is false.
    """

    def __init__(self, config: DmphnConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DmphnConfig()
        self.stacks = nn.ModuleList(Hierarchy(config.levels) for _ in range(config.stacks))
        draw_kernels_(self, _draw)

    @property
    def spec(self) -> NetworkSpec:
        """What a host needs to know (see :class:`NetworkSpec`)."""
        levels, stacks = self.config.levels, self.config.stacks
        # Patches of the finest level must be multiples of 4.
        rows, columns = (2 ** (_CUTS[: levels - 1].count(d)) for d in (2, 3))
        # 3x3 convolutions at 1, 1/2 and 1/4 of the size on the way down and up.
        reach = 2 * 5 + 2 * 2 * 4 + 2 * 4 * 4 + 2 * (1 + 2)
        # Multiply-adds a pixel: encoder and decoder at 1, 1/2 and 1/4 of the size.
        full = 9 * 32 * (3 + 3 + 8 * 32)
        half = 9 * 64 * (32 + 8 * 64) + 16 * 64 * 32
        quarter = 9 * 128 * (64 + 8 * 128) + 16 * 128 * 64
        return NetworkSpec(
            network="dmphn",
            multiple_of=4 * rows,
            width_multiple_of=4 * columns,
            minimum=4 * rows,
            receptive_field=reach * levels * stacks,
            look_behind=0,
            look_ahead=0,
            is_recurrent=False,
            is_tileable=False,
            flops_per_pixel=2.0 * levels * stacks * (full + half / 4 + quarter / 16),
            bytes_per_pixel=4.0 * 280,
            tile_overlap=192,  # a guess: no trained weights to measure it on
        )

    def forward(self, blurred: Tensor) -> Tensor:
        """Deblur pictures.

        Args:
            blurred: (B, 3, H, W), sRGB-encoded 0..1; H and W as ``spec`` says.

        Returns:
            (B, 3, H, W) float32.
        """
        x = blurred - 0.5
        trace: _Trace | None = None
        first: Tensor | None = None
        for stack in self.stacks:
            assert isinstance(stack, Hierarchy)
            trace = stack.run(x if trace is None else trace.output, trace, first)
            first = trace.output if first is None else first
        assert trace is not None
        return trace.output + 0.5
