"""The synthesis of :mod:`training.synthesis` for many sequences at once, on any device.

The same distribution, other draws: what is drawn (photographs, paths, layers, speeds) is drawn on
the host by numpy, everything that touches pixels is torch on the device (on a processor, Pillow
reduces photographs and compresses, and OpenCV moves them). Differences, all of which
``tests/test_batched_synthesis.py`` holds to be small:

- An exposure is integrated at as many points as its length needs (at least three, one every 1.5
  pixels of path), and not at all of its ``tau`` sub-frames where those are closer.
- On a GPU, JPEG is done without its entropy coding, which loses nothing, and not by libjpeg.
- Layers are moved within the box that they can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.synthesis import (
    SynthesisConfig,
    affine,
    compress,
    power_mean,
    read_photograph,
    to_encoded,
    to_linear,
)

FloatArray = NDArray[np.float64]

# Counted up whenever the same settings and seed make other sequences than before, for what is
# measured on them; 2: compression on a processor is libjpeg's;
# 3: what is moved on a processor is OpenCV's.
BATCHED_VERSION = 3

_MARGIN_STEP = 32  # patches come in few sizes, so that many sequences can be moved together
_SPACING = 1.5  # pixels of path between the points of an exposure
_NORMALS = 1 << 22  # noise is taken from as many normal numbers, from a random place on
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class _Plan:
    """What was drawn for a sequence.

    Attributes:
        number: in its batch.
        patch: height and width of its patches, pixels.
        points: at which an exposure is integrated.
        exposures: that are different; the others repeat the last.
        camera, layers: sampling matrices, (exposures * points, 2, 3) each.
        is_linear: averaged in linear light.
        boost: factor on highlights.
        power: of the light that is averaged.
    """

    number: int
    patch: int
    points: int
    exposures: int
    camera: NDArray[np.float32]
    layers: tuple[NDArray[np.float32], ...]
    is_linear: bool
    boost: float
    power: float

    @property
    def group(self) -> tuple[int, int, int]:
        """Sequences that agree in this can be moved together."""
        return self.patch, self.points, self.exposures


@dataclass(frozen=True)
class _Blob:
    """What a foreground layer lets through of its patch: a blob with a one-pixel soft edge.

    Attributes:
        centre: x and y, pixels of the patch.
        radius: mean, pixels.
        waves: number, amplitude and phase of the waves of its edge.
        flatness: factor on its height.
    """

    centre: tuple[float, float]
    radius: float
    waves: tuple[tuple[int, float, float], ...]
    flatness: float

    @classmethod
    def draw(cls, rng: np.random.Generator, patch: int) -> _Blob:
        """A blob of a square patch of so many pixels."""
        cx, cy = rng.uniform(0.25, 0.75, 2) * patch
        radius = rng.uniform(0.06, 0.28) * patch
        waves = tuple((k, rng.uniform(-0.25, 0.25), rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
        return cls((cx, cy), radius, waves, rng.uniform(0.5, 2.0))

    @property
    def reach(self) -> tuple[float, float]:
        """Half its width and half its height at most, pixels."""
        most = self.radius * (1 + sum(abs(a) for _, a, _ in self.waves)) + 2
        return most, most / self.flatness

    def corner(self, side: int, patch: int) -> tuple[int, int]:
        """Left and top of the square of so many pixels that holds it, inside the patch."""
        x, y = (min(max(round(c - side / 2), 0), patch - side) for c in self.centre)
        return x, y

    def mask(self, corner: tuple[int, int], side: int, device: torch.device) -> Tensor:
        """The blob in that square, (1, side, side) in 0..1."""
        axis = torch.arange(side, device=device, dtype=torch.float32)
        x, y = (axis + (first - c) for first, c in zip(corner, self.centre, strict=True))
        dx, dy = x[None], y[:, None]
        angle = torch.atan2(dy, dx)
        edge = 1 + sum(a * torch.cos(k * angle + phase) for k, a, phase in self.waves)
        mask = self.radius * edge - torch.hypot(dx, dy * self.flatness) + 0.5
        return mask.clamp_(0, 1)[None]


@dataclass(frozen=True)
class _Grain:
    """Noise and compression of a group of sequences, as drawn.

    Attributes:
        noise: variance and shot noise, one number a sequence each, and normal numbers (frames, 3,
            size, size) of each sequence; None: no noise.
        qualities: of JPEG, for the sequences that are compressed.
        jpeg: what compresses (n, 3, H, W) at a quality.
    """

    noise: tuple[Tensor, Tensor, list[Tensor]] | None
    qualities: Mapping[int, int]
    jpeg: Callable[[Tensor, int], Tensor]

    def added(self, blurred: Tensor, frames: slice) -> Tensor:
        """Some frames as they come out of the camera.

        Args:
            blurred: (group, frames, 3, size, size), 0..1; one frame stands for all.
            frames: which these are.

        Returns:
            The same, whole numbers 0..255 in float32.
        """
        if self.noise is not None:
            variance, shot, normals = self.noise
            alone = len(normals) == 1
            normal = (
                normals[0][None, frames] if alone else torch.stack([n[frames] for n in normals])
            )
            # One factor at a time: with broadcasts addcmul is ten times as slow on a processor.
            deviation = blurred.mul(shot).add_(variance).sqrt_()
            blurred = (deviation * normal).add_(blurred)
        levels = blurred.clamp(0, 1).mul_(255).round_()
        for i, quality in self.qualities.items():
            levels[i] = self.jpeg(levels[i], quality)
        return levels


class Synthesiser:
    """Draws batches of sequences on a device.

    Args:
        config: what to draw.
        photos: sharp photographs.
        device: where pixels are computed. Photographs are kept there once they were used. On the
            CPU OpenCV is set to one thread, in the whole process.
        seed: of every draw.
    """

    def __init__(
        self, config: SynthesisConfig, photos: Sequence[Path], device: torch.device, seed: int
    ) -> None:
        self._config, self._photos, self._device, self._seed = config, list(photos), device, seed
        self._is_cpu = device.type == "cpu"
        if self._is_cpu:
            cv2.setNumThreads(1)  # pictures are small: threads would cost more than they save
        self._photo = lru_cache(maxsize=len(self._photos))(self._load)
        generator = torch.Generator(device).manual_seed(seed)
        self._normal = torch.randn(_NORMALS, generator=generator, device=device)

    def _load(self, path: Path) -> Image.Image | Tensor:
        # Pillow cuts and reduces without a copy; it holds 4 bytes a pixel.
        image = read_photograph(path)
        return image if self._is_cpu else _pixels(image).to(self._device)

    def read_photographs(self) -> None:
        """Read all photographs now; otherwise each is read when it is drawn for the first time."""
        for path in self._photos:
            self._photo(path)

    @torch.no_grad()
    def batch(self, index: int, count: int) -> Tensor:
        """Make the sequences of a batch: a function of (seed, index, count) and the device's kind.

        Returns:
            (count, 2, frames, size, size, 3) uint8 on the device: blurred, then sharp; planes in
            memory, as they are computed.
        """
        config = self._config
        rng = np.random.default_rng([self._seed, 2, index])
        plans = sorted(self._draw(rng, count), key=lambda p: p.group)
        shape = (count, 2, config.frames, 3, config.size, config.size)
        out = torch.empty(shape, dtype=torch.uint8, device=self._device)
        # Together on a GPU; one by one on a processor, where what fits its cache is fastest.
        for _, members in groupby(plans, lambda p: (p.group, p.number if self._is_cpu else 0)):
            group = list(members)
            numbers = [p.number for p in group]
            alone = len(group) == 1
            into = out[numbers[0]][None] if alone else out.new_empty((len(group), *shape[1:]))
            self._expose(group, rng, into)
            if not alone:
                out[numbers] = into
        return out.movedim(3, -1)

    # ------------------------------------------------------------------ what is drawn

    def _draw(self, rng: np.random.Generator, count: int) -> Iterator[_Plan]:
        config, size = self._config, self._config.size
        tau = rng.choice(config.taus, count)
        period = rng.integers(tau, 2 * tau)
        still = rng.random(count) < config.still_share
        frozen = ~still & (rng.random(count) < config.frozen_share)
        slowest, fastest = np.log(config.min_speed), np.log(config.max_speed)
        speed = np.exp(rng.uniform(slowest, fastest, count))
        speed[still] = 0.0
        linear = rng.random(count) < config.linear_share
        boosted = rng.random(count) < config.saturation_share
        boost = np.where(boosted, rng.uniform(1.3, 2.5, count), 1.0)
        power = np.ones(count)
        if config.powers != (1.0,):
            power[linear] = rng.choice(config.powers, count)[linear]
        layers = np.where(still, 0, rng.integers(config.layers + 1, size=count))
        steps = period * (config.frames - 1) + tau
        paths = particle_paths(rng, np.repeat(steps, config.layers + 1), 4)
        for i in range(count):
            path = paths[i * (config.layers + 1) :]
            scale = speed[i] / period[i]
            # Layers have speeds of their own, and go with the camera by a part of its way.
            own = np.exp(rng.uniform(np.log(0.3), np.log(2.0), layers[i]))
            along = rng.uniform(0.0, 1.0, layers[i])
            fastest_part = max(1.0, *(own + along)) if layers[i] else 1.0
            length = fastest_part * speed[i] * tau[i] / period[i]
            points = int(np.clip(int(length / _SPACING) // 2 * 2 + 1, min(3, tau[i]), tau[i]))
            points, exposures = (1, 1) if still[i] else (points, 1 if frozen[i] else config.frames)
            # The middles of as many equal parts of each exposure.
            within = (np.arange(points) + 0.5) * tau[i] / points - 0.5
            times = (np.arange(exposures)[:, None] * period[i] + within).ravel()
            camera = affine(_at(path[0, : steps[i]], times) * scale, size, rng).numpy()
            moved = []
            for j in range(layers[i]):
                way = _at(path[1 + j, : steps[i]], times) * own[j] * scale
                m = affine(way, size, rng).numpy()
                m[:, :, 2] += camera[:, :, 2] * along[j]
                moved.append(m)
            margin = -(-int(min(160, 24 + speed[i] * 4)) // _MARGIN_STEP) * _MARGIN_STEP
            yield _Plan(
                number=i,
                patch=size + 2 * margin,
                points=points,
                exposures=exposures,
                camera=camera,
                layers=tuple(moved),
                is_linear=bool(linear[i]),
                boost=float(boost[i]),
                power=float(power[i]),
            )

    def _patches(
        self,
        rng: np.random.Generator,
        size: int,
        linear: Sequence[bool],
        boost: Sequence[float],
        whole: int | None = None,
    ) -> Tensor:
        """Sharp squares of photographs, reduced at random, as the light that is averaged.

        Args:
            rng: what draws.
            size: height and width, pixels.
            linear, boost: whether in linear light, and the factor on highlights, of each.
            whole: size of the squares that these are parts of, reduced as those would be.

        Returns:
            (n, 3, size, size) float32, 0..1 but for highlights.
        """
        count = len(linear)
        patches = torch.cat([self._patch(rng, size, whole or size) for _ in range(count)])
        sharpness = laplacian_variances(patches).tolist()
        for i in range(count):
            for _ in range(11):
                if sharpness[i] >= self._config.min_sharpness:
                    break
                other = self._patch(rng, size, whole or size)
                if (found := laplacian_variances(other).item()) > sharpness[i]:
                    sharpness[i], patches[i] = found, other[0]
        # All that happens to a value before it is averaged, for the 256 that there are.
        curves = torch.linspace(0, 1, 256).repeat(count, 1)
        for i in range(count):
            if rng.random() < 0.3:  # other contrast and exposure
                gain, gamma = rng.uniform(0.5, 1.2), rng.uniform(0.7, 1.5)
                curves[i] = (curves[i].clamp(min=1e-4) ** gamma * gain).clamp(0, 1)
            curves[i] = to_linear(curves[i]) if linear[i] else curves[i]
            curves[i] = torch.where(curves[i] > 0.75, curves[i] * boost[i], curves[i])
        curves = curves.to(self._device)
        # index_select is three times as fast as indexing on a processor.
        values = [
            c.index_select(0, p.reshape(-1).int()).view(p.shape)
            for c, p in zip(curves, patches, strict=True)
        ]
        return torch.stack(values)

    def _patch(self, rng: np.random.Generator, size: int, whole: int) -> Tensor:
        photo = self._photo(self._photos[int(rng.integers(len(self._photos)))])
        width, height = photo.size if isinstance(photo, Image.Image) else photo.shape[:1:-1]
        most = min(height, width) / whole
        factor = float(np.exp(rng.uniform(0.0, np.log(max(min(most, 3.0), 1.0)))))
        side = min(round(size * factor), height, width)
        y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        if isinstance(photo, Image.Image):
            small = reduce_on_host(photo.crop((x, y, x + side, y + side)), size)
        else:
            small = reduce_by_matrices(photo[..., y : y + side, x : x + side], size)
        small = torch.rot90(small, int(rng.integers(4)), (2, 3))
        return small.flip(3) if rng.random() < 0.5 else small

    # ------------------------------------------------------------------ what is exposed

    def _expose(self, group: list[_Plan], rng: np.random.Generator, into: Tensor) -> None:
        """What the camera makes of each exposure, and its middle.

        Args:
            group: sequences that can be moved together.
            rng: what draws.
            into: (group, 2, frames, 3, size, size) uint8 to write into, blurred and sharp.
        """
        size, patch, points = self._config.size, group[0].patch, group[0].points
        exposures, count = group[0].exposures, len(group)
        linear, boost = [p.is_linear for p in group], [p.boost for p in group]
        # Of each patch only the square is made that the camera sees.
        moved = np.stack([p.camera for p in group])
        corners, side = _seen(moved, size, patch)
        background = self._patches(rng, side, linear, boost, whole=patch)
        camera = self._views(background, _into_square(moved, corners, size, patch, side))
        # One exposure at a time on a processor, for its cache and the layers' boxes.
        span = 1 if self._is_cpu else exposures
        slots = []
        for j in range(max(len(p.layers) for p in group)):
            members = [i for i, p in enumerate(group) if len(p.layers) > j]
            blobs = [_Blob.draw(rng, patch) for _ in members]
            side = min(math.ceil(2 * max(max(b.reach) for b in blobs)) + 1, patch)
            corners = np.asarray([b.corner(side, patch) for b in blobs])
            own = [linear[i] for i in members], [boost[i] for i in members]
            texture = self._patches(rng, side, *own, whole=patch)
            masks = [b.mask(c, side, self._device) for b, c in zip(blobs, corners, strict=True)]
            picture = torch.cat((texture, torch.stack(masks)), dim=1)
            moved = np.stack([group[i].layers[j] for i in members])
            views = self._views(picture, _into_square(moved, corners, size, patch, side))
            boxes = _boxes(moved, blobs, size, patch, span * points)
            who = None if len(members) == count else torch.tensor(members)
            slots.append((who, views, boxes))

        grain = self._grain(count, rng)
        for first in range(0, exposures, span):
            now = slice(first * points, (first + span) * points)
            stack = camera(now, (0, 0, size, size))
            for who, views, boxes in slots:
                box = boxes[first // span]
                if box is None:
                    continue
                y0, x0, y1, x1 = box
                layer = views(now, box)
                under = stack[:, :, :, y0:y1, x0:x1]
                if who is None:
                    under.lerp_(layer[:, :3], layer[:, 3:])
                else:
                    under[who] = torch.lerp(under[who], layer[:, :3], layer[:, 3:])
            stack = stack.unflatten(2, (span, points))  # type: ignore[no-untyped-call]
            # The highlights clip in the camera: after the average, not before it; where a power of
            # them is averaged, before it, as in video that is averaged afterwards.
            means = [
                light.mean(2) if plan.power == 1.0 else power_mean(light, plan.power, 2)
                for light, plan in zip(stack, group, strict=True)
            ]
            mean = torch.stack(means)
            pair = torch.stack((mean, stack[:, :, :, points // 2]), 1).clamp_(0, 1)
            for i in np.flatnonzero(linear):
                pair[i] = to_encoded(pair[i])
            pair = pair.transpose(2, 3)
            # One exposure for all frames, if that is all there is.
            frames = slice(None) if exposures == 1 else slice(first, first + span)
            into[:, 0, frames] = grain.added(pair[:, 0], frames)
            into[:, 1, frames] = pair[:, 1].mul(255).round_()

    def _grain(self, count: int, rng: np.random.Generator) -> _Grain:
        """Draw noise and compression for so many sequences."""
        config = self._config
        shape = (config.frames, 3, config.size, config.size)
        noise = None
        if config.noise > 0:
            sigma = config.noise * rng.random(count) ** 2 / 255
            shot = rng.uniform(0, 1e-4, count)
            size = math.prod(shape)
            starts = rng.integers(_NORMALS - size % _NORMALS, size=count)
            normal = [self._normals(int(start), size).view(shape) for start in starts]
            noise = self._column(sigma**2), self._column(shot), normal
        qualities = {
            int(i): int(rng.integers(60, 98))
            for i in np.flatnonzero(rng.random(count) < config.compression_share)
        }
        return _Grain(noise, qualities, jpeg_on_host if self._is_cpu else jpeg)

    def _views(self, pictures: Tensor, matrices: NDArray[np.float32]) -> Views:
        looked = views_on_host if self._is_cpu else views_by_grids
        return looked(pictures, matrices, self._config.size)

    def _normals(self, start: int, count: int) -> Tensor:
        """Normal numbers from a place of the table on, and from its beginning again."""
        times = -(-(start + count) // _NORMALS)
        whole = self._normal if times == 1 else self._normal.repeat(times)
        return whole[start : start + count]

    def _column(self, x: Sequence[float] | NDArray[np.float64]) -> Tensor:
        """One number a sequence, to go with (sequences, frames, 3, height, width)."""
        return torch.tensor(x, dtype=torch.float32, device=self._device).view(-1, 1, 1, 1, 1)


def _pixels(image: Image.Image) -> Tensor:
    """An RGB picture as (1, 3, H, W) uint8, channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def reduce_on_host(square: Image.Image, size: int) -> Tensor:
    """Reduce a picture by Pillow's Lanczos filter.

    Args:
        square: RGB, n x n.
        size: m, at most n, pixels.

    Returns:
        (1, 3, m, m) uint8.
    """
    return _pixels(square.resize((size, size), Image.Resampling.LANCZOS))


