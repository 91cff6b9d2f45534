"""FFmpeg's pixel formats by name, and the samples of their frames as planes. No conversion.

``layout("nv12")`` says where each plane's samples lie in FFmpeg's memory, so that they are copied
out, and back in, as they are. Formats that cannot be taken apart without a change (palettes, Bayer
mosaics, fewer than 8 bits) have no layout: :func:`layout` refuses them by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import InputError
from vs_deblur.h273 import UNSPECIFIED

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from vs_deblur_kernels.pixels import Family, PixelFormat

Plane = NDArray[Any]

_SUBSAMPLING = {
    "444": (0, 0),
    "422": (1, 0),
    "420": (1, 1),
    "440": (0, 1),
    "411": (2, 0),
    "410": (2, 2),
}


@dataclass(frozen=True)
class Colour:
    """Colour properties as FFmpeg numbers them; 0 (range, location) and 2 mean unspecified."""

    range: int = 0
    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    location: int = 0


@dataclass(frozen=True)
class Where:
    """Where a component lies: FFmpeg's plane, first sample of a row, samples to the next one."""

    plane: int
    offset: int = 0
    step: int = 1


@dataclass(frozen=True)
class Layout:
    """How a pixel format of FFmpeg stores its samples.

    Attributes:
        name: FFmpeg's name.
        family: "yuv", "rgb" or "gray".
        bits: of a sample.
        dtype: of a sample in memory, with its byte order.
        where: of Y, U, V; or R, G, B; or grey.
        subsampling: log2 of the reduction of chroma.
        shift: samples are stored times 2^shift.
        full_range: the name itself says full range.
        has_alpha: there is an alpha channel, which is not among the planes.
    """

    name: str
    family: Family
    bits: int
    dtype: str
    where: tuple[Where, ...]
    subsampling: tuple[int, int] = (0, 0)
    shift: int = 0
    full_range: bool = False
    has_alpha: bool = False

    @property
    def is_float(self) -> bool:
        """Whether samples are floats."""
        return np.dtype(self.dtype).kind == "f"


_PLANAR = re.compile(r"yuv(j|a)?(4[0-4][0-4])p(\d+)?(le|be)?")
_GBR = re.compile(r"gbr(a)?p(f)?(\d+)?(le|be)?")
_GRAY = re.compile(r"gray(f)?(\d+)?(le|be)?")
_PACKED_RGB = re.compile(r"([rgba0x]{3,4})(24|48|64)?(le|be)?")
_PACKED_422 = {"yuyv422": (0, 1, 3), "yvyu422": (0, 3, 1), "uyvy422": (1, 0, 2)}
_NV = {"nv12": "420", "nv21": "420", "nv16": "422", "nv24": "444", "nv42": "444"}


def _dtype(bits: int, order: str | None, is_float: bool = False) -> str:
    if bits == 8:
        return "u1"
    kind = "f" if is_float else "u"
    return f"{'>' if order == 'be' else '<'}{kind}{bits // 8 if is_float else 2}"


def _planar(name: str) -> Layout | None:
    if m := _PLANAR.fullmatch(name):
        flavour, sub, bits, order = m[1], m[2], int(m[3] or 8), m[4]
        where = (Where(0), Where(1), Where(2))
        return Layout(
            name,
            "yuv",
            bits,
            _dtype(bits, order),
            where,
            _SUBSAMPLING[sub],
            full_range=flavour == "j",
            has_alpha=flavour == "a",
        )
    if m := _GBR.fullmatch(name):
        bits = int(m[3] or 8)
        where = (Where(2), Where(0), Where(1))
        return Layout(
            name,
            "rgb",
            bits,
            _dtype(bits, m[4], bool(m[2])),
            where,
            full_range=True,
            has_alpha=bool(m[1]),
        )
    if m := _GRAY.fullmatch(name):
        bits = int(m[2] or 8)
        return Layout(name, "gray", bits, _dtype(bits, m[3], bool(m[1])), (Where(0),))
    if m := re.fullmatch(r"ya(8|16)(le|be)?", name):
        bits = int(m[1])
        return Layout(name, "gray", bits, _dtype(bits, m[2]), (Where(0, 0, 2),), has_alpha=True)
    return None


