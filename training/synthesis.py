"""Blurred and sharp sequences from sharp photographs.

Equation 1 of Kim et al. 2017: a blurred frame is the mean of ``tau`` sub-frames of a scene seen by
a moving camera, the sharp frame is the sub-frame at the middle of the exposure; an exposure begins
every ``period`` sub-frames, ``tau <= period < 2 tau``. Sub-frames are photographs moved along
smooth random paths (camera shake after Boracchi and Foi 2012: a particle with inertia, pulled
back to the centre, with sudden reversals), with up to three foreground layers moving on paths of
their own. Averaging is done in linear light or in the encoded values, as cameras and data sets
differ; saturation, noise, compression and 8-bit rounding follow the average.

Every draw comes from one ``numpy`` generator seeded by ``(seed, index)``: sequence ``index`` is the
same on every machine and whatever the order in which sequences are made.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vs_deblur.errors import InputError, reason

FloatArray = NDArray[np.float64]

# Counted up whenever the same settings and seed make other sequences than before: kept ones are
# not mixed with new ones.
SYNTHESIS_VERSION = 1


@dataclass(frozen=True)
class SynthesisConfig:
    """What is drawn, and how often.

    Attributes:
        size: height and width of a sequence, pixels.
        frames: frames of a sequence.
        taus: sub-frames of an exposure, odd: the middle one is the sharp frame; one is drawn for
            each sequence.
        max_speed: largest path length between two frames, pixels.
        min_speed: smallest; speeds are drawn log-uniformly.
        layers: most foreground layers.
        linear_share: share averaged in linear light (the others in encoded values).
        still_share: share without any motion: identity must be learned.
        frozen_share: share in which one frame is repeated (blurred, but no motion between
            frames): what a video network sees at the ends of a clip.
        noise: largest standard deviation of the noise, in 1/255.
        saturation_share: share with highlights pushed over white before the average.
        compression_share: share compressed as JPEG (4:2:0) after the average.
        min_sharpness: smallest variance of the Laplacian (0..255 values) of the patch.
        powers: of linear light, of which one is drawn for each sequence that is averaged in it; for
            powers but 1 each sub-frame clips. Video of a camera whose response is steeper than the
            sRGB curve (Grossberg and Nayar, "What is the space of camera response functions?",
            2003), as that of REDS is.
    """

    size: int = 160
    frames: int = 8
    taus: tuple[int, ...] = (7, 9, 11, 13, 15)
    max_speed: float = 28.0
    min_speed: float = 1.5
    layers: int = 3
    linear_share: float = 0.5
    still_share: float = 0.06
    frozen_share: float = 0.06
    noise: float = 3.0
    saturation_share: float = 0.15
    compression_share: float = 0.3
    min_sharpness: float = 100.0
    # It came later: kept sequences that do not use it are found by what is shown.
    powers: tuple[float, ...] = field(default=(1.0,), repr=False)

    def __post_init__(self) -> None:
        if not self.taus or any(tau < 1 or tau % 2 == 0 for tau in self.taus):
            raise ValueError(f"taus must be odd, got {self.taus}")
        if self.size < 2 or self.size % 2 or self.frames < 1 or self.layers < 0:
            raise ValueError("sequences must have frames, layers, and a size that is even")
        if not 0 < self.min_speed <= self.max_speed:
            raise ValueError("speeds must be positive, min_speed at most max_speed")
        for name in ("linear", "still", "frozen", "saturation", "compression"):
            if not 0 <= getattr(self, f"{name}_share") <= 1:
                raise ValueError(f"{name}_share must be 0 to 1")
        if powers_of(self.powers) != (1.0,) and self.linear_share == 0:
            raise ValueError("powers are of linear light: linear_share must be above 0")


def powers_of(values: object) -> tuple[float, ...]:
    """Powers of light as they are given, each once.

    Raises:
        ValueError: no list of numbers of 1 to 4.
    """
    powers = values if isinstance(values, list | tuple) else ()
    if not powers or not all(type(x) in (int, float) and 1 <= x <= 4 for x in powers):
        raise ValueError(f"powers must be a list of numbers of 1 to 4, not {values!r}")
    return tuple(dict.fromkeys(round(float(x), 3) for x in powers))


def to_linear(x: Tensor) -> Tensor:
    """The sRGB curve undone (IEC 61966-2-1): encoded 0..1 to linear light 0..1."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def to_encoded(x: Tensor) -> Tensor:
    """Linear light 0..1 to sRGB-encoded 0..1."""
    bright = x.clamp(min=1e-8).pow_(1 / 2.4).mul_(1.055).sub_(0.055)
    return torch.where(x <= 0.0031308, x * 12.92, bright)


