"""Pictures of what the networks cannot do, for the model cards.

All of them are drawn by the program (:mod:`vs_deblur.demo_scene`) with a fault that deblurring does
not undo, or hardly: so they can be shown with the sharp picture beside them, belong to nobody, and
are the same for every network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from vs_deblur.demo_scene import Array, Renderer, Scene, to_srgb
from vs_deblur.engine import Deblurrer
from vs_deblur.metrics import Image, psnr

FRAMES = 5
_SHOWN = 3  # of the frames: the recurrence has begun, and there is one more to look ahead to
_FAR = 28.0  # dB: differences of ten code values
_HEIGHT, _WIDTH = 140, 240  # of what is shown


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        name: what it is called.
        cause: a sentence on it.
        frames: what goes in and what should come out, consecutive frames.
        corner: top and left of what is shown.
    """

    name: str
    cause: str
    frames: Sequence[tuple[Image, Image]]
    corner: tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """A part of a frame three times, and its PSNR in dB."""

    case: Case
    given: Image
    result: Image
    sharp: Image
    before: float
    after: float

    @property
    def sentence(self) -> str:
        """What is to be seen, for the card."""
        gain = self.after - self.before
        what = f"{self.before:.1f} dB become {self.after:.1f}"
        if gain < -0.1:
            what += ": worse than it was"
        elif gain < 0.3:
            what += ": as good as nothing"
        elif self.after < _FAR:
            what += ", which is far from sharp"
        return f"**{self.case.name}.** {self.case.cause} {what}."


def _rounded(linear: Array) -> Image:
    image: Image = np.rint(to_srgb(linear)).astype(np.uint8)
    return image


