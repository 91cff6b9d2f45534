"""What a network states about itself as data, so that no host ever tests for a network's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

State = tuple[Tensor, ...]
"""The memory of a recurrence: full-frame tensors, (B, C, H/s, W/s) each."""


@dataclass(frozen=True)
class NetworkSpec:
    """Facts a host needs to run a network.

    Attributes:
        network: name of the architecture in the registry.
        multiple_of: height and width must be multiples of this (the engine pads and crops).
        width_multiple_of: another rule for the width; None for the same.
        is_tileable: whether a part of a frame, far enough from the part's border, gives what the
            whole frame gives; otherwise hosts keep frames whole while memory allows.
        tile_overlap: where the receptive field is too large for a halo: pixels that neighbouring
            tiles share, over which they are blended. None: tiles with a halo, exact.
        minimum: smallest height and width in pixels after padding.
        receptive_field: an output pixel of one step depends on input pixels at most this far away,
            in each direction.
        look_behind: past frames in the window.
        look_ahead: future frames in the window.
        is_recurrent: whether a state is carried from frame to frame.
        flops_per_pixel: floating-point operations (two a multiply-add) of one step, a pixel.
        bytes_per_pixel: peak memory of one step in float32 beyond its frames, bytes a pixel
            (measured on the CPU, where it is largest). It holds from half a megapixel on;
            smaller tiles may take more a pixel.
    """

    network: str
    multiple_of: int
    minimum: int
    receptive_field: int
    look_behind: int
    look_ahead: int
    is_recurrent: bool
    flops_per_pixel: float
    bytes_per_pixel: float
    width_multiple_of: int | None = None
    is_tileable: bool = True
    tile_overlap: int | None = None

    @property
    def window(self) -> int:
        """Number of frames in the window."""
        return self.look_behind + 1 + self.look_ahead


@runtime_checkable
class VideoNetwork(Protocol):
    """A network that deblurs one frame from a window of frames and a state."""

    @property
    def spec(self) -> NetworkSpec:
        """What the network states about itself."""
        ...

    def step(self, window: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Deblur the middle frame of a window.

        Args:
            window: (B, 3 * frames, H, W) float32, or float16 where that is the type of the
                weights; sRGB-encoded 0..1, oldest frame first. Networks cast it to the type of
                their weights themselves, so that what is added at the end is the exact input.
            state: what the last step returned, or None to start a recurrence.

        Returns:
            the sharp middle frame, (B, 3, H, W) in float32, and the next state (empty for a
            network without a recurrence).
        """
        ...


@runtime_checkable
class PhotoNetwork(Protocol):
    """A network that deblurs single pictures."""

    @property
    def spec(self) -> NetworkSpec:
        """What the network states about itself."""
        ...

    def forward(self, blurred: Tensor) -> Tensor:
        """Deblur pictures.

        Args:
            blurred: (B, 3, H, W) float32, sRGB-encoded 0..1. Networks cast it to the type of their
                weights themselves.

        Returns:
            the sharp pictures, (B, 3, H, W) in float32.
        """
        ...


def takes_frames(network: Any) -> bool:
    """Whether a network is one for video: it has a ``step`` on windows of frames."""
    return hasattr(network, "step")


def step_of(network: Any, window: Tensor, state: State | None) -> tuple[Tensor, State]:
    """One step of any network: one for photos takes each frame by itself and has no state.

    Arguments and results are those of :meth:`VideoNetwork.step`.
    """
    if takes_frames(network):
        sharp, following = network.step(window, state)
        return sharp, following
    return network(window), ()
