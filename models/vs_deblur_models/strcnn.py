"""Kim, Lee, Schölkopf, Hirsch: "Online Video Deblurring via Dynamic Temporal Blending Network",
ICCV 2017 — CNN, STRCNN and STRCNN+DTB, and a lighter relative for processors without a GPU.

All of them deblur the middle frame ``B_n`` of a window of 2m+1 frames. STRCNN feeds a feature map
``F_{n-1}`` of the last step back into the next; DTB blends the features ``h_n`` with those of the
past, pixel by pixel (equations 2 and 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vs_deblur_models.blocks import (
    DynamicTemporalBlending,
    FromPixels,
    ResBlock,
    ToPixels,
    initialise_,
)
from vs_deblur_models.spec import NetworkSpec, State


def _middle(window: Tensor, m: int) -> Tensor:
    """The middle frame of a (B, 3 * (2m+1), H, W) window, (B, 3, H, W)."""
    return window[:, 3 * m : 3 * m + 3]


def _add_residual(frame: Tensor, out: Tensor) -> Tensor:
    """``frame + out`` in float32: a sum in bfloat16 would cap the accuracy at 52 dB."""
    return frame.float() + out.float()


@dataclass(frozen=True)
class StrcnnConfig:
    """Hyper-parameters of the networks of Kim et al. 2017.

    Attributes:
        m: frames on each side of the middle one (1, 2 or 3 in the paper).
        feedback: carry the feature map F (STRCNN); without it the network is the paper's CNN.
        blending: dynamic temporal blending (DTB).
        residual: add the blurred frame to the output (trains far faster; not in the paper).
    """

    m: int = 1
    feedback: bool = True
    blending: bool = True
    residual: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.m <= 7:
            raise ValueError(f"m must be 1..7, got {self.m}")
        if not isinstance(self.residual, bool):
            raise TypeError("residual must be true or false")


class Strcnn(nn.Module):
    """CNN, STRCNN or STRCNN+DTB, by configuration.

    914,436 parameters with DTB at m = 1; 709,571 without. Widths that the paper leaves open follow
    independent re-implementations; in the CNN without feedback the second convolution gives all
    64 channels, so that everything after it is the same.
    """

    def __init__(self, config: StrcnnConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StrcnnConfig()
        narrow = 32 if config.feedback else 64
        # A change that is added to the frame in float32 needs no more than its own type.
        into = nn.Conv2d if config.residual else FromPixels
        out = nn.Conv2d if config.residual else ToPixels
        self.conv1 = into(3 * (2 * config.m + 1), 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, narrow, 3, stride=2, padding=1)
        self.encoder = nn.Sequential(*(ResBlock(64) for _ in range(4)))
        self.dtb = DynamicTemporalBlending(64) if config.blending else None
        self.decoder = nn.Sequential(*(ResBlock(64) for _ in range(4)))
        self.deconv = nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1)
        self.output = out(64, 3, 3, padding=1)
        self.feedback = nn.Conv2d(64, 32, 3, padding=1) if config.feedback else None
        initialise_(self)
        if config.residual:
            nn.init.zeros_(self.output.weight)

    @property
    def spec(self) -> NetworkSpec:
        """What a host needs to know (see :class:`NetworkSpec`)."""
        c = self.config
        name = "strcnn_dtb" if c.blending else "strcnn" if c.feedback else "cnn"
        half = 8 * 64 * 64 * 9 * 2 + (128 * 64 * 25 if c.blending else 0)
        half += 64 * 32 * 9 if c.feedback else 0
        half += 64 * self.conv2.out_channels * 9 + 64 * 64 * 16
        full = 3 * (2 * c.m + 1) * 64 * 25 + 64 * 3 * 9
        return NetworkSpec(
            network=name,
            multiple_of=2,
            minimum=2,
            # conv1 2, conv2 1, 16 convolutions at half size 32, DTB 4, deconv 1 (plus up to one
            # pixel of alignment), output 1.
            receptive_field=42 if c.blending else 38,
            look_behind=c.m,
            look_ahead=c.m,
            is_recurrent=c.feedback or c.blending,
            flops_per_pixel=2.0 * (full + half / 4),
            bytes_per_pixel=4.0 * 64 * 5.2,
        )

    def step(self, window: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Deblur the middle frame of a window; see :class:`~vs_deblur_models.spec.VideoNetwork`.

        The state is ``(F, h~)``, ``(F,)``, ``(h~,)`` or ``()``, at half size. Without a state F is
        zero and the blend is the identity.
        """
        # What takes pixels takes them as they are; with a residual it is an ordinary convolution.
        x = window if isinstance(self.conv1, FromPixels) else window.to(self.conv1.weight.dtype)
        x = torch.relu(self.conv1(x))  # (B, 64, H, W)
        x = torch.relu(self.conv2(x))  # (B, 32, H/2, W/2)
        past = list(state) if state is not None else []
        if self.feedback is not None:
            fed_back = past.pop(0) if past else torch.zeros_like(x)
            x = torch.cat((x, fed_back), dim=1)  # (B, 64, H/2, W/2)
        h = self.encoder(x)
        if self.dtb is not None and past:
            h = self.dtb(h, past.pop(0))
        z = self.decoder(h)
        out = self.output(torch.relu(self.deconv(z)))  # (B, 3, H, W)
        following: list[Tensor] = []
        if self.feedback is not None:
            following.append(torch.relu(self.feedback(z)))
        if self.dtb is not None:
            following.append(h)
        if self.config.residual:
            out = _add_residual(_middle(window, self.config.m), out)
        return out.float(), tuple(following)