def exposures(
    scene: Scene, light: Callable[[Array, NDArray[np.float64]], Array] = lambda x, _: x
) -> Iterator[tuple[Array, Array]]:
    """Blurred and sharp frames in linear light, neither clipped nor rounded.

    Args:
        scene: what is seen; its noise does not count.
        light: what the light of each sub-frame is made of; the second argument is where the camera
            looks, y and x in pixels.
    """
    renderer = Renderer(scene)
    for n in range(scene.frames):
        steps = range(n * scene.period, n * scene.period + scene.tau)
        parts = [light(renderer.sub_frame(i), renderer.camera[i]) for i in steps]
        yield np.mean(parts, axis=0, dtype=np.float32), parts[scene.tau // 2]


def _length(path: NDArray[Any]) -> float:
    """Of a path of points, in their units."""
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def _path(scene: Scene) -> slice:
    """The sub-frames of the exposure that is shown."""
    first = _SHOWN * scene.period
    return slice(first, first + scene.tau)


def long_blur() -> Case:
    """A camera that moves by some forty pixels while the shutter is open."""
    scene = Scene(frames=FRAMES, tau=41, period=60, shake=2.4)
    length = _length(Renderer(scene).camera[_path(scene)])
    frames = [(_rounded(b), _rounded(s)) for b, s in exposures(scene)]
    cause = f"The camera moves by {length:.0f} pixels while the shutter is open."
    return Case("Long blur", cause, frames, (100, 210))


def dark_noise() -> Case:
    """A tenth of the light, and a sensor that is turned up."""
    rng = np.random.default_rng(1)
    tenth = np.float32(0.1)
    clean = [(tenth * b, tenth * s) for b, s in exposures(Scene(frames=FRAMES))]
    frames = []
    for blurred, sharp in clean:
        # Photons come one by one (variance by the light), the sensor adds its own.
        sigma = np.sqrt(1.2e-3 * blurred + 1e-4)
        noise = sigma * rng.standard_normal(blurred.shape, np.float32)
        frames.append((_rounded(blurred + noise), _rounded(sharp)))
    added = frames[_SHOWN][0].astype(np.float64) - _rounded(clean[_SHOWN][0])
    cause = f"A tenth of the light, noise of {np.sqrt(np.mean(added**2)):.0f} code values."
    return Case("Noise in the dark", cause, frames, (100, 210))


def defocus(radius: int = 4) -> Case:
    """A still picture seen by a lens out of focus."""
    scene = Scene(frames=1, tau=1, period=1, shake=0.0)
    ((_, sharp),) = exposures(scene)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = [(int(a), int(b)) for a, b in zip(y.ravel(), x.ravel(), strict=True)]
    disc = [(a, b) for a, b in disc if a * a + b * b <= (radius + 0.3) ** 2]
    wide = np.pad(sharp, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    height, width = sharp.shape[:2]
    blurred = np.mean(
        [wide[radius + a :, radius + b :][:height, :width] for a, b in disc],
        axis=0,
        dtype=np.float32,
    )
    frames = [(_rounded(blurred), _rounded(sharp))] * FRAMES
    cause = f"Nothing moves; the lens spreads every point over {2 * radius + 1} pixels."
    return Case("Out of focus", cause, frames, (100, 210))


def highlights() -> Case:
    """Lamps much brighter than white, which the sensor cuts off after the exposure."""
    scene = Scene(frames=FRAMES, tau=21, period=30, shake=1.3)
    length = _length(Renderer(scene).camera[_path(scene)])
    lamps = [(70 + 26 * (n % 2), 215 + 27 * n) for n in range(9)]
    colours = np.asarray(((1, 0.8, 0.5), (0.7, 0.85, 1), (1, 0.35, 0.25)), np.float32)

    def light(wall: Array, camera: NDArray[np.float64]) -> Array:
        out = wall * np.float32(0.15)
        for n, (top, left) in enumerate(lamps):
            y, x = top - camera[0], left - camera[1]
            rows, columns = np.mgrid[int(y) - 5 : int(y) + 7, int(x) - 5 : int(x) + 7]
            bulb = np.clip(4 - np.hypot(rows - y, columns - x), 0, 1).astype(np.float32)
            out[rows, columns] += 12 * bulb[..., None] * colours[n % 3]
        return out

    frames = [(_rounded(b), _rounded(s)) for b, s in exposures(scene, light)]
    cause = f"Lamps twelve times brighter than white, drawn out over {length:.0f} pixels."
    return Case("Clipped highlights", cause, frames, (10, 200))


def fast_foreground() -> Case:
    """Things that fly past a camera on a tripod."""
    scene = Scene(frames=FRAMES, tau=41, period=60, shake=0.0)
    renderer = Renderer(scene)
    steps = range(*_path(scene).indices(10**9))
    wheel = np.asarray([renderer.places(i)[1] for i in steps])
    frames = [(_rounded(b), _rounded(s)) for b, s in exposures(scene)]
    cause = f"The wall stands still, the wheel rolls by {_length(wheel):.0f} pixels."
    y, x = wheel[len(wheel) // 2]
    return Case("Fast foreground", cause, frames, (int(y) - 20, int(x) - 66))


CASES: tuple[Callable[[], Case], ...] = (
    long_blur,
    fast_foreground,
    highlights,
    dark_noise,
    defocus,
)


def show(deblurrer: Deblurrer, case: Case) -> Shown:
    """What a network makes of a fault; whole frames go in, PSNR is that of the part shown."""
    results = list(deblurrer.video([given for given, _ in case.frames]))
    top, left = case.corner
    part = np.s_[top : top + _HEIGHT, left : left + _WIDTH]
    given, sharp = (np.ascontiguousarray(x[part]) for x in case.frames[_SHOWN])
    result = np.ascontiguousarray(results[_SHOWN][part])
    return Shown(case, given, result, sharp, psnr(given, sharp), psnr(result, sharp))


def sheet(rows: Sequence[Shown], path: Path) -> None:
    """Write rows of what goes in, what comes out, and the sharp picture, as a small PNG."""
    gap, line = 4, 17
    size = (3 * _WIDTH + 4 * gap, len(rows) * (_HEIGHT + line + gap))
    page = Pictures.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(12)
    for n, row in enumerate(rows):
        top = n * (_HEIGHT + line + gap)
        before, after = f"{row.case.name}: {row.before:.1f} dB", f"deblurred: {row.after:.1f} dB"
        labels = (before, after, "sharp")
        for i, (label, picture) in enumerate(
            zip(labels, (row.given, row.result, row.sharp), strict=True)
        ):
            left = gap + i * (_WIDTH + gap)
            draw.text((left, top + 1), label, (20, 20, 20), font)
            page.paste(Pictures.fromarray(picture), (left, top + line))
    # A palette: a third of the bytes, for a difference that is not what is shown.
    page.quantize(256, dither=Pictures.Dither.FLOYDSTEINBERG).save(path, optimize=True)
