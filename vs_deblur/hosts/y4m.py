r"""YUV4MPEG2: a strict, bounded parser, and the header's other half.

Nothing here needs torch: a stream that is no y4m is refused before anything heavy is loaded.

A stream is a header line and frames::

    YUV4MPEG2 C420 W640 H480 F30000:1001 Ip A0:0 XLENGTH=120\n
    FRAME\n<Y, U, V planes; samples above 8 bits are two bytes, little endian> …

Bounds: a line has at most 4096 bytes, a side at most 32768 pixels; a frame's memory is touched
only as its bytes come.
"""

from __future__ import annotations

import io
import re
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from vs_deblur.errors import InputError, reason
from vs_deblur.h273 import guessed_matrix

if TYPE_CHECKING:
    from vs_deblur.pipeline import ClipInfo
    from vs_deblur_kernels.pixels import ChromaLocation, Matrix, PixelFormat

MAGIC = b"YUV4MPEG2"
FRAME = b"FRAME\n"
LONGEST_LINE = 4096
LARGEST_SIDE = 32768
_QUOTED = 64

# Base of a colour tag: family, log2 reduction of chroma, siting of chroma. Plain "420" and the
# deep ones are what vspipe and ffmpeg write for video, whose chroma is sited left.
_BASES: dict[str, tuple[Literal["yuv", "gray"], tuple[int, int], ChromaLocation]] = {
    "420jpeg": ("yuv", (1, 1), "center"),
    "420mpeg2": ("yuv", (1, 1), "left"),
    "420paldv": ("yuv", (1, 1), "topleft"),
    "420": ("yuv", (1, 1), "left"),
    "422": ("yuv", (1, 0), "left"),
    "444": ("yuv", (0, 0), "left"),
    "411": ("yuv", (2, 0), "left"),
    "440": ("yuv", (0, 1), "left"),
    "mono": ("gray", (0, 0), "left"),
}
_DEEP = re.compile(r"(420|422|444|440)p(9|1[0-6])|mono(9|1[0-6])")
_DEFAULT_COLOUR = "420jpeg"


@dataclass(frozen=True)
class Layout:
    """What a colour tag says.

    Attributes:
        family: "yuv" or "gray".
        bits: 8..16.
        subsampling: log2 of the horizontal and vertical reduction of chroma.
        chroma_location: siting of chroma.
    """

    family: Literal["yuv", "gray"]
    bits: int
    subsampling: tuple[int, int]
    chroma_location: ChromaLocation


def layout_of(tag: str) -> Layout | None:
    """The layout of a colour tag (without its C), None where it is not supported."""
    bits = 8
    if deep := _DEEP.fullmatch(tag):
        bits = int(deep[2] or deep[3])
        tag = deep[1] or "mono"
    if tag not in _BASES:
        return None
    family, subsampling, location = _BASES[tag]
    return Layout(family, bits, subsampling, location)


def colour_tag(layout: Layout) -> str | None:
    """The colour tag for a layout, as vspipe writes it where chroma is sited left.

    None where y4m has none.
    """
    deep = f"{layout.bits}" if layout.bits > 8 else ""
    if layout.family == "gray":
        return "mono" + deep
    sited = {"center": "420jpeg", "topleft": "420paldv"}.get(layout.chroma_location)
    if layout.subsampling == (1, 1) and not deep and sited:
        return sited
    names = {(1, 1): "420", (1, 0): "422", (0, 0): "444", (0, 1): "440", (2, 0): "411"}
    name = names.get(layout.subsampling)
    if name is None or (deep and name == "411"):
        return None
    return f"{name}p{deep}" if deep else name