def power_mean(light: Tensor, power: float, axis: int) -> Tensor:
    """The mean over an axis in a power of the light, which clips at 1 before it."""
    return light.clamp(0, 1).pow_(power).mean(axis).pow_(1 / power)


def particle_path(rng: np.random.Generator, steps: int, dimensions: int) -> FloatArray:
    """A path with inertia, a pull to the centre and sudden reversals, (steps, dimensions).

    Scaled so that the mean length of a step in the first two dimensions is 1. Camera shake after
    Boracchi and Foi, "Modeling the performance of image restoration from motion blur", 2012.
    """
    inertia = 1.0 - 10 ** rng.uniform(-2.6, -0.9)
    pull = 10 ** rng.uniform(-4.0, -2.0)
    reversal = rng.uniform(0, 0.02)
    position = np.zeros(dimensions)
    velocity = rng.normal(size=dimensions)
    velocity /= np.linalg.norm(velocity) + 1e-9
    path = np.empty((steps, dimensions))
    kick = np.sqrt(1 - inertia**2)
    for i in range(steps):
        if rng.random() < reversal:
            velocity = -velocity + 0.5 * rng.normal(size=dimensions)
        velocity = inertia * velocity + kick * rng.normal(size=dimensions) - pull * position
        position = position + velocity
        path[i] = position
    length = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1).mean()
    scaled: FloatArray = (path - path[steps // 2]) / max(float(length), 1e-9)
    return scaled


def affine(path: FloatArray, size: int, rng: np.random.Generator) -> Tensor:
    """Sampling matrices for :func:`torch.nn.functional.affine_grid`, (steps, 2, 3).

    ``path`` holds x and y in pixels, and two slower dimensions for rotation and zoom.
    """
    angle = path[:, 2] / size * rng.uniform(0.0, 1.2)
    zoom = np.exp(path[:, 3] / size * rng.uniform(0.0, 0.6))
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    m = np.zeros((len(path), 2, 3), dtype=np.float32)
    m[:, 0, 0], m[:, 0, 1], m[:, 0, 2] = cos, -sin, path[:, 0] * 2 / size
    m[:, 1, 0], m[:, 1, 1], m[:, 1, 2] = sin, cos, path[:, 1] * 2 / size
    return torch.from_numpy(m)


def _warp(picture: Tensor, matrices: Tensor, size: int) -> Tensor:
    """View a (C, P, P) picture through ``matrices``: (steps, C, size, size), bilinear."""
    c, p, _ = picture.shape
    m = matrices.clone()
    # The view covers the middle size/p of the picture.
    m *= size / p
    grid = F.affine_grid(m, [len(m), c, size, size], align_corners=False)
    return F.grid_sample(
        picture[None].expand(len(m), -1, -1, -1),
        grid,
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )


def laplacian_variance(grey: NDArray[np.float32]) -> float:
    """Sharpness: variance of the 4-neighbour Laplacian of a grey picture, 0..255."""
    lap = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(lap.var())


def read_photograph(path: Path) -> Image.Image:
    """A photograph as RGB.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's of a file that is damaged
        said = f"this photograph cannot be read: {reason(error)}"
        raise InputError(said, str(path), "take it away") from error


photograph = lru_cache(maxsize=300)(read_photograph)  # the same, each read once


def _draw_patch(
    rng: np.random.Generator, photos: Sequence[Path], size: int, min_sharpness: float
) -> Tensor:
    """A sharp square of a photograph, (3, size, size) in 0..1, reduced by a random factor."""
    best: tuple[float, NDArray[np.uint8]] | None = None
    for _ in range(12):
        image = photograph(photos[int(rng.integers(len(photos)))])
        most = min(image.width, image.height) / size
        factor = float(np.exp(rng.uniform(0.0, np.log(max(min(most, 3.0), 1.0)))))
        side = min(round(size * factor), image.width, image.height)
        x = int(rng.integers(image.width - side + 1))
        y = int(rng.integers(image.height - side + 1))
        box = (x, y, x + side, y + side)
        patch = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box, 2.0))
        grey = patch.astype(np.float32) @ np.asarray([0.299, 0.587, 0.114], dtype=np.float32)
        sharpness = laplacian_variance(grey)
        if best is None or sharpness > best[0]:
            best = (sharpness, patch)
        if sharpness >= min_sharpness:
            break
    assert best is not None
    patch = np.rot90(best[1], int(rng.integers(4)))
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    picture = torch.from_numpy(patch.astype(np.float32).transpose(2, 0, 1) / 255.0)
    if rng.random() < 0.3:  # other contrast and exposure
        gain, gamma = rng.uniform(0.5, 1.2), rng.uniform(0.7, 1.5)
        picture = (picture.clamp(min=1e-4) ** gamma * gain).clamp(0, 1)
    return picture


def _soft_mask(rng: np.random.Generator, size: int) -> Tensor:
    """A blob with a one-pixel soft edge, (1, size, size) in 0..1."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    cx, cy = rng.uniform(0.25, 0.75, 2) * size
    dx, dy = x - cx, y - cy
    angle = np.arctan2(dy, dx)
    radius = np.full_like(angle, rng.uniform(0.06, 0.28) * size)
    radius *= 1 + sum(
        rng.uniform(-0.25, 0.25) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        for k in range(2, 6)
    )
    mask = np.clip(radius - np.hypot(dx, dy * rng.uniform(0.5, 2.0)) + 0.5, 0, 1)
    return torch.from_numpy(mask.astype(np.float32))[None]


def _noise(rng: np.random.Generator, x: Tensor, sigma: float, shot: float) -> Tensor:
    normal = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    return x + normal * torch.sqrt(sigma**2 + shot * x.clamp(0, 1))


def compress(x: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What JPEG with 4:2:0 (libjpeg, quality 1..100) leaves of a picture, (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(buffer).convert("RGB"))


@torch.no_grad()
def make_sequence(
    config: SynthesisConfig, photos: Sequence[Path], seed: int, index: int
) -> NDArray[np.uint8]:
    """Make one sequence.

    Args:
        config: what to draw.
        photos: sharp photographs.
        seed: seed of the whole set.
        index: which sequence of the set.

    Returns:
        (2, frames, size, size, 3) uint8: blurred, then sharp.
    """
    rng = np.random.default_rng([seed, index])
    size, frames = config.size, config.frames
    tau = int(rng.choice(config.taus))
    period = int(rng.integers(tau, 2 * tau))
    steps = period * (frames - 1) + tau
    still = rng.random() < config.still_share
    frozen = not still and rng.random() < config.frozen_share
    speed = 0.0 if still else np.exp(rng.uniform(*np.log([config.min_speed, config.max_speed])))
    linear = rng.random() < config.linear_share
    margin = int(min(160, 24 + speed * 4))
    picture = _draw_patch(rng, photos, size + 2 * margin, config.min_sharpness)
    boost = rng.uniform(1.3, 2.5) if rng.random() < config.saturation_share else 1.0

    def to_light(p: Tensor) -> Tensor:
        p = to_linear(p) if linear else p
        return torch.where(p > 0.75, p * boost, p) if boost > 1 else p

    power = 1.0
    if linear and config.powers != (1.0,):
        power = float(rng.choice(config.powers))

    scale = speed / period
    camera = affine(particle_path(rng, steps, 4) * scale, size, rng)
    background = to_light(picture)
    layers: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(int(rng.integers(config.layers + 1)) if not still else 0):
        own = np.exp(rng.uniform(np.log(0.3), np.log(2.0))) * scale
        texture = _draw_patch(rng, photos, size + 2 * margin, config.min_sharpness)
        mask = _soft_mask(rng, size + 2 * margin)
        matrices = affine(particle_path(rng, steps, 4) * own, size, rng)
        matrices[:, :, 2] += camera[:, :, 2] * float(rng.uniform(0.0, 1.0))
        layers.append((to_light(texture), mask, matrices))

    blurred: list[Tensor] = []
    sharp: list[Tensor] = []
    for n in range(frames):
        window = slice(n * period, n * period + tau)
        if frozen and n:
            blurred.append(blurred[0])
            sharp.append(sharp[0])
            continue
        if still:
            window = slice(n * period, n * period + 1)
        stack = _warp(background, camera[window], size)
        for texture, mask, matrices in layers:
            layer = _warp(torch.cat((texture, mask)), matrices[window], size)
            stack = stack + layer[:, 3:] * (layer[:, :3] - stack)
        # The highlights clip in the camera: after the average, not before it; where a power of them
        # is averaged, before it, as in video that is averaged afterwards.
        mean = stack.mean(0) if power == 1.0 else power_mean(stack, power, 0)
        pair = torch.stack((mean, stack[len(stack) // 2])).clamp(0, 1)
        pair = to_encoded(pair) if linear else pair
        blurred.append(pair[0])
        sharp.append(pair[1])
    x = torch.stack((torch.stack(blurred), torch.stack(sharp)))  # (2, frames, 3, size, size)
    if config.noise > 0:
        sigma = config.noise * float(rng.random()) ** 2 / 255
        x[0] = _noise(rng, x[0], sigma, float(rng.uniform(0, 1e-4)))
    out = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    if rng.random() < config.compression_share:
        quality = int(rng.integers(60, 98))
        out = out.copy()
        for n in range(frames):
            out[0, n] = compress(out[0, n], quality)
    return np.ascontiguousarray(out)
