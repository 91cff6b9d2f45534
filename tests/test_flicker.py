"""Flicker along the motion, on clips whose right answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vs_deblur.errors import InputError
from vs_deblur.flicker import TOLERANCE, Flicker, Motion, motion_between, warp

Frames = list[NDArray[Any]]

HEIGHT, WIDTH = 48, 64


def texture(y: float, x: float, channels: int = 3, height: int = HEIGHT) -> NDArray[np.float64]:
    """A smooth pattern seen from a place, (height, WIDTH, channels), -1..1."""
    down, right = np.mgrid[:height, :WIDTH]
    planes = [np.sin((right + x) / 5 + c) * np.cos((down + y) / 4 - c) for c in range(channels)]
    return np.stack(planes, axis=-1)


def moving(count: int, y: float, x: float) -> Frames:
    """Guides: the pattern seen by a camera that goes down and right by (y, x) a frame."""
    return [(128 + 90 * texture(n * y, n * x)).round().astype(np.uint8) for n in range(count)]


def constant(y: float, x: float) -> NDArray[np.float64]:
    """The flow of a camera that moves by (y, x) a frame: what is here was further there."""
    return np.broadcast_to(np.array((y, x))[:, None, None], (2, HEIGHT, WIDTH)).copy()


def motion_of(guides: Frames, y: float = 0, x: float = 0, tolerance: float = TOLERANCE) -> Motion:
    """Between the first two guides, by the flow of a camera that moves by (y, x)."""
    return motion_between(guides[1], guides[0], lambda *_: constant(y, x), tolerance)


def flicker_of(residuals: Sequence[NDArray[Any]], y: float, x: float) -> Flicker:
    guides = moving(len(residuals), y, x)
    found = Flicker()
    for n, residual in enumerate(residuals):
        motion = None
        if n:
            motion = motion_of(guides[n - 1 :], y, x)
            assert motion.share > 0.7
        found.add(residual, motion)
    return found


@pytest.mark.parametrize(("y", "x"), [(0, 0), (2, 3), (-3, 1)])
def test_a_residual_that_moves_along_does_not_flicker(y: int, x: int) -> None:
    rng = np.random.default_rng(1)
    wide = rng.normal(0, 20, (HEIGHT + 40, WIDTH + 40, 3))
    top = [20 + n * y for n in range(6)]
    left = [20 + n * x for n in range(6)]
    residuals = [wide[a : a + HEIGHT, b : b + WIDTH] for a, b in zip(top, left, strict=True)]
    found = flicker_of(residuals, y, x)
    assert found.value == pytest.approx(0.0, abs=1e-9)
    assert found.residual == pytest.approx(20, rel=0.05)
    # The same residual that stays where it is on the screen does.
    still = flicker_of([residuals[0]] * 6, y, x).value
    assert still is not None
    assert (still > 25) == ((y, x) != (0, 0))


def test_motion_between_pixels_is_followed() -> None:
    residuals = [20 * texture(n * 0.4, n * 1.7) for n in range(6)]
    found = flicker_of(residuals, 0.4, 1.7).value
    assert found is not None
    assert 0 < found < 0.2


@pytest.mark.parametrize(("y", "x"), [(0, 0), (1, -2)])
def test_noise_of_every_frames_own_flickers_by_the_square_root_of_two(y: int, x: int) -> None:
    rng = np.random.default_rng(2)
    residuals = [rng.normal(0, 5, (HEIGHT, WIDTH, 3)) for _ in range(10)]
    found = flicker_of(residuals, y, x)
    assert found.value == pytest.approx(5 * math.sqrt(2), rel=0.02)
    assert np.mean(found.changes) == pytest.approx(10 / math.sqrt(math.pi), rel=0.02)
    assert len(found.changes) == 9
    assert found.pumping == pytest.approx(0, abs=0.15)


def test_brightness_that_pumps() -> None:
    residuals = [np.full((HEIGHT, WIDTH, 3), 7.0 + (-1) ** n * 3) for n in range(8)]
    found = flicker_of(residuals, 1, 1)
    assert found.pumping == pytest.approx(3)
    assert found.value == pytest.approx(6)
    assert found.changes == pytest.approx([6.0] * 7)


def test_runs_do_not_pump_against_each_other() -> None:
    found = Flicker()
    still = motion_of(moving(2, 0, 0))
    for level in (0.0, 50.0):
        found.add(np.full((HEIGHT, WIDTH, 3), level), None)
        found.add(np.full((HEIGHT, WIDTH, 3), level + 2), still)
    assert found.pumping == pytest.approx(1)
    assert found.value == pytest.approx(2)


def test_what_the_flow_does_not_explain_is_left_out() -> None:
    guides = moving(2, 0, 0)
    guides[1][10:20, 10:30] = 255 - guides[1][10:20, 10:30]  # something appears
    motion = motion_of(guides)
    inside = (HEIGHT - 4) * (WIDTH - 4) / (HEIGHT * WIDTH)  # two pixels at each border
    assert inside - 0.09 < motion.share < inside
    residuals = np.zeros((2, HEIGHT, WIDTH, 3))
    residuals[1][~motion.valid] = 99
    found = Flicker()
    found.add(residuals[0], None)
    found.add(residuals[1], motion)
    assert found.value == 0
    residuals[1][motion.valid] = 4
    found = Flicker()
    found.add(residuals[0], None)
    found.add(residuals[1], motion)
    assert found.value == pytest.approx(4)


def test_what_was_outside_is_left_out() -> None:
    motion = motion_of(moving(2, 0, 0), 0, 9, tolerance=1e9)
    # Column WIDTH - 1 was at WIDTH + 8; two pixels at each border are not trusted.
    assert motion.valid[HEIGHT // 2].nonzero()[0].tolist() == list(range(WIDTH - 11))
    assert motion.valid[:, 0].nonzero()[0].tolist() == list(range(2, HEIGHT - 2))


def test_the_error_of_the_motion_is_that_of_the_guide() -> None:
    guides = [np.full((HEIGHT, WIDTH, 3), v, np.uint8) for v in (100, 103)]
    motion = motion_of(guides)
    assert motion.error == pytest.approx(3)
    motion = motion_of(guides, tolerance=2)
    assert math.isnan(motion.error)
    assert motion.share == 0


def test_clips_that_tell_nothing() -> None:
    found = Flicker()
    assert found.value is found.pumping is found.residual is None
    found.add(np.ones((HEIGHT, WIDTH, 3)), None)
    assert found.value is found.pumping is None
    assert found.residual == 1
    nowhere = Motion(constant(0, 0), np.zeros((HEIGHT, WIDTH), bool), math.nan)
    found.add(np.ones((HEIGHT, WIDTH, 3)), nowhere)
    assert found.value is None
    assert math.isnan(found.changes[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 4)])
def test_tiny_frames(size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), 9, np.uint8)
    motion = motion_between(frame, frame, lambda *_: np.zeros((2, *size)))
    assert np.array_equal(warp(frame, motion.flow), frame)
    found = Flicker()
    found.add(np.zeros((*size, 3)), None)
    found.add(np.zeros((*size, 3)), motion)
    assert found.value in (None, 0.0)


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(InputError, match="does not belong"):
        warp(np.zeros((4, 5, 3)), np.zeros((2, 5, 4)))
    with pytest.raises(InputError, match="different sizes"):
        motion_between(
            np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4, 3), np.uint8), lambda *_: constant(0, 0)
        )
    with pytest.raises(InputError, match="first frame"):
        Flicker().add(
            np.zeros((HEIGHT, WIDTH, 3)),
            Motion(constant(0, 0), np.ones((HEIGHT, WIDTH), bool), 0.0),
        )