@dataclass(frozen=True)
class Header:
    """A stream header. None means that the tag is absent.

    Attributes:
        width, height: pixels, 1..32768.
        colour: colour tag without its C.
        rate: frames a second as numerator and denominator; (0, 0) and the like mean unknown.
        interlacing: "p" progressive, "t", "b" and "m" interlaced, "?" unknown.
        aspect: width to height of a sample; (0, 0) means unknown.
        extra: X parameters without their X, passed on as they are.
    """

    width: int
    height: int
    colour: str | None = None
    rate: tuple[int, int] | None = None
    interlacing: str | None = None
    aspect: tuple[int, int] | None = None
    extra: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """How samples lie: by the C tag, else by XYSCSS, else 4:2:0 as JPEG sites it."""
        named = self.colour or self._parameter("YSCSS").lower() or _DEFAULT_COLOUR
        layout = layout_of(named)
        if layout is None:
            raise _unsupported(named)
        return layout

    def _parameter(self, name: str) -> str:
        for text in self.extra:
            if text.upper().startswith(name + "="):
                return text[len(name) + 1 :]
        return ""

    @property
    def full_range(self) -> bool | None:
        """What XCOLORRANGE says."""
        return {"FULL": True, "LIMITED": False}.get(self._parameter("COLORRANGE").upper())

    @property
    def length(self) -> int | None:
        """Frames that XLENGTH promises."""
        text = self._parameter("LENGTH")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None

    @property
    def frame_rate(self) -> Fraction | None:
        """Frames a second, None where unknown."""
        return _ratio(self.rate)

    @property
    def sample_aspect_ratio(self) -> Fraction | None:
        """Width to height of a sample, None where unknown."""
        return _ratio(self.aspect)

    @property
    def plane_shapes(self) -> list[tuple[int, int]]:
        """Height and width of each plane."""
        layout = self.layout
        luma = (self.height, self.width)
        if layout.family == "gray":
            return [luma]
        across, down = layout.subsampling
        chroma = (-(-self.height >> down), -(-self.width >> across))
        return [luma, chroma, chroma]

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame's samples."""
        wide = 2 if self.layout.bits > 8 else 1
        return wide * sum(h * w for h, w in self.plane_shapes)

    def pixel_format(
        self, matrix: Matrix | None = None, full_range: bool | None = None
    ) -> PixelFormat:
        """How to read the samples.

        Args:
            matrix: y4m does not say it; None takes :func:`~vs_deblur.h273.guessed_matrix`.
            full_range: None takes what the header says, else limited.
        """
        from vs_deblur_kernels.pixels import PixelFormat

        layout = self.layout
        if full_range is None:
            full_range = bool(self.full_range)
        return PixelFormat(
            layout.family,
            layout.bits,
            subsampling=layout.subsampling,
            matrix=matrix or guessed_matrix(self.height),
            full_range=full_range,
            chroma_location=layout.chroma_location,
        )

    def with_length(self, length: int | None) -> Header:
        """The same stream with another number of frames (None: not said)."""
        return self._with("LENGTH", None if length is None else str(length))

    def with_range(self, full: bool) -> Header:
        """The same stream with another range of samples."""
        return self._with("COLORRANGE", "FULL" if full else "LIMITED")

    def _with(self, name: str, value: str | None) -> Header:
        extra = tuple(x for x in self.extra if not x.upper().startswith(f"{name}="))
        return replace(self, extra=extra if value is None else (*extra, f"{name}={value}"))


def _ratio(pair: tuple[int, int] | None) -> Fraction | None:
    return Fraction(*pair) if pair and pair[0] and pair[1] else None


def quote(data: bytes) -> str:
    """At most 64 bytes, escaped, for a message."""
    text = ascii(data[:_QUOTED])[1:]
    return text + ("…" if len(data) > _QUOTED else "")


def _unsupported(tag: str) -> InputError:
    known = ", ".join(_BASES)
    shown = quote(tag.encode("latin-1", "replace"))
    return InputError(
        f"colour space {shown} is not supported",
        None,
        f"supported: {known}; and 9 to 16 bits as 420p10, 422p10, 444p10, 440p10, mono10",
    )


def _side(name: str, tag: str, text: str) -> int:
    value = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if value is None or not 1 <= value <= LARGEST_SIDE:
        shown = text if value is not None else quote(text.encode("latin-1", "replace"))
        raise InputError(f"{name} ({tag}) must be 1..{LARGEST_SIDE}, got {shown}")
    return value


