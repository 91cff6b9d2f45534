"""Putting a file together: encoded frames with their times, everything else copied from the source.

Audio, subtitles, attachments, chapters, metadata and the rotation are carried over as they are; no
packet is encoded again. Times are those of the source. Where a part of the clip was asked for,
they are shifted so that the part's first frame begins at 0, and packets of other streams that begin
before it or after its end are left out.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from vs_deblur.avstreams import main_video, open_input, path_of
from vs_deblur.encoder import Recipe
from vs_deblur.errors import EngineError, InputError, OutputError, reason
from vs_deblur.journal import Contents, packets
from vs_deblur.scheduling import usual_priority

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

_NOT_KEPT = {
    "mastering_display_metadata": "HDR mastering data",
    "content_light_level": "HDR light levels",
    "dovi_conf": "Dolby Vision",
    "spherical": "360-degree projection",
    "stereo_3d": "3D layout",
    "icc_profile": "ICC profile",
}
# Written by every muxer for itself.
_OWN_METADATA = ("encoder", "major_brand", "minor_version", "compatible_brands", "duration")
_ROTATES = ("mp4", "mov", "matroska")


@dataclass(frozen=True)
class Copies:
    """What of a source goes into the output besides its video.

    Attributes:
        video: index of the video stream that is deblurred.
        streams: indices of the streams that are copied.
        lost: what cannot be, in words.
    """

    video: int
    streams: tuple[int, ...]
    lost: tuple[str, ...]


def plan_copies(source: str, container: str) -> Copies:
    """Find out what the output's container holds, by trying.

    Args:
        source: path of the source, readable.
        container: FFmpeg's name of the output's.
    """
    kept, lost = [], []
    with open_input(source) as found:
        main = main_video(found)
        has_chapters = bool(found.chapters())
        for stream in found.streams:
            if stream.index == main.index:
                continue
            name = getattr(stream.codec_context, "name", None) or getattr(stream, "name", None)
            spoken = f"stream {stream.index} ({stream.type}, {name or 'unknown codec'})"
            if stream.type in ("audio", "subtitle", "attachment") and _holds(container, stream):
                kept.append(stream.index)
            elif not (stream.type == "data" and name == "bin_data" and has_chapters):
                lost.append(spoken)
        context = main.codec_context
        lost += [_NOT_KEPT[kind] for kind in context.coded_side_data if kind in _NOT_KEPT]
        if "display_matrix" in context.coded_side_data and container not in _ROTATES:
            lost.append("the rotation")
        if has_chapters and container not in (*_ROTATES, "webm"):
            lost.append("chapters")
        return Copies(main.index, tuple(kept), tuple(lost))


def _holds(container: str, stream: Stream) -> bool:
    """Whether a container can hold a copy of a stream."""
    import av

    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            _add_copy(trial, stream)
            trial.start_encoding()
    except (av.error.FFmpegError, ValueError, OSError):
        return False
    return True


def _add_copy(target: OutputContainer, stream: Stream) -> Stream:
    copy = target.add_stream_from_template(stream)
    copy.metadata.update(_metadata(stream.metadata))
    copy.disposition = stream.disposition.value  # type: ignore[assignment]
    return copy


def _metadata(found: dict[str, str]) -> dict[str, str]:
    """What people wrote, without what muxers wrote (Matroska's statistics begin with capitals)."""
    statistics = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS")
    return {
        k: v
        for k, v in found.items()
        if k.lower() not in _OWN_METADATA and not k.startswith(statistics)
    }


class _Sink:
    """A file for PyAV that remembers the error it met (FFmpeg forgets those of its last flush)."""

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self.seek, self.tell, self.read = file.seek, file.tell, file.read
        self._write = file.write

    def write(self, data: Any) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self.error = self.error or error
            raise


@dataclass(frozen=True)
class Part:
    """Which part of the source's time the output shows.

    Attributes:
        begin: time of its first frame, seconds.
        end: time at which its last frame is over, seconds; None for the end of the clip.
        shift: what is added to every time, seconds.
    """

    begin: Fraction | None = None
    end: Fraction | None = None
    shift: Fraction = Fraction(0)

    def shows(self, time: Fraction) -> bool:
        """Whether a packet that begins at this time belongs to it."""
        return (self.begin is None or time >= self.begin) and (self.end is None or time < self.end)


def assemble(
    source: str,
    target: Path,
    journal: Path,
    contents: Contents,
    recipe: Recipe,
    copies: Copies,
    *,
    time_base: Fraction,
    starts_late: bool,
    ends_early: bool,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the output file.

    Args:
        source: the file that was deblurred.
        target: the file to make; one of that name is replaced.
        journal, contents: the encoded frames.
        recipe: how they were encoded.
        copies: what else goes in.
        time_base: unit of the frames' times, seconds.
        starts_late: whether there are frames in the source before the first one.
        ends_early: whether there are frames in the source after the last one.
        check: called for each packet; raises to give up.

    Raises:
        OutputError: it cannot be written.
        InputError: the source cannot be read any more.
    """
    begin = contents.times[0][0] * time_base
    over = contents.times[-1][0] + _last_duration(contents, time_base, recipe.rate)
    part = Part(
        begin if starts_late else None,
        over * time_base if ends_early else None,
        -begin if starts_late else Fraction(0),
    )
    try:
        target.unlink(missing_ok=True)
        with target.open("x+b") as file:  # follows no link
            sink = _Sink(file)
            try:
                _write(sink, source, journal, contents, recipe, copies, time_base, part, check)
            except Exception as error:
                if sink.error is not None:
                    raise sink.error from error
                raise
            if sink.error is not None:
                raise sink.error
    except OutputError:
        raise
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise OutputError(
            f"cannot write: {reason(error)}",
            str(target),
            f"the frames are kept in {journal.name}; make room and use --resume",
        ) from error


def _write(
    sink: _Sink,
    source: str,
    journal: Path,
    contents: Contents,
    recipe: Recipe,
    copies: Copies,
    time_base: Fraction,
    part: Part,
    check: Callable[[], None],
) -> None:
    import av

    # Bit-exact: no random identifiers, no library versions. The same frames give the same file.
    container_options = {"fflags": "+bitexact"}
    with (
        open_input(source) as found,
        av.open(sink, "w", format=recipe.container, container_options=container_options) as output,
    ):
        streams = {i: found.streams[i] for i in (copies.video, *copies.streams)}
        targets: dict[int, Stream] = {}
        for index in sorted(streams):  # the order of the source
            if index == copies.video:
                targets[index] = _add_video(
                    output, main_video(found), recipe, time_base, part.begin is not None
                )
            else:
                targets[index] = _add_copy(output, streams[index])
        output.metadata.update(_metadata(found.metadata))
        _copy_chapters(found, output, part)
        with usual_priority():
            output.start_encoding()
        video = _video_packets(
            journal, contents, targets.pop(copies.video), time_base, recipe.rate, part.shift
        )
        others = _copied_packets(found, targets, part)
        for packet in _merge(video, others):
            check()
            output.mux(packet)


def _add_video(
    output: OutputContainer,
    source: VideoStream,
    recipe: Recipe,
    time_base: Fraction,
    starts_late: bool,
) -> Stream:
    """The stream of the encoded frames. Its encoder is opened for its headers only."""
    stream = cast("VideoStream", output.add_stream(recipe.codec, rate=recipe.rate))
    recipe.apply(stream.codec_context)
    stream.time_base = time_base
    stream.metadata.update(_metadata(source.metadata))
    if starts_late:
        stream.metadata.pop("timecode", None)  # it is that of the clip's first frame
    stream.disposition = source.disposition.value  # type: ignore[assignment]
    matrix = source.codec_context.coded_side_data.get("display_matrix")
    if matrix is not None and recipe.container in _ROTATES:
        stream.set_display_matrix(struct.unpack("=9i", matrix))
    return stream


def _copy_chapters(found: InputContainer, output: OutputContainer, part: Part) -> None:
    chapters = []
    for chapter in found.chapters():
        unit = Fraction(chapter["time_base"].numerator, chapter["time_base"].denominator)
        begin, end = chapter["start"] * unit, chapter["end"] * unit
        if part.begin is not None:
            begin = max(begin, part.begin)
        if part.end is not None:
            end = min(end, part.end)
        if begin < end:
            start, stop = round((begin + part.shift) / unit), round((end + part.shift) / unit)
            chapters.append({**chapter, "start": start, "end": stop})
    if chapters:
        output.set_chapters(chapters)  # type: ignore[arg-type]


Timed = tuple[Fraction, "Packet[Any]"]


def _last_duration(contents: Contents, time_base: Fraction, rate: Fraction) -> int:
    """How long the last frame is shown: as the source says, else as long as the one before it."""
    (last, duration), before = contents.times[-1], contents.times[-2:-1]
    if duration > 0:
        return duration
    return last - before[0][0] if before else max(1, round(1 / (rate * time_base)))


def _video_packets(
    journal: Path,
    contents: Contents,
    stream: Stream,
    time_base: Fraction,
    rate: Fraction,
    shift: Fraction,
) -> Iterator[Timed]:
    """The encoded frames, with decoding times.

    With the frames' times in order t, and packets that come at most d places after their place in
    that order, packet i is to be decoded at t[i - d]: that grows, and is never after its own time.
    """
    from av.packet import Packet

    order, offset = contents.order, round(shift / time_base)
    if sorted(order) != list(range(len(contents.times))):
        raise EngineError("the encoder lost or repeated a frame", None, "choose another --codec")
    times = [time + offset for time, _ in contents.times]
    delay = max(i - frame for i, frame in enumerate(order))
    step = times[1] - times[0] if len(times) > 1 else max(1, round(1 / (rate * time_base)))
    times_to_decode = [times[0] - (delay - i) * step for i in range(delay)] + times
    for i, entry in enumerate(packets(journal)):
        if i == len(order):
            return
        packet = Packet(entry.data)
        packet.stream = stream
        packet.time_base = time_base
        packet.pts, packet.dts = times[entry.frame], times_to_decode[i]
        following = entry.frame + 1
        if following < len(times):
            packet.duration = times[following] - times[entry.frame]
        else:
            packet.duration = _last_duration(contents, time_base, rate)
        packet.is_keyframe = entry.keyframe
        yield packet.dts * time_base, packet


def _copied_packets(
    found: InputContainer, targets: dict[int, Stream], part: Part
) -> Iterator[Timed]:
    import av

    streams = [s for s in found.streams if s.index in targets and s.type != "attachment"]
    if not streams:
        return
    try:
        for packet in found.demux(*streams):
            stamp = packet.dts if packet.dts is not None else packet.pts
            if stamp is None:  # the mark at the end of a stream
                continue
            unit = Fraction(packet.time_base.numerator, packet.time_base.denominator)
            shown = (packet.pts if packet.pts is not None else stamp) * unit
            if not part.shows(shown):
                continue
            offset = round(part.shift / unit)
            if packet.pts is not None:
                packet.pts += offset
            if packet.dts is not None:
                packet.dts += offset
            packet.stream = targets[packet.stream.index]
            yield (stamp + offset) * unit, packet
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"cannot be read: {reason(error)}", path_of(found)) from error


def _merge(video: Iterator[Timed], others: Iterator[Timed]) -> Iterator[Packet[Any]]:
    """Two sequences of packets as one, by the time at which they are decoded."""
    other = next(others, None)
    for time, packet in video:
        while other is not None and other[0] <= time:
            yield other[1]
            other = next(others, None)
        yield packet
    while other is not None:
        yield other[1]
        other = next(others, None)