@dataclass(frozen=True)
class StrcnnDtbLiteConfig:
    """Hyper-parameters of the light network.

    Attributes:
        m: frames on each side of the middle one.
        channels: widths at 1/4, 1/8 and 1/16 of the frame's size.
        encoder_blocks: ResBlocks at those sizes on the way down (the last is the bottom).
        decoder_blocks: ResBlocks at 1/8 and 1/4 on the way up.
        feedback_channels: width of the feature map F.
    """

    m: int = 1
    channels: tuple[int, int, int] = (48, 80, 128)
    encoder_blocks: tuple[int, int, int] = (2, 2, 3)
    decoder_blocks: tuple[int, int] = (2, 3)
    feedback_channels: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.m <= 7:
            raise ValueError(f"m must be 0..7, got {self.m}")


class StrcnnDtbLite(nn.Module):
    """The recurrence and the blending of STRCNN+DTB at a seventh of its cost.

    The window goes in as 4x4 blocks (PixelUnshuffle) and the result comes out as 4x4 blocks, so
    that nothing runs at full size; a U-shape at 1/4, 1/8 and 1/16 widens the receptive field. The
    blend works at 1/8. F passes through tanh and h~ is a convex combination, so the whole state is
    bounded whatever the length of the clip. The output starts at zero: an untrained network is the
    identity.
    """

    def __init__(self, config: StrcnnDtbLiteConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StrcnnDtbLiteConfig()
        c0, c1, c2 = config.channels
        n0, n1, n2 = config.encoder_blocks
        m1, m0 = config.decoder_blocks
        frames = 2 * config.m + 1
        self.head = nn.Conv2d(48 * frames + config.feedback_channels, c0, 3, padding=1)
        self.encoder0 = nn.Sequential(*(ResBlock(c0) for _ in range(n0)))
        self.down1 = nn.Conv2d(c0, c1, 3, stride=2, padding=1)
        self.encoder1 = nn.Sequential(*(ResBlock(c1) for _ in range(n1)))
        self.dtb = DynamicTemporalBlending(c1)
        self.down2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.encoder2 = nn.Sequential(*(ResBlock(c2) for _ in range(n2)))
        self.up1 = nn.Conv2d(c2, 4 * c1, 1)
        self.decoder1 = nn.Sequential(*(ResBlock(c1) for _ in range(m1)))
        self.up0 = nn.Conv2d(c1, 4 * c0, 1)
        self.decoder0 = nn.Sequential(*(ResBlock(c0) for _ in range(m0)))
        self.output = nn.Conv2d(c0, 48, 3, padding=1)
        self.feedback = nn.Conv2d(c0, config.feedback_channels, 3, padding=1)
        self.shuffle2 = nn.PixelShuffle(2)
        self.shuffle4 = nn.PixelShuffle(4)
        initialise_(self)
        nn.init.zeros_(self.output.weight)

    @property
    def spec(self) -> NetworkSpec:
        """What a host needs to know (see :class:`NetworkSpec`)."""
        c = self.config
        c0, c1, c2 = c.channels
        n0, n1, n2 = c.encoder_blocks
        m1, m0 = c.decoder_blocks
        frames = 2 * c.m + 1
        # Multiply-adds a pixel of each size; a ResBlock is two 3x3 convolutions.
        quarter = 9 * c0 * (48 * frames + 2 * c.feedback_channels + 48 + 2 * c0 * (n0 + m0))
        eighth = 9 * c1 * (c0 + 2 * c1 * (n1 + m1)) + 25 * 2 * c1 * c1 + 4 * c0 * c1
        sixteenth = 9 * c2 * (c1 + 2 * c2 * n2) + 4 * c1 * c2
        # Reach of each size in its own pixels, times the size of such a pixel: 3x3 convolutions
        # before and after, the strided one, the 5x5 blend; plus the rounding to whole blocks.
        reach = 4 * (2 * n0 + 2 * m0 + 2) + 8 * (2 * n1 + 2 * m1 + 2) + 16 * (2 * n2)
        return NetworkSpec(
            network="strcnn_dtb_lite",
            multiple_of=16,
            minimum=16,
            receptive_field=reach + 4 + 8 + 15,
            look_behind=c.m,
            look_ahead=c.m,
            is_recurrent=True,
            flops_per_pixel=2.0 * (quarter / 16 + eighth / 64 + sixteenth / 256),
            bytes_per_pixel=4.0 * (9 * frames + 5 * c0 / 16 + 16),
        )

    def _blocks(self, window: Tensor, fed_back: Tensor | None) -> Tensor:
        """The window centred, as 4x4 blocks (PixelUnshuffle), and F behind it, in one copy."""
        batch, channels, height, width = window.shape
        rows, columns = height // 4, width // 4
        x = torch.empty(
            (batch, 16 * channels + self.config.feedback_channels, rows, columns),
            dtype=self.head.weight.dtype,
            device=window.device,
            memory_format=torch.channels_last,
        )
        centred = (window - 0.5).reshape(batch, channels, rows, 4, columns, 4)
        inputs = x.permute(0, 2, 3, 1)[..., : 16 * channels]
        inputs = inputs.view(batch, rows, columns, channels, 4, 4)
        inputs.copy_(centred.permute(0, 2, 4, 1, 3, 5))
        if fed_back is None:
            x[:, 16 * channels :].zero_()
        else:
            x[:, 16 * channels :] = fed_back
        return x

    def step(self, window: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Deblur the middle frame of a window; see :class:`~vs_deblur_models.spec.VideoNetwork`.

        The state is ``(F, h~)``: F at 1/4, h~ at 1/8 of the frame's size.
        """
        fed_back, blended = state if state is not None else (None, None)
        x = self._blocks(window, fed_back)  # (B, 48 * frames + F, H/4, W/4)
        x0 = self.encoder0(self.head(x))  # (B, c0, H/4, W/4)
        h = self.encoder1(self.down1(x0))  # (B, c1, H/8, W/8)
        if blended is not None:
            h = self.dtb(h, blended)
        z = self.encoder2(self.down2(h))  # (B, c2, H/16, W/16)
        z = self.decoder1(self.shuffle2(self.up1(z)) + h)  # (B, c1, H/8, W/8)
        z = self.decoder0(self.shuffle2(self.up0(z)) + x0)  # (B, c0, H/4, W/4)
        out = self.shuffle4(self.output(z))  # (B, 3, H, W)
        sharp = _add_residual(_middle(window, self.config.m), out)
        return sharp, (torch.tanh(self.feedback(z)), h)