def _pair(name: str, tag: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", text)
    if match is None:
        shown = quote(text.encode("latin-1", "replace"))
        raise InputError(f"{name} ({tag}) must be two numbers like 30000:1001, got {shown}")
    return int(match[1]), int(match[2])


def parse_header(line: bytes) -> Header:
    """Parse a header line.

    Args:
        line: with or without its newline.

    Raises:
        InputError: no y4m, a tag that is missing, twice there, unknown or out of range.
    """
    line = line.removesuffix(b"\n")
    magic, *rest = line.split(b" ")
    if magic != MAGIC:
        raise InputError(f"expected YUV4MPEG2, got {quote(line)}")
    tags: dict[str, str] = {}
    extra: list[str] = []
    for token in (r.decode("latin-1") for r in rest if r):
        tag, text = token[0], token[1:]
        if tag == "X":
            extra.append(text)
        elif tag not in "WHCFIA":
            raise InputError(f"unknown tag {quote(token.encode('latin-1'))} in the y4m header")
        elif tag in tags:
            raise InputError(f"tag {tag} is twice in the y4m header")
        else:
            tags[tag] = text
    for tag, name in (("W", "width"), ("H", "height")):
        if tag not in tags:
            raise InputError(f"the y4m header has no {name} ({tag})")
    interlacing = tags.get("I")
    if interlacing not in (None, "p", "t", "b", "m", "?"):
        shown = quote(interlacing.encode("latin-1"))
        raise InputError(f"interlacing (I) must be one of p t b m ?, got {shown}")
    header = Header(
        _side("width", "W", tags["W"]),
        _side("height", "H", tags["H"]),
        tags.get("C"),
        _pair("frame rate", "F", tags["F"]) if "F" in tags else None,
        interlacing,
        _pair("sample aspect ratio", "A", tags["A"]) if "A" in tags else None,
        tuple(extra),
    )
    _ = header.layout  # refuses colour spaces that are not supported
    return header


def write_header(header: Header) -> bytes:
    """The header line, tags in vspipe's order."""
    parts = [MAGIC.decode()]
    if header.colour is not None:
        parts.append(f"C{header.colour}")
    parts += [f"W{header.width}", f"H{header.height}"]
    if header.rate is not None:
        parts.append("F{}:{}".format(*header.rate))
    if header.interlacing is not None:
        parts.append(f"I{header.interlacing}")
    if header.aspect is not None:
        parts.append("A{}:{}".format(*header.aspect))
    parts += [f"X{text}" for text in header.extra]
    return " ".join(parts).encode("latin-1") + b"\n"


class _Patient(io.FileIO):
    """A file descriptor that waits even where somebody made it non-blocking."""

    def readinto(self, buffer: Any) -> int:
        while (count := super().readinto(buffer)) is None:
            select.select([self], [], [])
        return count


def open_descriptor(fd: int, name: str) -> BinaryIO:
    """A reader of a file descriptor, which stays open when the reader is closed."""
    try:
        return io.BufferedReader(_Patient(fd, "rb", closefd=False), 1 << 16)
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", name) from error


class Y4mReader:
    """A y4m stream.

    Args:
        file: where to read; read once, in order.
        name: its name in messages.
        allow_interlaced: take interlaced frames as if they were progressive.

    Raises:
        InputError: no y4m, or of a kind that is not supported.
    """

    def __init__(self, file: BinaryIO, name: str, *, allow_interlaced: bool = False) -> None:
        self._file, self.name = file, name
        self._readinto: Callable[[memoryview], int] = file.readinto  # type: ignore[attr-defined]
        self._next = 0
        try:
            self.header = parse_header(self._header_line())
        except InputError as error:
            raise error.at(name) from None
        if self.header.interlacing in ("t", "b", "m") and not allow_interlaced:
            raise InputError(
                f"the stream is interlaced (I{self.header.interlacing})",
                name,
                "deinterlace first, or --allow-interlaced to take it as it is",
            )

    def _line(self, what: str) -> bytes:
        """Read up to a newline, bounded; without one only where the stream ends."""
        line = self._read(lambda: self._file.readline(LONGEST_LINE + 1))
        if len(line) > LONGEST_LINE:
            raise InputError(f"{what} too long (over {LONGEST_LINE} bytes): {quote(line)}")
        return line

    def _read[T](self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            raise InputError(f"cannot read: {reason(error)}", self.name) from error

    def _header_line(self) -> bytes:
        # The magic first: a file without newlines is not y4m because of that.
        magic = self._read(lambda: self._file.read(len(MAGIC)))
        if not magic:
            raise InputError("input is empty: expected YUV4MPEG2")
        if magic != MAGIC:
            rest = b"" if MAGIC.startswith(magic) else self._read(self._peek)
            raise InputError(f"expected YUV4MPEG2, got {quote(magic + rest)}")
        line: bytes = magic + self._line("header")
        if not line.endswith(b"\n"):
            raise InputError(f"the stream ends in its header: {quote(line)}")
        return line

    def _peek(self) -> bytes:
        peek = getattr(self._file, "peek", None)
        data: bytes = peek(_QUOTED)[: _QUOTED - len(MAGIC)] if peek else b""
        return data

    def _frame_line(self) -> bool:
        """Read a frame's line; whether there is one."""
        n = self._next
        line = self._line(f"frame {n}: FRAME line")
        if not line:
            return False
        if not line.endswith(b"\n") and b"FRAME ".startswith(line[:6]):
            raise InputError(f"the stream ends in the line of frame {n}", self.name)
        if line != FRAME and not line.startswith(b"FRAME "):
            raise InputError(f"frame {n}: expected FRAME, got {quote(line)}", self.name)
        return True

    def _room(self) -> NDArray[np.uint8]:
        """Room for a frame; the system gives the memory as it is touched."""
        size = self.header.frame_bytes
        try:
            return np.empty(size, np.uint8)
        except MemoryError as error:
            what = f"a frame of {size:,} bytes does not fit into memory"
            raise InputError(what, self.name) from error

    def _fill(self, buffer: NDArray[np.uint8]) -> None:
        view = memoryview(buffer)
        got = 0
        while got < len(view):
            count = self._read(partial(self._readinto, view[got:]))
            if not count:
                raise InputError(
                    f"frame {self._next} is cut off: {got} of {len(view)} bytes", self.name
                )
            got += count

    def frames(self, start: int = 0) -> Iterator[list[NDArray[Any]]]:
        """The planes of each frame from number ``start`` on, each frame's memory its own.

        Raises:
            InputError: the stream is damaged, cut off, or cannot be read; after the frames before.
        """
        header = self.header
        kind = np.dtype("<u2" if header.layout.bits > 8 else "u1")
        dropped = self._room() if self._next < start else np.empty(0, np.uint8)
        while self._frame_line():
            if self._next < start:
                self._fill(dropped)
                self._next += 1
                continue
            buffer = self._room()
            self._fill(buffer)
            self._next += 1
            samples = buffer.view(kind)
            planes = []
            for height, width in header.plane_shapes:
                planes.append(samples[: height * width].reshape(height, width))
                samples = samples[height * width :]
            yield planes
        promised = header.length
        if promised is not None and self._next < promised:
            raise InputError(
                f"the stream ends after {self._next} frames, its header says {promised}", self.name
            )

    @property
    def count(self) -> int:
        """Frames read so far."""
        return self._next

    def info(self, matrix: Matrix | None = None, full_range: bool | None = None) -> ClipInfo:
        """The clip; see :meth:`Header.pixel_format`."""
        from vs_deblur.pipeline import ClipInfo

        header = self.header
        return ClipInfo(
            header.width,
            header.height,
            header.pixel_format(matrix, full_range),
            header.frame_rate,
            header.sample_aspect_ratio,
            header.length,
        )


def header_for(info: ClipInfo, length: int | None, rate: tuple[int, int] | None = None) -> Header:
    """The header of a clip, token for token as vspipe writes it.

    Where the clip says more than vspipe passes on (full range, chroma siting, sample aspect
    ratio), the header says it too.

    Args:
        info: the clip.
        length: number of frames, None where not known.
        rate: the frame rate as it is to be written, where that matters (50:2).

    Raises:
        InputError: y4m has no name for the clip's format.
    """
    fmt = info.fmt
    layout = None
    if fmt.family != "rgb" and not fmt.is_float:
        layout = Layout(fmt.family, fmt.bits, fmt.subsampling, fmt.chroma_location)
    tag = None if layout is None else colour_tag(layout)
    if tag is None:
        kind = "float" if fmt.is_float else f"{fmt.bits}-bit"
        raise InputError(
            f"y4m has no name for {kind} {fmt.family} clips",
            None,
            "use --format raw, or convert the clip to YUV of 8 to 16 bits",
        )
    if rate is None:
        known = info.frame_rate
        rate = (known.numerator, known.denominator) if known else (0, 0)
    aspect = info.sample_aspect_ratio
    header = Header(
        info.width,
        info.height,
        tag,
        rate,
        "p",
        (aspect.numerator, aspect.denominator) if aspect else (0, 0),
        ("COLORRANGE=FULL",) if fmt.full_range else (),
    )
    return header.with_length(length)
