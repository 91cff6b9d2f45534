from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import skimage.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vs_deblur.errors import InputError
from vs_deblur.metrics import Pulse, correction_change, mean, psnr, ssim, temporal_psnr

Image = NDArray[np.uint8]


def noise(seed: int, height: int, width: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def near(image: Image, seed: int, amount: int = 8) -> Image:
    change = np.random.default_rng(seed).integers(-amount, amount + 1, image.shape)
    return (image.astype(np.int64) + change).clip(0, 255).astype(np.uint8)


def smooth(height: int, width: int) -> Image:
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)]
    return np.stack(planes, axis=-1).astype(np.uint8)


# scikit-image has no annotations.
structural_similarity: Any = skimage.metrics.structural_similarity
peak_signal_noise_ratio: Any = skimage.metrics.peak_signal_noise_ratio


def reference_ssim(a: Image, b: Image) -> float:
    return float(
        structural_similarity(
            a / 255.0,
            b / 255.0,
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(11, 50),
    width=st.integers(11, 50),
    seed=st.integers(0, 2**31),
    amount=st.integers(0, 60),
)
def test_ssim_is_scikit_images(height: int, width: int, seed: int, amount: int) -> None:
    for a in (noise(seed, height, width), smooth(height, width)):
        b = near(a, seed + 1, amount)
        assert ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-6)


def test_ssim_of_flat_frames() -> None:
    """Variances of nothing but rounding: the constants decide."""
    a = np.full((16, 20, 3), 77, np.uint8)
    b = np.full((16, 20, 3), 80, np.uint8)
    assert ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-12)


def test_ssim_is_symmetric_and_below_one() -> None:
    a = smooth(24, 30)
    b = near(a, 3)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
    assert ssim(a, b) < 0.999


@pytest.mark.parametrize("size", [(10, 40), (40, 10), (1, 1)])
def test_ssim_of_frames_smaller_than_the_window_is_undefined(size: tuple[int, int]) -> None:
    assert math.isnan(ssim(noise(0, *size), noise(1, *size)))


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_psnr_is_scikit_images(height: int, width: int, seed: int) -> None:
    a = noise(seed, height, width)
    b = near(a, seed + 1)
    if (a == b).all():
        assert psnr(a, b) == math.inf
    else:
        assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)


def test_psnr_of_known_differences() -> None:
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert psnr(black, white) == 0.0
    assert psnr(white, black) == 0.0  # differences do not wrap around
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255))


def test_psnr_of_a_large_frame_does_not_overflow() -> None:
    black = np.zeros((4000, 4000, 3), np.uint8)
    assert psnr(black, np.full_like(black, 255)) == 0.0


def test_temporal_psnr_sees_flicker_only() -> None:
    sharp = [smooth(20, 20), smooth(20, 20)[::-1].copy()]
    brighter = [np.minimum(s, 245) + np.uint8(10) for s in sharp]
    capped = [np.minimum(s, 245) for s in sharp]
    # A constant error is no flicker.
    assert temporal_psnr(brighter[1], brighter[0], capped[1], capped[0]) == math.inf
    # An error of 10 levels in one of the two frames is: a change of 10 that is not there.
    flicker = temporal_psnr(brighter[1], capped[0], capped[1], capped[0])
    assert flicker == pytest.approx(20 * math.log10(255 / 10))


def test_temporal_psnr_of_opposite_changes() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert temporal_psnr(black, white, white, black) == pytest.approx(-20 * math.log10(2))


def test_correction_change() -> None:
    blurred = [noise(i, 6, 6) // 2 for i in range(2)]
    result = [blurred[0] + np.uint8(5), blurred[1] + np.uint8(3)]
    assert correction_change(result[1], blurred[1], result[0], blurred[0]) == 2.0
    assert correction_change(blurred[1], blurred[1], blurred[0], blurred[0]) == 0.0


def test_pulse_compares_borders_with_the_rest() -> None:
    pulse = Pulse()
    assert pulse.ratio is None
    for change in (1.0, 2.0, 3.0):
        pulse.add(change, False)
    assert pulse.ratio is None
    pulse.add(4.0, True)
    pulse.add(8.0, True)
    assert pulse.ratio == 3.0


def test_pulse_of_a_clip_that_never_changes_is_undefined() -> None:
    pulse = Pulse()
    pulse.add(0.0, False)
    pulse.add(0.0, True)
    assert pulse.ratio is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 6.0], 3.0),
        ([1.0, math.inf, 3.0], 2.0),
        ([1.0, None, math.nan, 3.0], 2.0),
        ([math.inf], None),
        ([], None),
    ],
)
def test_mean_leaves_out_what_is_not_finite(
    values: list[float | None], expected: float | None
) -> None:
    assert mean(values) == expected


BAD: list[tuple[Any, Any]] = [
    (noise(0, 8, 8), noise(0, 8, 9)),
    (noise(0, 8, 8), noise(0, 8, 8).astype(np.float32)),
    (noise(0, 8, 8)[..., 0], noise(0, 8, 8)[..., 0]),
    (noise(0, 8, 8)[..., :2], noise(0, 8, 8)[..., :2]),
]


@pytest.mark.parametrize("pair", BAD)
def test_frames_that_cannot_be_compared(pair: tuple[Any, Any]) -> None:
    a, b = pair
    with pytest.raises(InputError, match="frames"):
        psnr(a, b)
    with pytest.raises(InputError, match="frames"):
        ssim(a, b)
    with pytest.raises(InputError, match="frames"):
        temporal_psnr(a, a, b, b)
    with pytest.raises(InputError, match="frames"):
        correction_change(a, b, a, b)
