"""FFmpeg's pixel formats as planes, against FFmpeg's own unpacking."""

from __future__ import annotations

import numpy as np
import pytest
from av.video.format import names

from tests import films
from vs_deblur.avpixels import frame_of, layout, names_for, planes_of
from vs_deblur.errors import InputError
from vs_deblur_kernels.pixels import PixelFormat


def _supported() -> list[str]:
    found = []
    for name in sorted(names):
        try:
            layout(name)
        except InputError:
            continue
        found.append(name)
    return found


SUPPORTED = _supported()


def test_no_format_of_the_usual_kinds_is_missing() -> None:
    usual = """yuv420p yuv422p yuv444p yuv440p yuv411p yuv410p yuvj420p yuvj422p yuvj444p
        yuv420p9le yuv420p10le yuv422p10le yuv444p12le yuv420p14le yuv444p16be nv12 nv21 nv16 nv24
        p010le p016le p210le yuyv422 uyvy422 gray gray10le gray16be gbrp gbrp10le gbrp16le rgb24
        bgr24 rgb48le bgr48be rgba bgra 0rgb bgr0 gbrpf32le grayf32le yuva420p yuva444p10le ya8"""
    assert set(usual.split()) <= set(SUPPORTED)


@pytest.mark.parametrize("size", [(48, 64), (17, 19), (1, 1)])
def test_samples_come_back(size: tuple[int, int]) -> None:
    for name in SUPPORTED:
        given = films.planes(name, *size, 0)
        got = planes_of(frame_of(given, name))
        for a, b in zip(given, got, strict=True):
            assert a.dtype == b.dtype
            assert b.flags.owndata
            np.testing.assert_array_equal(a, b, err_msg=name)


# Pairs between which FFmpeg only moves samples.
@pytest.mark.parametrize(
    ("packed", "planar"),
    [
        ("nv12", "yuv420p"),
        ("nv21", "yuv420p"),
        ("nv16", "yuv422p"),
        ("nv24", "yuv444p"),
        ("yuyv422", "yuv422p"),
        ("uyvy422", "yuv422p"),
        ("p010le", "yuv420p10le"),
        ("rgb24", "gbrp"),
        ("bgr24", "gbrp"),
        ("bgra", "gbrp"),
        ("argb", "gbrp"),
        ("rgb48le", "gbrp16le"),
        ("rgb48be", "gbrp16le"),
        ("yuv420p10be", "yuv420p10le"),
        ("gray16be", "gray16le"),
    ],
)
def test_ffmpeg_agrees_where_samples_lie(packed: str, planar: str) -> None:
    given = films.planes(packed, 48, 64, 0)
    moved = frame_of(given, packed).reformat(format=planar)
    for a, b in zip(given, planes_of(moved), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["pal8", "bayer_rggb8", "monow", "rgb565le", "rgb8", "xyz12le"])
def test_others_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=name):
        layout(name)


@pytest.mark.parametrize("family", ["yuv", "rgb", "gray"])
@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
def test_names_hold_exactly_the_format(family: str, bits: int) -> None:
    for subsampling in [(0, 0), (1, 0), (1, 1)] if family == "yuv" else [(0, 0)]:
        fmt = PixelFormat(family, bits, subsampling=subsampling)  # type: ignore[arg-type]
        found = names_for(fmt)
        assert found
        for name in found:
            at = layout(name)
            assert (at.family, at.bits, at.subsampling) == (family, bits, subsampling)
            assert not at.has_alpha
