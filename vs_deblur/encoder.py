"""Which codec, pixel format and options a container and a clip call for; encoding in chunks.

Nothing is ever converted on the way: a codec that cannot hold the clip's own pixel format is not
chosen, and refused where it was asked for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from vs_deblur.avpixels import Colour, Plane, frame_of, names_for
from vs_deblur.errors import OutputError, UsageError, reason
from vs_deblur.journal import Entry
from vs_deblur.processor import processor_has
from vs_deblur.scheduling import usual_priority

if TYPE_CHECKING:
    from av.codec import Codec
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    from vs_deblur.pipeline import ClipInfo
    from vs_deblur_kernels.pixels import PixelFormat

# Containers that keep a time for each frame, by suffix: FFmpeg's name, codecs in the order in which
# they are tried, lossless ones.
_X = ("libx264", "libx264rgb", "libx265")
CONTAINERS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    ".mp4": ("mp4", (*_X, "libvpx-vp9"), (*_X, "libvpx-vp9")),
    ".m4v": ("mp4", (*_X, "libvpx-vp9"), (*_X, "libvpx-vp9")),
    ".mov": ("mov", _X, _X),
    ".mkv": ("matroska", (*_X, "ffv1"), ("ffv1",)),
    ".webm": ("webm", ("libvpx-vp9", "libsvtav1"), ("libvpx-vp9",)),
}
# Constant quality that looks like its source.
_CRF = {"libx264": 17, "libx264rgb": 17, "libx265": 18, "libvpx-vp9": 22, "libsvtav1": 22}
# What the encoders take; beyond it they take something else in silence, or fail without a word.
_CRF_MOST = {"libx264": 51, "libx264rgb": 51, "libx265": 51, "libvpx-vp9": 63, "libsvtav1": 63}
_SPEEDS = "ultrafast superfast veryfast faster fast medium slow slower veryslow placebo"
_X_PRESETS = tuple(_SPEEDS.split())
_PRESETS = {"libx264": _X_PRESETS, "libx264rgb": _X_PRESETS, "libx265": _X_PRESETS}
_ALWAYS = {
    "libx265": {"x265-params": "log-level=error"},
    "libvpx-vp9": {"row-mt": "1", "cpu-used": "3"},
    "ffv1": {"level": "3", "slicecrc": "1"},
}
_LOSSLESS: dict[str, dict[str, str]] = {
    "libx264": {"qp": "0"},
    "libx264rgb": {"qp": "0"},
    "libx265": {"x265-params": "log-level=error:lossless=1"},
    "libvpx-vp9": {"lossless": "1"},
    **{name: {} for name in ("ffv1", "ffvhuff", "huffyuv", "utvideo", "rawvideo", "png")},
}
_INTRA = ("ffv1", "ffvhuff", "huffyuv", "utvideo", "rawvideo", "png", "mjpeg")
_QSCALE = 118  # FF_QP2LAMBDA


class Clip(Protocol):
    """What a recipe depends on.

    Attributes:
        info: size, format, aspect.
        pix_fmt: FFmpeg's name of the pixel format.
        colour: colour properties.
        nominal_rate: frames a second, on the average where they vary.
    """

    info: ClipInfo
    pix_fmt: str
    colour: Colour
    nominal_rate: Fraction


@dataclass(frozen=True)
class Wanted:
    """Encoder options as asked for; None where it is ours to choose."""

    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    lossless: bool = False


@dataclass(frozen=True)
class Recipe:
    """How to encode a clip.

    Attributes:
        container: FFmpeg's name of it.
        codec: FFmpeg's name of the encoder.
        pix_fmt: FFmpeg's name of the pixel format; it holds the clip's samples exactly.
        width, height: pixels.
        rate: frames a second, on the average.
        aspect: of a pixel; None where unknown.
        colour: colour properties.
        gop: frames between keyframes at most.
        options: of the encoder.
    """

    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    rate: Fraction
    aspect: Fraction | None
    colour: Colour
    gop: int
    options: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One line: codec, pixel format, quality."""
        quality = "lossless" if self.is_lossless else ""
        for name in ("crf", "preset"):
            if name in self.options and not quality.startswith("lossless"):
                quality += f"{name} {self.options[name]} "
        return f"{self.codec} {self.pix_fmt} {quality}".strip()

    @property
    def is_lossless(self) -> bool:
        """Whether every sample comes back as it was."""
        return self.options.items() >= _LOSSLESS.get(self.codec, {"": ""}).items()

    def _spoken(self) -> str:
        """The options that somebody asked for, or that are ours to choose."""
        base = base_options(self.codec).items()
        return " ".join(f"{k}={v}" for k, v in self.options.items() if (k, v) not in base)

    def apply(self, context: VideoCodecContext) -> None:
        """Set everything on an encoder that is not open yet."""
        context.width, context.height, context.pix_fmt = self.width, self.height, self.pix_fmt
        context.time_base = 1 / self.rate
        context.framerate = self.rate
        context.gop_size = self.gop
        if self.aspect is not None:
            context.sample_aspect_ratio = self.aspect
        context.color_range = self.colour.range
        context.colorspace = self.colour.matrix
        context.color_primaries = self.colour.primaries
        context.color_trc = self.colour.transfer
        context.chroma_sample_location = self.colour.location
        context.options = dict(self.options)

    def open(self) -> VideoCodecContext:
        """An open encoder.

        Raises:
            OutputError: the encoder does not take this.
        """
        import av
        from av.codec.context import CodecContext, Flags

        if self.codec == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only
        context: VideoCodecContext = CodecContext.create(self.codec, "w")  # type: ignore[assignment]
        self.apply(context)
        context.flags |= Flags.global_header
        try:
            with usual_priority():
                context.open()
        except (av.error.FFmpegError, ValueError) as error:
            elsewhere = " or container (.mkv takes everything)"
            raise OutputError(
                f"{self.codec} cannot encode {self.width}x{self.height} {self.pix_fmt}"
                f" with {self._spoken() or 'its defaults'}",
                None,
                "choose another --codec" + ("" if self.container == "matroska" else elsewhere),
            ) from error
        return context

    def try_out(self) -> None:
        """Open the encoder, and write a file of no frames into memory.

        Raises:
            OutputError: the encoder or the container does not take this.
        """
        import av

        self.open()
        try:
            with av.open(io.BytesIO(), "w", format=self.container) as trial:
                stream = cast("VideoStream", trial.add_stream(self.codec, rate=self.rate))
                self.apply(stream.codec_context)
                with usual_priority():
                    trial.start_encoding()
        except (av.error.FFmpegError, ValueError) as error:
            raise OutputError(
                f"{self.container} cannot hold {self.codec} {self.pix_fmt}",
                None,
                "choose another --codec, or leave the choice to us",
            ) from error


