"""Small video files, made with PyAV from noise that moves by one pixel a frame."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from vs_deblur.avpixels import frame_of, layout

Plane = NDArray[Any]


def planes(name: str, height: int, width: int, n: int) -> list[Plane]:
    """Frame ``n`` of a film in FFmpeg's pixel format ``name``."""
    at = layout(name)
    rng = np.random.default_rng(3)
    made = []
    for i in range(len(at.where)):
        sw, sh = at.subsampling if i and at.family == "yuv" else (0, 0)
        h, w = -(-height >> sh), -(-width >> sw)
        coarse = rng.random((h // 4 + 2, (w + 64) // 4 + 2))
        smooth = np.kron(coarse, np.ones((4, 4)))[:h, :]
        part = smooth[:, n % 64 : n % 64 + w] * 0.8 + 0.1
        if at.is_float:
            made.append(part.astype("f4"))
        else:
            made.append((part * ((1 << at.bits) - 1)).astype("u2" if at.bits > 8 else "u1"))
    return made


@dataclass(frozen=True)
class Film:
    """What to make.

    Attributes:
        codec, pix_fmt: FFmpeg's names.
        width, height, frames: of the video.
        times: of the frames, in units of ``time_base``; None for a constant 25 a second.
        options: of the encoder.
        colour: (range, matrix, primaries, transfer, location), FFmpeg's numbers.
        audio: codec of a sound track, if any.
        sound: how much longer than the video it lasts, as a factor.
        rotation: degrees.
        metadata: of the file.
        chapters: (begin, end, title) in milliseconds.
    """

    codec: str = "ffv1"
    pix_fmt: str = "yuv420p"
    width: int = 64
    height: int = 48
    frames: int = 8
    time_base: Fraction = Fraction(1, 25)
    times: Sequence[int] | None = None
    options: tuple[tuple[str, str], ...] = ()
    colour: tuple[int, int, int, int, int] | None = None
    aspect: Fraction | None = None
    audio: str | None = None
    sound: float = 1.0
    rotation: float | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    chapters: tuple[tuple[int, int, str], ...] = ()
    interlaced: bool = False

    def write(self, path: Path, container: str | None = None) -> Path:
        """Make the file."""
        with av.open(str(path), "w", format=container) as output:
            stream: Any = output.add_stream(self.codec, rate=25, options=dict(self.options))
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, self.pix_fmt
            stream.codec_context.time_base = self.time_base
            stream.time_base = self.time_base
            if self.aspect is not None:
                stream.codec_context.sample_aspect_ratio = self.aspect
            if self.colour is not None:
                names = (
                    "color_range",
                    "colorspace",
                    "color_primaries",
                    "color_trc",
                    "chroma_sample_location",
                )
                for name, value in zip(names, self.colour, strict=True):
                    setattr(stream.codec_context, name, value)
            if self.interlaced:
                stream.codec_context.flags |= 1 << 18 | 1 << 29  # interlaced DCT and motion
                stream.codec_context.field_order = 2
            if self.rotation is not None:
                stream.set_display_rotation(self.rotation)
            output.metadata.update(dict(self.metadata))
            self._chapters(output)
            sound = output.add_stream(self.audio, rate=48000) if self.audio else None
            output.start_encoding()
            for n in range(self.frames):
                frame = frame_of(planes(self.pix_fmt, self.height, self.width, n), self.pix_fmt)
                frame.pts = self.times[n] if self.times is not None else n
                frame.time_base = self.time_base
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            if sound is not None:
                self._sound(output, sound)
        return path

    def _chapters(self, output: Any) -> None:
        if self.chapters:
            output.set_chapters(
                [
                    {
                        "id": i,
                        "start": begin,
                        "end": end,
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": title},
                    }
                    for i, (begin, end, title) in enumerate(self.chapters)
                ]
            )

    def _sound(self, output: Any, sound: Any) -> None:
        length = round(48000 * self.frames * self.sound / 25)
        t = np.arange(length, dtype=np.float32)
        wave = (np.sin(t * 0.05) * 0.3).astype(np.float32)
        size = sound.codec_context.frame_size or 1024
        for begin in range(0, length - size + 1, size):
            part = np.ascontiguousarray(np.tile(wave[begin : begin + size], (2, 1)))
            frame = AudioFrame.from_ndarray(part, "fltp", "stereo")
            frame.sample_rate, frame.pts = 48000, begin
            frame.time_base = Fraction(1, 48000)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))


def with_subtitles(source: Path, target: Path, texts: Sequence[str]) -> Path:
    """A copy of a Matroska file with a SubRip track."""
    with av.open(str(source)) as found, av.open(str(target), "w") as output:
        video = output.add_stream_from_template(found.streams.video[0], opaque=True)
        track: Any = output.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        for i, text in enumerate(texts):
            packet = av.Packet(text.encode())
            packet.stream, packet.time_base = track, Fraction(1, 1000)
            packet.pts = packet.dts = i * 100
            packet.duration = 90
            output.mux(packet)
        for copy in found.demux(found.streams.video[0]):
            if copy.dts is not None:
                copy.stream = video
                output.mux(copy)
    return target


@dataclass(frozen=True)
class Packet:
    """What matters of a packet."""

    time: Fraction | None
    data: bytes


def packets(path: Path, kind: str) -> list[Packet]:
    """The packets of the first stream of a kind."""
    with av.open(str(path)) as found:
        stream = next(s for s in found.streams if s.type == kind)
        return [
            Packet(None if p.pts is None else p.pts * _fraction(p.time_base), bytes(p))
            for p in found.demux(stream)
            if p.size
        ]


def times(path: Path) -> list[Fraction]:
    """When each frame is shown, seconds."""
    with av.open(str(path)) as found:
        return [(f.pts or 0) * _fraction(f.time_base) for f in found.decode(video=0)]


def _fraction(value: Any) -> Fraction:
    return Fraction(value.numerator, value.denominator)


def display_matrix(path: Path) -> tuple[int, ...] | None:
    """The rotation, as nine numbers of 16.16 or 2.30 bits."""
    with av.open(str(path)) as found:
        data = found.streams.video[0].codec_context.coded_side_data.get("display_matrix")
    return None if data is None else struct.unpack("=9i", data)


def raw_frames(path: Path) -> Iterator[list[Plane]]:
    """Planes of each frame, by our reader."""
    from vs_deblur.hosts.video import open_video

    return open_video(path).frames()