def reduce_by_matrices(square: Tensor, size: int) -> Tensor:
    """The same of (1, 3, n, n) uint8 on any device, as two products of matrices."""
    weights = _lanczos(square.shape[-1], size).to(square.device)
    across = (square.float() @ weights.T).round_().clamp_(0, 255)  # Pillow rounds in between
    return (weights @ across).round_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _lanczos(count: int, size: int) -> Tensor:
    """Weights of ``count`` samples in each of ``size``, (size, count); three lobes."""
    scale = max(count / size, 1.0)
    centres = (torch.arange(size)[:, None] + 0.5) * (count / size)
    distance = (torch.arange(count) + 0.5 - centres) / scale
    weights = torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)
    return weights / weights.sum(1, keepdim=True)


def particle_paths(
    rng: np.random.Generator, steps: NDArray[np.int64], dimensions: int
) -> FloatArray:
    """Many paths as :func:`training.synthesis.particle_path` draws one.

    Args:
        rng: what draws.
        steps: of each path.
        dimensions: of the space.

    Returns:
        (paths, longest, dimensions); of each path the first ``steps`` are its own.
    """
    count, longest = len(steps), int(steps.max())
    inertia = 1.0 - 10 ** rng.uniform(-2.6, -0.9, (count, 1))
    pull = 10 ** rng.uniform(-4.0, -2.0, (count, 1))
    reversal = rng.uniform(0, 0.02, count)
    kick = np.sqrt(1 - inertia**2)
    position = np.zeros((count, dimensions))
    velocity = rng.normal(size=(count, dimensions))
    velocity /= np.linalg.norm(velocity, axis=1, keepdims=True) + 1e-9
    turns = rng.random((longest, count)) < reversal
    normals = rng.normal(size=(longest, count, dimensions))
    path = np.empty((longest, count, dimensions))
    for i in range(longest):
        if turns[i].any():
            n = int(turns[i].sum())
            velocity[turns[i]] = -velocity[turns[i]] + 0.5 * rng.normal(size=(n, dimensions))
        velocity = inertia * velocity + kick * normals[i] - pull * position
        position = position + velocity
        path[i] = position
    moved = np.linalg.norm(np.diff(path[:, :, :2], axis=0), axis=2)
    counted = np.arange(1, longest)[:, None] < steps
    length = (moved * counted).sum(0) / np.maximum(counted.sum(0), 1)
    middle = path[steps // 2, np.arange(count)]
    scaled: FloatArray = (path - middle) / np.maximum(length, 1e-9)[:, None]
    return scaled.transpose(1, 0, 2)


def _at(path: FloatArray, times: FloatArray) -> FloatArray:
    """A path between its steps, (times, dimensions)."""
    before = np.clip(np.floor(times).astype(int), 0, max(len(path) - 2, 0))
    after = np.minimum(before + 1, len(path) - 1)
    weight = (times - before)[:, None]
    found: FloatArray = path[before] * (1 - weight) + path[after] * weight
    return found


def _seen(matrices: NDArray[np.float32], size: int, patch: int) -> tuple[NDArray[np.int64], int]:
    """Squares of patches that hold all that views see of them.

    Args:
        matrices: (n, points, 2, 3), from the view to the patch, both -1..1 at the view's size.
        size, patch: of the view and of the patch, pixels.

    Returns:
        Left and top of each square inside its patch, (n, 2), and the side of all, pixels.
    """
    reach = np.abs(matrices[..., :2]).sum(-1)  # half a view's extent, (n, points, 2)
    middle = matrices[..., 2]
    # Half a pixel on each side for interpolation, half for where a pixel's middle is.
    first = ((middle - reach).min(1) * size + patch) / 2 - 1
    last = ((middle + reach).max(1) * size + patch) / 2 + 1
    side = min(math.ceil((last - first).max()) + 1, patch)
    return np.clip(np.floor(first).astype(np.int64), 0, patch - side), side


def _into_square(
    matrices: NDArray[np.float32],
    corners: NDArray[np.int64],
    size: int,
    patch: int,
    side: int,
) -> NDArray[np.float32]:
    """Matrices from the view to the patch as matrices from the view to a square of the patch.

    Args:
        matrices: (n, points, 2, 3), from and to -1..1 at the view's size.
        corners: left and top of the squares in their patches, (n, 2).
        size, patch, side: of view, patch and square, pixels.
    """
    into: NDArray[np.float32] = matrices * np.float32(size / side)
    into[..., 2] += (patch - 2 * corners[:, None]) / side - 1
    return into


Box = tuple[int, int, int, int]


def _boxes(
    matrices: NDArray[np.float32], blobs: Sequence[_Blob], size: int, patch: int, span: int
) -> list[Box | None]:
    """Where blobs can be seen at any of so many points in a row, for each such row.

    Args:
        matrices: (blobs, points, 2, 3), from the view to the patch, both -1..1 at the view's size.
        blobs: in their patches.
        size, patch: of the view and of the patch, pixels.
        span: points of a row.

    Returns:
        top, left, bottom, right, pixels of the view; None: nowhere.
    """
    rows = []
    for m, blob in zip(matrices.astype(np.float64), blobs, strict=True):
        (cx, cy), (rx, ry) = blob.centre, blob.reach
        x = np.asarray([cx - rx, cx + rx, cx - rx, cx + rx])
        y = np.asarray([cy - ry, cy - ry, cy + ry, cy + ry])
        at = (np.stack((x, y)) + 0.5 - patch / 2) * 2 / size  # in units of half a view
        seen = np.linalg.solve(m[:, :, :2], at - m[:, :, 2:])
        rows.append((((seen + 1) * size - 1) / 2).reshape(-1, span, 2, 4))
    both = np.concatenate(rows, axis=1)
    low = np.clip(np.floor(both.min((1, 3))), 0, size).astype(int).tolist()
    high = np.clip(np.ceil(both.max((1, 3))) + 1, 0, size).astype(int).tolist()
    return [
        None if x1 <= x0 or y1 <= y0 else (y0, x0, y1, x1)
        for (x0, y0), (x1, y1) in zip(low, high, strict=True)
    ]


# Pictures seen at some points of their paths (of all, a slice), in a box of the view.
Views = Callable[[slice, Box], Tensor]


def views_on_host(pictures: Tensor, matrices: NDArray[np.float32], size: int) -> Views:
    """What a moving camera sees of a picture, by OpenCV: half the time of :func:`views_by_grids`.

    Args:
        pictures: (1, C, P, P) float32 on the host, C up to 4.
        matrices: (1, points, 2, 3), from the view to the picture, both -1..1.
        size: of the view, pixels.

    Returns:
        what gives (1, C, points, h, w), bilinear; beyond its ends a picture stays as it is there.

    Raises:
        ValueError: more than one picture, or more than 4 channels.
    """
    (one,), (to_picture,) = pictures, matrices
    channels, side = one.shape[:2]
    if channels > 4:
        raise ValueError(f"a picture of {channels} channels; up to 4 can be moved")
    # It moves four channels twice as fast as three.
    picture = F.pad(one.permute(1, 2, 0), (0, 4 - channels)).contiguous().numpy()
    to_pixels = to_picture.astype(np.float64) * (side / size)
    to_pixels[..., 2] *= size / 2
    to_pixels[..., 2] += to_pixels[..., :2].sum(-1) * (1 - size) / 2 + (side - 1) / 2

    def view(points: slice, box: Box) -> Tensor:
        y0, x0, y1, x1 = box
        moved = to_pixels[points].copy()
        moved[..., 2] += moved[..., :2] @ (x0, y0)
        seen = np.empty((len(moved), y1 - y0, x1 - x0, 4), np.float32)
        for m, into in zip(moved, seen, strict=True):
            cv2.warpAffine(
                picture,
                m,
                (x1 - x0, y1 - y0),
                dst=into,
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        return torch.from_numpy(seen).permute(3, 0, 1, 2)[None, :channels].contiguous()

    return view


def views_by_grids(pictures: Tensor, matrices: NDArray[np.float32], size: int) -> Views:
    """What moving cameras see of pictures, on any device.

    Args:
        pictures: (n, C, P, P) float32.
        matrices: (n, points, 2, 3), from the views to their pictures, both -1..1.
        size: of the views, pixels.

    Returns:
        what gives (n, C, points, h, w), bilinear; beyond its ends a picture stays as it is there.
    """
    m = torch.from_numpy(np.ascontiguousarray(matrices)).to(pictures.device)
    axis = ((torch.arange(size, device=m.device, dtype=torch.float32) * 2 + 1) / size - 1)[:, None]
    a, b, c = m.unsqueeze(2).unbind(-1)  # (n, points, 1, 2) each
    # Where a view looks at is the sum of what a column and what a row adds, x + iy each.
    columns, rows = torch.view_as_complex(a * axis + c), torch.view_as_complex(b * axis)

    def view(points: slice, box: Box) -> Tensor:
        y0, x0, y1, x1 = box
        grid = torch.view_as_real(columns[:, points, None, x0:x1] + rows[:, points, y0:y1, None])
        seen = F.grid_sample(
            pictures,
            grid.flatten(1, 2),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return seen.view(*seen.shape[:2], -1, y1 - y0, x1 - x0)

    return view


def laplacian_variances(pictures: Tensor) -> Tensor:
    """Variances of the Laplacian of (n, 3, H, W) pictures of 0..255, (n,)."""
    weights = torch.tensor(_LUMA, device=pictures.device)
    grey = torch.einsum("nchw,c->nhw", pictures.float(), weights)
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * middle).var((1, 2), correction=0)


# ---------------------------------------------------------------------------------------- JPEG

# ITU-T T.81, tables K.1 and K.2.
_LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""


@lru_cache(maxsize=256)
def _tables(quality: int, device: torch.device) -> tuple[Tensor, ...]:
    """Quantisation tables of a quality as libjpeg scales them, and the matrix of the DCT."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    tables = []
    for text in (_LUMINANCE, _CHROMINANCE):
        base = torch.tensor([float(n) for n in text.split()]).view(8, 8)
        tables.append(((base * scale + 50) / 100).floor().clamp(1, 255).to(device))
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)
    dct = torch.cos((2 * n + 1) * k * torch.pi / 16) / 2
    dct[0] *= 0.5**0.5
    return (*tables, dct.to(device))


def _quantise(plane: Tensor, table: Tensor, dct: Tensor) -> Tensor:
    """A plane (n, H, W) of -128..127 through 8x8 blocks; the ends are repeated to whole blocks."""
    height, width = plane.shape[-2:]
    x = F.pad(plane[:, None], (0, -width % 8, 0, -height % 8), mode="replicate")
    n, _, h, w = x.shape
    blocks = x.view(n, h // 8, 8, w // 8, 8).transpose(2, 3)
    coefficients = torch.round(dct @ blocks @ dct.T / table) * table
    back = (dct.T @ coefficients @ dct).transpose(2, 3).reshape(n, h, w)
    return back[:, :height, :width]


def jpeg_on_host(pictures: Tensor, quality: int) -> Tensor:
    """What JPEG with 4:2:0 leaves of pictures, by Pillow, which takes half of :func:`jpeg`'s time.

    Args:
        pictures: (n, 3, H, W), whole numbers 0..255 in float32, on the host, H and W even.
        quality: 1..100, as libjpeg counts.

    Returns:
        the same, decoded again.
    """
    pixels = pictures.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    compressed = np.stack([compress(p, quality) for p in pixels])
    return torch.from_numpy(compressed).permute(0, 3, 1, 2).float()


def jpeg(pictures: Tensor, quality: int) -> Tensor:
    """The same on any device."""
    luminance, chrominance, dct = _tables(quality, pictures.device)
    red, green, blue = pictures.unbind(1)
    y = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).round_()
    chroma = torch.stack(((blue - y) * 0.5 / (1 - _LUMA[2]), (red - y) * 0.5 / (1 - _LUMA[0])), 1)
    half = F.avg_pool2d(chroma.round_(), 2).round_()
    y = _quantise(y - 128, luminance, dct).add_(128).round_().clamp_(0, 255)
    small = _quantise(half.flatten(0, 1), chrominance, dct).round_().clamp_(-128, 127)
    # libjpeg's "fancy" upsampling is linear interpolation between the middles of pixels.
    full = F.interpolate(small[:, None], scale_factor=2, mode="bilinear", align_corners=False)
    cb, cr = full.view(*chroma.shape).unbind(1)
    kr, kg, kb = _LUMA
    red = y + 2 * (1 - kr) * cr
    blue = y + 2 * (1 - kb) * cb
    green = y - (2 * (1 - kr) * kr / kg) * cr - (2 * (1 - kb) * kb / kg) * cb
    return torch.stack((red, green, blue), 1).round_().clamp_(0, 255)