def container_for(path: Path) -> str:
    """The suffix of an output file, in small letters.

    Raises:
        UsageError: not one of :data:`CONTAINERS`.
    """
    suffix = path.suffix.lower()
    if suffix not in CONTAINERS:
        raise UsageError(
            f"the output must end in {', '.join(CONTAINERS)}, not {suffix or 'nothing'}", str(path)
        )
    return suffix


def _encoder(name: str) -> Codec:
    from av.codec import Codec

    try:
        codec = Codec(name, "w")
    except ValueError:
        raise UsageError(f"no encoder {name}", "--codec", "e.g. libx264, libx265, ffv1") from None
    if codec.type != "video":
        raise UsageError(f"{name} is not a video codec", "--codec")
    return codec


def _pix_fmt(codec: Codec, fmt: PixelFormat) -> str | None:
    """The first of the codec's pixel formats that holds the clip's samples exactly."""
    held = None if codec.video_formats is None else {f.name for f in codec.video_formats}
    names = names_for(fmt)
    return next((n for n in names if held is None or n in held), None)


def base_options(codec: str) -> dict[str, str]:
    """What an encoder is given whatever else is asked for; codec is FFmpeg's name of it."""
    chosen = dict(_ALWAYS.get(codec, {}))
    if codec in ("libx264", "libx264rgb") and processor_has("avx512"):
        # x264's AVX-512 code (seen with core 165) reads memory that nothing was written to: the
        # same frames give other bytes each time, so that a resumed run is not like one in one go.
        # Not asked for elsewhere: x264 does not check whether a processor has what is named.
        chosen["x264-params"] = "asm=AVX2"
    return chosen