def _packed(name: str) -> Layout | None:
    if name in _NV:
        first = 1 if name in ("nv21", "nv42") else 0
        where = (Where(0), Where(1, first, 2), Where(1, 1 - first, 2))
        return Layout(name, "yuv", 8, "u1", where, _SUBSAMPLING[_NV[name]])
    if m := re.fullmatch(r"p([024])(10|12|16)(le|be)", name):
        bits = int(m[2])
        where = (Where(0), Where(1, 0, 2), Where(1, 1, 2))
        sub = _SUBSAMPLING[{"0": "420", "2": "422", "4": "444"}[m[1]]]
        return Layout(name, "yuv", bits, _dtype(16, m[3]), where, sub, shift=16 - bits)
    if name in _PACKED_422:
        y, u, v = _PACKED_422[name]
        where = (Where(0, y, 2), Where(0, u, 4), Where(0, v, 4))
        return Layout(name, "yuv", 8, "u1", where, (1, 0))
    if (m := _PACKED_RGB.fullmatch(name)) and set("rgb") <= set(m[1]):
        order, bits = m[1], 16 if m[2] in ("48", "64") else 8
        if (len(order) == 3) != (m[2] in ("24", "48")):
            return None
        rgb = tuple(Where(0, order.index(c), len(order)) for c in "rgb")
        return Layout(
            name, "rgb", bits, _dtype(bits, m[3]), rgb, full_range=True, has_alpha="a" in order
        )
    return None


@cache
def layout(name: str) -> Layout:
    """The layout of a pixel format.

    Raises:
        InputError: its samples cannot be taken as planes of 8 to 16 bits or floats.
    """
    found = _planar(name) or _packed(name)
    usable = found and (found.bits in (16, 32) if found.is_float else 8 <= found.bits <= 16)
    if found is None or not usable or (found.is_float and found.bits == 16):
        raise InputError(
            f"the pixel format {name} is not supported",
            None,
            "convert the clip to YUV, RGB or grey of 8 to 16 bits first",
        )
    return found


def _view(frame: VideoFrame, at: Layout, where: Where, height: int, width: int) -> Plane:
    """The samples of one component in the frame's own memory, (height, width)."""
    plane = frame.planes[where.plane]
    dtype = np.dtype(at.dtype)
    stride = plane.line_size
    rows = np.frombuffer(plane, np.uint8).reshape(-1, abs(stride))
    if stride < 0:  # stored from the last row to the first
        rows = rows[::-1]
    used = (where.offset + (width - 1) * where.step + 1) * dtype.itemsize
    samples = rows[:height, :used].view(dtype)
    return samples[:, where.offset :: where.step]


def planes_of(frame: VideoFrame) -> list[Plane]:
    """The planes of a frame, (h, w) each, arrays of their own in the machine's byte order."""
    at = layout(frame.format.name)
    planes = []
    for i, where in enumerate(at.where):
        height, width = _shape(at, frame.height, frame.width, i)
        samples = _view(frame, at, where, height, width)
        native = samples.astype(samples.dtype.newbyteorder("="), order="C")
        planes.append(native >> at.shift if at.shift else native)
    return planes


def frame_of(planes: Sequence[Plane], name: str) -> VideoFrame:
    """A frame of the pixel format with these planes, the inverse of :func:`planes_of`."""
    from av.video.frame import VideoFrame

    at = layout(name)
    height, width = planes[0].shape
    frame = VideoFrame(width, height, name)
    if at.family == "rgb" and at.where[0].step == 4:  # a byte that belongs to no component
        np.frombuffer(frame.planes[0], np.uint8)[:] = 0
    for i, (where, plane) in enumerate(zip(at.where, planes, strict=True)):
        rows, columns = _shape(at, height, width, i)
        target = _view(frame, at, where, rows, columns)
        target[...] = plane << at.shift if at.shift else plane
    return frame


def _shape(at: Layout, height: int, width: int, plane: int) -> tuple[int, int]:
    if plane == 0 or at.family != "yuv":
        return height, width
    sw, sh = at.subsampling
    return -(-height >> sh), -(-width >> sw)


def names_for(fmt: PixelFormat) -> list[str]:
    """Names of the pixel formats that hold exactly the samples of ``fmt``, planar ones first."""
    depth = "" if fmt.bits == 8 else f"{fmt.bits}le"
    if fmt.is_float:
        depth = f"f{fmt.bits}le"
    if fmt.family == "gray":
        return [f"gray{depth}"]
    if fmt.family == "rgb":
        packed = {8: ["rgb24", "bgr24", "bgr0"], 16: ["rgb48le"]}
        return [f"gbrp{depth}", *([] if fmt.is_float else packed.get(fmt.bits, []))]
    by_subsampling = {pair: digits for digits, pair in _SUBSAMPLING.items()}
    if fmt.is_float or fmt.subsampling not in by_subsampling:
        return []
    return [f"yuv{by_subsampling[fmt.subsampling]}p{depth}"]
