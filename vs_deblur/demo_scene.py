"""A moving scene drawn by the program: blurred frames and the sharp ones they belong to.

The blur is made as cameras make it, by Eq. 1 of Kim et al. 2017: a blurred frame is the mean, in
linear light, of tau sub-frames; its sharp frame is the sub-frame in the middle of the exposure.
Between two exposures the shutter is closed for a while (``period - tau`` sub-frames).

A brick wall with posters, a sign and foliage is seen by a camera held in the hand; a ball, a parcel
and a wheel move before it on paths of their own. Everything is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[np.float32]
Image8 = NDArray[np.uint8]

_SUPERSAMPLING = 2  # the scene is drawn larger and reduced, so that edges are smooth


@dataclass(frozen=True)
class Scene:
    """What is drawn, and how it is exposed.

    Attributes:
        width, height: pixels.
        frames: number of frames.
        tau: sub-frames of an exposure, odd.
        period: sub-frames from one exposure to the next, tau <= period < 2 tau.
        noise: standard deviation of the sensor's noise, of 255.
        shake: how fast the camera moves, in times of the usual; 0 on a tripod.
        seed: of everything that is random.
    """

    width: int = 640
    height: int = 360
    frames: int = 30
    tau: int = 11
    period: int = 16
    noise: float = 1.0
    shake: float = 1.0
    seed: int = 7


def to_linear(srgb: NDArray[Any]) -> Array:
    """SRGB 0..255 to linear light 0..1."""
    x = np.asarray(srgb, np.float32) / 255.0
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(linear: Array) -> Array:
    """Linear light 0..1 to sRGB 0..255, not rounded."""
    x = np.clip(linear, 0.0, 1.0)
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055) * np.float32(255)


# ---------------------------------------------------------------------------------------- textures


def octaves(
    rng: np.random.Generator, height: int, width: int, coarsest: int = 64, finest: int = 2
) -> Array:
    """Noise of several octaves, (height, width), mean 0 and standard deviation 1."""
    total = np.zeros((height, width), np.float32)
    cell, weight = coarsest, 1.0
    while cell >= finest:
        small = rng.standard_normal((height // cell + 3, width // cell + 3)).astype(np.float32)
        large = Image.fromarray(small).resize(
            (small.shape[1] * cell, small.shape[0] * cell), Image.Resampling.BICUBIC
        )
        y, x = (int(rng.integers(cell)) for _ in range(2))
        total += weight * np.asarray(large)[y : y + height, x : x + width]
        cell, weight = cell // 2, weight * 0.72
    return (total - total.mean()) / total.std()


def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _coloured(base: tuple[int, int, int], texture: Array, contrast: float) -> Array:
    """A colour times a texture around 1, (H, W, 3) sRGB."""
    return np.asarray(base, np.float32) * (1 + contrast * texture)[..., None]


def _paste(target: Array, layer: Image.Image, x: int, y: int) -> None:
    """Put an RGBA picture on an sRGB array."""
    picture = np.asarray(layer, np.float32)
    height, width = picture.shape[:2]
    alpha = picture[..., 3:] / 255.0
    part = target[y : y + height, x : x + width]
    part[...] = (
        part * (1 - alpha[: part.shape[0], : part.shape[1]])
        + (picture[..., :3] * alpha)[: part.shape[0], : part.shape[1]]
    )


def _bricks(rng: np.random.Generator, height: int, width: int) -> Array:
    """A wall: bricks of slightly different colours, mortar between them."""
    rows, columns, gap = 34, 78, 4
    wall = _coloured((158, 150, 138), octaves(rng, height, width, 32), 0.10)
    grain = octaves(rng, height, width, 16, 2)
    stains = octaves(rng, height, width, 256, 32)
    for row, top in enumerate(range(0, height, rows)):
        for left in range(-columns + (row % 2) * columns // 2, width, columns):
            y, x = slice(top, top + rows - gap), slice(max(left, 0), max(left + columns - gap, 0))
            tone = rng.normal(0, 0.10)
            red, green, blue = 150 + rng.normal(0, 10), 82 + rng.normal(0, 7), 64
            shade = 1 + tone + 0.11 * grain[y, x] + 0.08 * stains[y, x]
            wall[y, x] = np.asarray((red, green, blue), np.float32) * shade[..., None]
            wall[top : top + 2, x] *= 1.18  # light from above
            wall[top + rows - gap - 2 : top + rows - gap, x] *= 0.72
    return wall


_LINES = (
    "MOTION is what a shutter cannot hold.",
    "blurred = mean of the sub-frames, 1 to tau;",
    "sharp = the one in the middle of them.",
    "Left alone, a sample keeps its exact value:",
    "0123456789  +-*/=  (x, y)  [t]  {n}  <k>",
    "The quick brown fox jumps over the lazy dog.",
    "Every frame is a function of the clip and n.",
    "Sphinx of black quartz, judge my vow: 3.14159",
)


def _poster(
    rng: np.random.Generator, width: int, height: int, title: str, ink: tuple[int, int, int]
) -> Image.Image:
    """A printed sheet: heading, chart, lines of small print."""
    paper = _coloured((236, 231, 216), octaves(rng, height, width, 64), 0.018)
    sheet = Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8)).convert("RGBA")
    draw = ImageDraw.Draw(sheet)
    edge = min(6, width // 8)
    draw.rectangle((edge, edge, width - 1 - edge, height - 1 - edge), outline=ink, width=3)
    draw.text((width / 2, 14), title, ink, _font(width / 8.2), anchor="ma")
    top = 18 + width // 7
    bars, margin = 12, width * 0.06
    pitch = (width - 2 * margin) / bars
    for i in range(bars):
        tall = rng.uniform(0.15, 1.0) * height * 0.18
        left, base = margin + i * pitch, top + height * 0.2
        draw.rectangle((left, base - tall, left + pitch * 0.8, base), fill=ink)
    y, size = top + height * 0.2 + 10, max(width / 19.0, 9.0)
    margin = max(margin, edge + 6)
    while y + size < height - edge - 6:
        text, font = _LINES[int(rng.integers(len(_LINES)))], _font(size)
        while text and draw.textlength(text, font) > width - 2 * margin:
            text = text.rpartition(" ")[0]
        draw.text((margin, y), text, (48, 46, 52), font)
        y += size * 1.32
    return sheet


def _sign(width: int, height: int, text: str) -> Image.Image:
    sign = Image.new("RGBA", (width, height), (24, 62, 104, 255))
    draw = ImageDraw.Draw(sign)
    draw.rectangle((5, 5, width - 6, height - 6), outline=(240, 240, 232), width=4)
    draw.text((width / 2, height / 2), text, (244, 243, 236), _font(height * 0.6), anchor="mm")
    return sign


def _foliage(rng: np.random.Generator, target: Array, box: tuple[int, int, int, int]) -> None:
    """Leaves, from dark ones behind to bright ones in front."""
    left, top, right, bottom = box
    layer = Image.new("RGBA", (right - left, bottom - top), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    count = (right - left) * (bottom - top) // 90
    for i in range(count):
        depth = i / count
        # Denser on the outside, ragged towards the wall.
        x = rng.uniform(0, 1) * rng.uniform(0.3, 1) * (right - left)
        x, y = (right - left - x if left else x), rng.uniform(0, bottom - top)
        angle, length = rng.uniform(0, np.pi), rng.uniform(7, 17)
        along = np.array((np.cos(angle), np.sin(angle))) * length
        across = np.array((-along[1], along[0])) * 0.28
        centre = np.array((x, y))
        points = (centre - along / 2, centre + across, centre + along / 2, centre - across)
        light = 0.35 + 0.65 * depth + rng.normal(0, 0.12)
        colour = tuple(int(np.clip(c * light, 0, 255)) for c in (104, 152, 62))
        draw.polygon([(float(px), float(py)) for px, py in points], fill=colour)
    _paste(target, layer, left, top)


def background(rng: np.random.Generator, height: int, width: int) -> Array:
    """The wall and what hangs on it, linear light, (height, width, 3)."""
    s = _SUPERSAMPLING
    h, w = height * s, width * s
    wall = _bricks(rng, h, w)
    unit = h // 12
    _paste(wall, _sign(int(w * 0.40), int(unit * 1.6), "VS-DEBLUR 24"), int(w * 0.30), unit)
    tall = int(h * 0.52)
    inks = ((150, 34, 40), (28, 74, 120), (36, 96, 62))
    titles = ("CONCERT 21:30", "Eq. 1", "OPEN 9-17")
    for i, (title, ink) in enumerate(zip(titles, inks, strict=True)):
        wide = int(tall * 0.72)
        left, top = int(w * (0.20 + 0.235 * i)), int(unit * 3.6 + (i % 2) * unit * 0.6)
        wall[top + 8 : top + tall + 12, left + 8 : left + wide + 10] *= 0.55  # its shadow
        _paste(wall, _poster(rng, wide, tall, title, ink), left, top)
    _foliage(rng, wall, (0, int(h * 0.25), int(w * 0.17), h))
    _foliage(rng, wall, (int(w * 0.90), 0, w, int(h * 0.8)))
    floor = int(h * 0.90)
    wall[floor:] = _coloured((126, 124, 120), octaves(rng, h - floor, w, 16), 0.22)
    wall[floor : floor + 5] *= 0.45
    light = 1.08 - 0.38 * np.linspace(0, 1, w, dtype=np.float32)[None, :, None] ** 1.5
    return _reduce(to_linear(np.clip(wall * light, 0, 255)))


def _reduce(linear: Array) -> Array:
    """Means of the supersampled pixels."""
    s = _SUPERSAMPLING
    h, w = linear.shape[0] // s, linear.shape[1] // s
    blocks = linear[: h * s, : w * s].reshape(h, s, w, s, -1)
    return np.ascontiguousarray(blocks.mean(axis=(1, 3), dtype=np.float32))


# ------------------------------------------------------------------------------------------ things


def _sprite(picture: Array, mask: Array) -> tuple[Array, Array]:
    """Premultiplied linear light and mask, reduced, with a border of nothing for interpolation."""
    alpha = mask[..., None].astype(np.float32)
    colour = _reduce(to_linear(np.clip(picture, 0, 255)) * alpha)
    frame = ((2, 2), (2, 2), (0, 0))
    return np.pad(colour, frame), np.pad(_reduce(alpha), frame)


def _grid(size: int) -> tuple[Array, Array, Array]:
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size * 2 - 1
    return y, x, np.hypot(y, x)


def _ball(rng: np.random.Generator, diameter: int) -> tuple[Array, Array]:
    size = diameter * _SUPERSAMPLING
    y, x, r = _grid(size)
    z = np.sqrt(np.clip(1 - r**2, 0, 1))
    longitude, latitude = np.arctan2(x + 0.3 * y, z), np.arcsin(np.clip(y - 0.3 * x, -1, 1))
    odd = (np.floor(longitude * 3) + np.floor(latitude * 3)) % 2 > 0
    colour = np.where(odd[..., None], (214, 66, 42), (238, 232, 214)).astype(np.float32)
    shade = 0.35 + 0.65 * np.clip(-0.4 * x - 0.5 * y + 0.77 * z, 0, 1)
    grain = 1 + 0.05 * octaves(rng, size, size, 8)
    return _sprite(colour * (shade * grain)[..., None], (r < 1).astype(np.float32))


def _parcel(rng: np.random.Generator, width: int) -> tuple[Array, Array]:
    w, h = width * _SUPERSAMPLING, int(width * 0.62) * _SUPERSAMPLING
    card = _coloured((176, 134, 88), octaves(rng, h, w, 32), 0.07)
    card[:, ::6] *= 0.95  # corrugation
    card[int(h * 0.42) : int(h * 0.52)] = (206, 188, 150)
    label = Image.new("RGBA", (int(w * 0.46), int(h * 0.36)), (244, 242, 236, 255))
    draw = ImageDraw.Draw(label)
    draw.text((8, 4), "FRAGILE", (170, 30, 30), _font(h * 0.13))
    draw.text((8, h * 0.17), "to: frame 0042", (30, 30, 36), _font(h * 0.085))
    x = 8.0
    while x < w * 0.46 - 12:
        bar = float(rng.choice((2, 3, 5)))
        draw.rectangle((x, h * 0.27, x + bar, h * 0.34), fill=(20, 20, 24))
        x += bar + float(rng.choice((2, 4)))
    _paste(card, label, int(w * 0.08), int(h * 0.56))
    edge = np.minimum(
        np.minimum(np.arange(h), np.arange(h)[::-1])[:, None],
        np.minimum(np.arange(w), np.arange(w)[::-1])[None],
    )
    card *= np.where(edge < 5, 0.7, 1.0).astype(np.float32)[..., None]
    return _sprite(card, np.ones((h, w), np.float32))


def _wheel(rng: np.random.Generator, diameter: int) -> tuple[Array, Array]:
    size = diameter * _SUPERSAMPLING
    y, x, r = _grid(size)
    angle = np.arctan2(y, x)
    spokes = np.abs(np.sin(angle * 6)) * r < 0.085
    rim, tyre, hub = (r > 0.72) & (r < 0.80), (r >= 0.80) & (r < 1), r < 0.14
    tread = 38 + 12 * np.sign(np.sin(angle * 44))
    colour = np.where(tyre, tread, np.where(rim | hub, 214, 176)).astype(np.float32)
    grain = 1 + 0.06 * octaves(rng, size, size, 8)
    mask = (tyre | rim | hub | (spokes & (r < 0.8))).astype(np.float32)
    return _sprite((colour * grain)[..., None] * np.asarray((1.0, 0.98, 0.94)), mask)


# ------------------------------------------------------------------------------------------ motion


def hand_path(rng: np.random.Generator, steps: int, speed: float) -> NDArray[np.float64]:
    """A hand's tremor: positions (steps, 2) in pixels, y and x, around (0, 0).

    A sum of slow and quick oscillations with amplitudes that fall with frequency.

    Args:
        rng: source of frequencies, phases and directions.
        steps: sub-frames.
        speed: root of the mean square of the speed, pixels a sub-frame.
    """
    t = np.arange(steps)[:, None]
    path = np.zeros((steps, 2))
    for _ in range(7):
        turns = rng.uniform(0.005, 0.022)  # of a sub-frame
        amplitude = rng.normal(0, 1, 2) / turns**0.8
        path += amplitude * np.sin(2 * np.pi * (turns * t + rng.uniform(0, 1, 2)))
    now = np.sqrt(np.mean(np.sum(np.diff(path, axis=0) ** 2, axis=1))) if steps > 1 else 1.0
    return (path - path.mean(axis=0)) * (speed / now)


def _shifted(source: Array, y: float, x: float, height: int, width: int) -> Array:
    """The part of a picture whose corner is at a fractional place, linearly interpolated."""
    top, left = int(np.floor(y)), int(np.floor(x))
    fy, fx = np.float32(y - top), np.float32(x - left)
    rows = source[top : top + height + 1, left : left + width + 1]
    rows = rows[:-1] + fy * (rows[1:] - rows[:-1])
    return rows[:, :-1] + fx * (rows[:, 1:] - rows[:, :-1])


def _draw(canvas: Array, sprite: tuple[Array, Array], y: float, x: float) -> None:
    """Lay a sprite over the canvas with its corner at a fractional place."""
    colour, alpha = sprite
    top, left = int(np.floor(y)), int(np.floor(x))
    height, width = colour.shape[0] - 1, colour.shape[1] - 1
    at_y, at_x = 1 - (y - top), 1 - (x - left)
    moved, mask = (_shifted(s, at_y, at_x, height - 1, width - 1) for s in (colour, alpha))
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height - 1, canvas.shape[0]), min(left + width - 1, canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    under = canvas[y0:y1, x0:x1]
    under *= 1 - mask[part]
    under += moved[part]


class Renderer:
    """Draws sub-frames of a scene.

    Args:
        scene: what.

    Attributes:
        camera: where the camera looks at each sub-frame, (steps, 2), y and x in pixels.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        rng = np.random.default_rng(scene.seed)
        h, w = scene.height, scene.width
        self._steps = (scene.frames - 1) * scene.period + scene.tau
        # The wall passes by slowly while the hand trembles.
        self._hand = hand_path(rng, self._steps, 0.0008 * w * scene.shake)
        drift = np.arange(self._steps) * (1e-4 * w * scene.shake)
        self.camera = self._hand + np.stack((np.zeros_like(drift), drift), axis=1)
        self.camera -= self.camera.min(axis=0) - 1
        size = np.ceil(self.camera.max(axis=0)).astype(int) + 2
        self._wall = background(rng, h + int(size[0]), w + int(size[1]))
        self._sprites = [
            _parcel(rng, round(w * 0.22)),
            _wheel(rng, round(h * 0.30)),
            _ball(rng, round(h * 0.24)),
        ]

    def places(self, step: int) -> list[tuple[float, float]]:
        """Corners of the sprites on the screen, y and x."""
        h, w = self.scene.height, self.scene.width
        t = step / 480  # half a second or so of a high-speed camera
        hand = self._hand[step]
        bounce = abs(np.sin(np.pi * (0.15 + 1.3 * t)))
        places = [
            (h * 0.60 + 2 * np.sin(20 * t), w * (-0.10 + 0.50 * t)),
            (h * 0.66, w * (0.95 - 0.58 * t)),
            (h * (0.60 - 0.46 * bounce), w * (0.80 - 0.42 * t)),
        ]
        return [(float(y - hand[0]), float(x - hand[1])) for y, x in places]

    def sub_frame(self, step: int) -> Array:
        """Linear light 0..1, (height, width, 3), at an instant."""
        y, x = self.camera[step]
        canvas = _shifted(self._wall, y, x, self.scene.height, self.scene.width)
        for sprite, place in zip(self._sprites, self.places(step), strict=True):
            _draw(canvas, sprite, *place)
        return canvas


def render(scene: Scene) -> Iterator[tuple[Image8, Image8]]:
    """Blurred and sharp frames, (H, W, 3) uint8 each."""
    renderer = Renderer(scene)
    noise = np.random.default_rng(scene.seed + 1)
    for n in range(scene.frames):
        first = n * scene.period
        total = np.zeros((scene.height, scene.width, 3), np.float32)
        for i in range(scene.tau):
            now = renderer.sub_frame(first + i)
            total += now
            if i == scene.tau // 2:
                sharp = now
        grain = noise.normal(0, scene.noise, total.shape)
        yield _rounded(to_srgb(total / np.float32(scene.tau)) + grain), _rounded(to_srgb(sharp))


def _rounded(image: NDArray[Any]) -> Image8:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