def _options(codec: str, wanted: Wanted) -> dict[str, str]:
    """The encoder's options.

    Raises:
        UsageError: one that this encoder does not have.
    """
    from av.codec.context import CodecContext

    known = {o.name for o in CodecContext.create(codec, "w").supported_options.private}
    for name in ("crf", "preset"):
        if getattr(wanted, name) is not None and name not in known:
            raise UsageError(f"{codec} has no {name}", f"--{name}")
    most = _CRF_MOST.get(codec)
    if wanted.crf is not None and most is not None and not 0 <= wanted.crf <= most:
        raise UsageError(f"crf must be 0..{most} for {codec}, got {wanted.crf:g}", "--crf")
    presets = _PRESETS.get(codec)
    if wanted.preset is not None and presets is not None and wanted.preset not in presets:
        raise UsageError(f"{codec} has no preset {wanted.preset!r}", "--preset", " ".join(presets))
    chosen = base_options(codec)
    if wanted.lossless:
        if codec not in _LOSSLESS:
            raise UsageError(f"{codec} is not a lossless codec here", "--codec", "e.g. ffv1")
        chosen |= _LOSSLESS[codec]
    elif wanted.crf is not None or codec in _CRF:
        chosen["crf"] = f"{_CRF[codec] if wanted.crf is None else wanted.crf:g}"
    elif codec not in _LOSSLESS:
        chosen |= {"flags": "+qscale", "global_quality": str(2 * _QSCALE)}
    if wanted.preset is not None:
        chosen["preset"] = wanted.preset
    return chosen


def choose(clip: Clip, path: Path, wanted: Wanted, gop: int) -> Recipe:
    """How to encode a clip into a file.

    Args:
        clip: the clip.
        path: the file to make.
        wanted: what was asked for.
        gop: frames between keyframes at most.

    Raises:
        UsageError: options that do not go together, or an unknown container or codec.
        OutputError: the container or codec cannot hold this clip.
    """
    container, lossy, lossless = CONTAINERS[container_for(path)]
    if wanted.lossless and wanted.crf is not None:
        raise UsageError("--lossless and --crf exclude each other")
    if wanted.codec is not None:
        recipe = _recipe(clip, container, _encoder(wanted.codec), wanted, gop)
        recipe.try_out()
        return recipe
    failures = []
    for name in lossless if wanted.lossless else lossy:
        try:
            # H.264's grey comes back as 4:2:0.
            if name == "libx264" and clip.info.fmt.family == "gray":
                raise OutputError("libx264 does not keep grey as grey")
            recipe = _recipe(clip, container, _encoder(name), wanted, gop)
            recipe.try_out()
            return recipe
        except (OutputError, UsageError) as error:
            failures.append(error)
    if wanted.crf is not None or wanted.preset is not None:
        raise failures[0]
    raise OutputError(
        f"no {'lossless ' if wanted.lossless else ''}codec of {path.suffix} holds"
        f" {clip.pix_fmt} {clip.info.width}x{clip.info.height}",
        str(path),
        "use .mkv",
    )


def _recipe(clip: Clip, container: str, codec: Codec, wanted: Wanted, gop: int) -> Recipe:
    pix_fmt = _pix_fmt(codec, clip.info.fmt)
    if pix_fmt is None:
        raise OutputError(
            f"{codec.name} cannot hold {clip.pix_fmt}",
            "--codec",
            "leave the choice to us, or use ffv1 in .mkv",
        )
    if codec.name == "mjpeg" and not clip.info.fmt.full_range:
        raise OutputError(
            "mjpeg holds full-range video only, the clip is limited range",
            "--codec",
            "leave the choice to us, or use e.g. libx264",
        )
    info = clip.info
    return Recipe(
        container,
        codec.name,
        pix_fmt,
        info.width,
        info.height,
        clip.nominal_rate.limit_denominator(1001),
        info.sample_aspect_ratio,
        clip.colour,
        1 if codec.name in _INTRA else gop,
        _options(codec.name, wanted),
    )


class ChunkEncoder:
    """Encodes frames, a new encoder for each chunk: a chunk's packets depend on nothing else.

    Args:
        recipe: how.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._context: VideoCodecContext | None = None

    def encode(self, frame: int, planes: Sequence[Plane]) -> list[Entry]:
        """Packets that are ready after this frame, the output's number ``frame``.

        Raises:
            OutputError: the encoder failed.
        """
        if self._context is None:
            self._context = self.recipe.open()
        picture = frame_of(planes, self.recipe.pix_fmt)
        colour = self.recipe.colour
        picture.color_range, picture.colorspace = colour.range, colour.matrix
        picture.pts, picture.time_base = frame, 1 / self.recipe.rate
        return self._packets(self._context, picture)

    def end_chunk(self) -> list[Entry]:
        """The packets that remain; the next frame begins a new chunk."""
        context, self._context = self._context, None
        return [] if context is None else self._packets(context, None)

    def _packets(self, context: VideoCodecContext, picture: object) -> list[Entry]:
        import av

        try:
            packets: list[Packet[VideoStream]] = context.encode(picture)  # type: ignore[arg-type]
        except av.error.FFmpegError as error:
            raise OutputError(f"{self.recipe.codec} failed: {reason(error)}") from error
        return [Entry(int(p.pts or 0), p.is_keyframe, bytes(p)) for p in packets]
