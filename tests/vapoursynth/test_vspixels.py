"""Pixel formats from frame properties."""

from __future__ import annotations

from typing import Any

import pytest

from vs_deblur.errors import InputError
from vs_deblur.vspixels import frame_format, full_range, guesses
from vs_deblur_kernels.pixels import PixelFormat


def _yuv(height: int = 480, **props: Any) -> PixelFormat:
    return frame_format("YUV", 8, False, (1, 1), height, props)


@pytest.mark.parametrize(
    ("number", "name"), [(1, "709"), (4, "fcc"), (5, "601"), (6, "601"), (7, "240m"), (9, "2020")]
)
def test_matrices(number: int, name: str) -> None:
    assert _yuv(_Matrix=number).matrix == name


@pytest.mark.parametrize("props", [{}, {"_Matrix": 2}])
def test_an_unsaid_matrix_is_guessed_by_height(props: dict[str, int]) -> None:
    assert _yuv(719, **props).matrix == "601"
    assert _yuv(720, **props).matrix == "709"
    assert guesses(_yuv(720, **props), props) == "matrix BT.709 and limited range"


@pytest.mark.parametrize("number", [0, 3, 8, 10, 11, 12, 13, 14, 99])
def test_other_matrices_are_refused(number: int) -> None:
    with pytest.raises(InputError, match=rf"_Matrix {number}\).*convert to RGB"):
        _yuv(_Matrix=number)
    # Grey and RGB hang on no matrix.
    assert frame_format("GRAY", 8, False, (0, 0), 480, {"_Matrix": number}).matrix == "601"
    assert frame_format("RGB", 8, False, (0, 0), 480, {"_Matrix": number}).family == "rgb"


@pytest.mark.parametrize(
    ("props", "full"),
    [
        ({"_Range": 1}, True),
        ({"_Range": 0}, False),
        ({"_ColorRange": 0}, True),
        ({"_ColorRange": 1}, False),
        ({"_Range": 0, "_ColorRange": 0}, False),
        ({}, None),
    ],
)
def test_range(props: dict[str, int], full: bool | None) -> None:
    assert full_range(props) is full
    assert _yuv(**props).full_range is bool(full)
    assert frame_format("GRAY", 8, False, (0, 0), 480, props).full_range is bool(full)
    # RGB is full range unless it says otherwise.
    assert frame_format("RGB", 8, False, (0, 0), 480, props).full_range is (full is not False)


def test_chroma_location() -> None:
    names = [_yuv(_ChromaLocation=i).chroma_location for i in range(6)]
    assert names == ["left", "center", "topleft", "top", "bottomleft", "bottom"]
    assert _yuv().chroma_location == "left"
    with pytest.raises(InputError, match="_ChromaLocation 6"):
        _yuv(_ChromaLocation=6)


def test_nothing_is_guessed_that_is_said_or_does_not_matter() -> None:
    props = {"_Matrix": 1, "_Range": 0}
    assert guesses(_yuv(**props), props) is None
    assert guesses(frame_format("RGB", 8, False, (0, 0), 480, {}), {}) is None
    floats = frame_format("YUV", 32, True, (0, 0), 480, {"_Matrix": 1})
    assert guesses(floats, {"_Matrix": 1}) is None


def test_other_families_are_refused() -> None:
    with pytest.raises(InputError, match="not UNDEFINED"):
        frame_format("UNDEFINED", 8, False, (0, 0), 480, {})
