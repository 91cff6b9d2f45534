"""``vs-deblur video IN OUT``: a video file into a deblurred one.

A run has two halves. First the frames are deblurred and encoded, in chunks, into ``OUT.part`` (a
:mod:`~vs_deblur.journal`); then that is put together with everything else of the source
(:mod:`~vs_deblur.remux`) and renamed to ``OUT``. Every run goes that way, so one that was ended
and continued with ``--resume`` gives the same bytes as one without a break.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vs_deblur.cli._common import ModelSettings, model_options
from vs_deblur.cli._output import OutputFile
from vs_deblur.cli._progress import Progress, note, warn
from vs_deblur.cli._signals import graceful
from vs_deblur.errors import (
    DeviceError,
    EngineError,
    InputError,
    OutputError,
    Stopped,
    UsageError,
    reason,
)

if TYPE_CHECKING:
    from vs_deblur.encoder import Recipe, Wanted
    from vs_deblur.engine import Deblurrer
    from vs_deblur.hosts.video import VideoReader
    from vs_deblur.journal import Contents, Journal
    from vs_deblur.pipeline import Plane
    from vs_deblur.remux import Copies

# Variables of the environment that choose how sums of floats are computed.
_VARIABLES = ("VS_DEBLUR_KERNELS", "ONEDNN_MAX_CPU_ISA")
CHUNK = 256  # frames encoded as one, about; a resumed run repeats less than that


@dataclass(frozen=True)
class Range:
    """Which frames of the clip: ``start`` up to, not including, ``end`` (None: all)."""

    start: int = 0
    end: int | None = None

    def length(self, clip: int | None) -> int | None:
        """Number of frames, None if not known."""
        ends = [n for n in (self.end, clip) if n is not None]
        return max(min(ends) - self.start, 0) if ends else None


@dataclass(frozen=True)
class Result:
    """What a run did: frames, and seconds for the network and all around it."""

    frames: int
    seconds: float
    engine: str


def chunk_length(segment: int) -> int:
    """Frames of a chunk: whole segments, so that no warm-up is run twice on resuming."""
    return CHUNK if not segment else max(round(CHUNK / segment), 1) * segment


def _settings(job: Job, deblurrer: Deblurrer, model: ModelSettings) -> dict[str, object]:
    """Everything that the packets of a chunk depend on."""
    import av
    import torch

    from vs_deblur._version import __version__

    recipe, info = job.recipe, job.reader.info
    is_cpu = deblurrer.device.type == "cpu"
    return {
        "input": _fingerprint(Path(job.reader.path)),
        "model": deblurrer.model,
        "weights": _digest(deblurrer),
        "device": "cpu" if is_cpu else torch.cuda.get_device_name(deblurrer.device),
        "precision": deblurrer.precision,
        # Sums of floats depend on how they are split up, and on instructions and kernels.
        "threads": torch.get_num_threads() if is_cpu else None,
        "instruction set": torch.backends.cpu.get_cpu_capability() if is_cpu else None,
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
        "tile": deblurrer.tile_for(info.height, info.width),
        "strength": model.strength,
        "segment": model.segment,
        "warmup": model.warmup,
        "scene threshold": model.scene_threshold,
        "start": job.frames.start,
        "chunk": job.chunk,
        "encoder": [recipe.codec, recipe.pix_fmt, recipe.gop, sorted(recipe.options.items())],
        "versions": [__version__, str(torch.__version__), av.__version__],
    }


def _fingerprint(path: Path) -> list[object]:
    """What tells a clip from others, wherever it lies: its size, its beginning and its end."""
    import hashlib

    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(1 << 20))
        file.seek(max(size - (1 << 20), 0))
        digest.update(file.read(1 << 20))
    return [size, digest.hexdigest()]


def _digest(deblurrer: Deblurrer) -> str:
    """SHA-256 of the network's parameters."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(deblurrer.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _resumable(
    part: Path, settings: dict[str, object], chunk: int, total: int | None
) -> Contents | None:
    """What of a part file can be gone on with.

    Raises:
        UsageError: it is of a run with other settings.
    """
    from vs_deblur import journal

    if not part.stat().st_size:
        return None
    contents = journal.read(part)
    frames = len(contents.times) if contents else 0
    if contents is not None and contents.is_damaged:
        warn(f"{part} is damaged after frame {frames}: what follows is made anew")
    elif not frames:
        note(f"{part} holds no whole chunk: it begins anew (--chunk makes them shorter)")
    if contents is None:
        return None
    wrong = sorted(k for k in settings if _plain(settings[k]) != contents.settings.get(k))
    if wrong:
        told = (_told(k, contents.settings.get(k), settings[k]) for k in wrong)
        raise UsageError(
            f"the run to be resumed had another {', '.join(told)}",
            str(part),
            "give the same options and files, or start anew with --overwrite",
        )
    # A short chunk is the end of a clip, or of the part of it that was asked for then.
    while contents.chunks and (
        (contents.chunks[-1][0] < chunk and len(contents.times) != total)
        or (total is not None and len(contents.times) > total)
    ):
        contents.drop_last()
    return contents


def _told(name: str, then: object, now: object) -> str:
    """A setting that differs; with both values where they say something to a reader."""
    if (
        all(isinstance(value, str | int | float | None) for value in (then, now))
        and name != "weights"
    ):
        return f"{name} ({then}, now {now})"
    return name


def _check_part(part: Path, *, resume: bool) -> None:
    """See that no run, and nothing of somebody else's, is lost without being asked for.

    Raises:
        UsageError: it would be.
    """
    from vs_deblur import journal

    if not part.stat().st_size:
        return
    if not journal.is_one(part):
        hint = "remove it, or use --overwrite" + (" without --resume" if resume else "")
        raise UsageError("the part file is not one of ours", str(part), hint)
    if resume:  # it is read, and judged, when it is gone on with
        return
    contents = journal.read(part)
    if contents is not None and (contents.chunks or contents.is_damaged):
        raise UsageError(
            "the part file keeps a run that was ended",
            str(part),
            "use --resume to go on or --overwrite to start anew",
        )


def _has_chunks(part: Path) -> bool:
    """Whether a part file is a run that can be gone on with."""
    from vs_deblur import journal

    contents = journal.read(part) if part.exists() else None
    return contents is not None and bool(contents.chunks)


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    import json

    return json.loads(json.dumps(value))


def _unwritable(error: OSError, part: Path, frame: int) -> OutputError:
    if isinstance(error, OutputError):
        return error
    hint = "make room and run the same command with --resume"
    return OutputError(f"{reason(error)} at frame {frame}", str(part), hint)


class _Writer:
    """Encodes frames into the journal; called in a thread of its own."""

    def __init__(self, journal: Journal, recipe: Recipe, chunk: int, done: int) -> None:
        from vs_deblur.encoder import ChunkEncoder

        self.journal, self.chunk = journal, chunk
        self.done = self.safe = done
        self._encoder = ChunkEncoder(recipe)

    def write(self, item: tuple[list[Plane], int, int]) -> None:
        """Planes, time, duration of the next frame."""
        planes, time, duration = item
        try:
            self.journal.frame(time, duration)
            for entry in self._encoder.encode(self.done, planes):
                self.journal.packet(entry)
            self.done += 1
            if self.done % self.chunk == 0:
                self.end_chunk()
        except OSError as error:
            raise _unwritable(error, self.journal.path, self.done) from error

    def end_chunk(self) -> None:
        """End the chunk, if there is one."""
        if self.done > self.safe:
            for entry in self._encoder.end_chunk():
                self.journal.packet(entry)
            self.journal.end_chunk(self.done - self.safe)
            self.safe = self.done


@dataclass(frozen=True)
class Job:
    """A clip to be deblurred into a file.

    Attributes:
        reader: the clip.
        frames: which part of it.
        recipe: how to encode.
        copies: what else is carried over.
        chunk: frames of a chunk.
    """

    reader: VideoReader
    frames: Range
    recipe: Recipe
    copies: Copies
    chunk: int

    def run(
        self,
        deblurrer: Deblurrer,
        model: ModelSettings,
        target: OutputFile,
        *,
        resume: bool = False,
        check: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] = lambda done, new: None,
    ) -> int:
        """Do it; the number of frames of the output.

        Args:
            deblurrer: the engine.
            model: its settings.
            target: where to.
            resume: go on with what is in the part file.
            check: called often; raises to give up.
            progress: called with frames in the journal, and frames made in this run.
        """
        from vs_deblur import journal, remux

        settings = _settings(self, deblurrer, model)
        wanted = self.frames.length(None)
        contents = None
        if resume:
            contents = _resumable(target.part, settings, self.chunk, wanted)
        done = len(contents.times) if contents else 0
        if done:
            note(f"going on after {done} frames")
        try:
            with journal.Journal(target.part, settings, contents) as book:
                if wanted is None or done < wanted:
                    self._encode(deblurrer, model, book, done, check, progress)
        except OSError as error:
            raise _unwritable(error, target.part, done) from error
        contents = journal.read(target.part)
        if contents is None or not contents.times:
            target.part.unlink(missing_ok=True)  # nothing in it is worth going on with
            raise InputError(
                f"there is no frame {self.frames.start}", self.reader.path, "see --start and --end"
            )
        last = self.frames.start + len(contents.times) - 1
        self._judge(last)
        # The journal stays until the file has its name: whatever happens, nothing is lost.
        target.whole = target.part.with_name(target.part.name + ".mux")
        remux.assemble(
            self.reader.path,
            target.whole,
            target.part,
            contents,
            self.recipe,
            self.copies,
            time_base=self.reader.time_base,
            starts_late=self.frames.start > 0,
            ends_early=self.frames.end is not None
            and self.reader.goes_on_after(last, contents.times[-1][0]),
            check=check,
        )
        return len(contents.times)

    def _judge(self, last: int) -> None:
        """Compare the last frame that came with the one that was asked for.

        Raises:
            InputError: the clip ended before ``--end``.
        """
        end = self.frames.end
        if end is not None and last + 1 < end:
            raise InputError(
                f"the clip ended before frame {end - 1} (--end)",
                self.reader.path,
                f"--end {last} --resume puts the frames that are there together",
            )

    def _encode(
        self,
        deblurrer: Deblurrer,
        model: ModelSettings,
        book: Journal,
        done: int,
        check: Callable[[], None],
        progress: Callable[[int, int], None],
    ) -> None:
        from vs_deblur.pipeline import WriteBehind, deblur_frames

        first = self.frames.start + done
        origin = deblurrer.plan.origin(first)
        run_up = 0 if deblurrer.passes_through() else first - deblurrer.plan.earliest(first)
        if run_up:
            note(f"{run_up} frames are computed first, so that frame {first} is that of the whole")
        times: dict[int, tuple[int, int]] = {}

        def planes() -> Iterator[list[Plane]]:
            for n, frame in enumerate(self.reader.timed_frames(origin), origin):
                if n >= first:
                    times[n] = (frame.pts, frame.duration)
                yield frame.planes

        writer = _Writer(book, self.recipe, self.chunk, done)
        outputs = deblur_frames(
            deblurrer,
            planes(),
            self.reader.info.fmt,
            scene_threshold=model.scene_threshold,
            origin=origin,
            first=first,
            end=self.frames.end,
            check=check,
        )
        with WriteBehind(writer.write, check=check) as behind:
            for output in outputs:
                check()
                behind.put((output.value.planes, *times.pop(output.n)))
                progress(writer.done, writer.done - done)
        writer.end_chunk()
        progress(writer.done, writer.done - done)


def prepare(
    source: str | Path,
    target: Path,
    model: ModelSettings,
    wanted: Wanted,
    frames: Range,
    *,
    allow_interlaced: bool = False,
    chunk: int | None = None,
) -> Job:
    """Open the clip and settle how it is encoded; loads no model.

    Raises:
        InputError, OutputError, UsageError: it cannot work.
    """
    from vs_deblur.encoder import choose
    from vs_deblur.hosts.video import open_video
    from vs_deblur.remux import plan_copies

    reader = open_video(source, allow_interlaced=allow_interlaced)
    length = reader.info.length
    if length is not None and frames.start >= length:
        raise InputError(
            f"there is no frame {frames.start}: the clip has {length}", reader.path, "see --start"
        )
    chunk = chunk or chunk_length(model.segment)
    recipe = choose(reader, target, wanted, chunk)
    return Job(reader, frames, recipe, plan_copies(reader.path, recipe.container), chunk)


def deblur_file(
    job: Job, model: ModelSettings, target: OutputFile, *, resume: bool = False
) -> Result:
    """Run a job with progress on stderr, to its end or to a signal.

    Raises:
        Stopped: a signal came; the part file can be gone on with.
    """
    import time

    with graceful() as stop:
        deblurrer = model.deblurrer()
        note(f"{job.reader.path} -> {target.path}: {job.recipe.describe()}")
        if job.copies.lost:
            warn(f"not carried over: {', '.join(job.copies.lost)}")
        bar = Progress(job.frames.length(job.reader.info.length))

        def progress(done: int, _new: int) -> None:
            stop.frames = done
            if done:
                bar.update(done)

        begin = time.perf_counter()
        try:
            count = job.run(
                deblurrer, model, target, resume=resume, check=stop.check, progress=progress
            )
        except (Stopped, InputError, EngineError, DeviceError) as end:
            if not _has_chunks(target.part):
                note("no chunk is whole yet: nothing is kept (--chunk makes them shorter)")
            else:
                how = "the same command with" if isinstance(end, Stopped) else "add"
                note(f"{target.part} keeps what is done: {how} --resume to go on with it")
            raise
        seconds = time.perf_counter() - begin
        bar.done = count
        bar.finish()
    return Result(count, seconds, deblurrer.describe())


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--codec", metavar="NAME", help="Encoder. [default: by container and pixel format]")
@click.option("--crf", type=float, help="Quality of x264, x265, VP9, AV1: less is better.")
@click.option("--preset", help="The encoder's preset, e.g. slow.")
@click.option("--lossless", is_flag=True, help="Keep every sample exactly (.mkv: FFV1).")
@click.option("--start", type=click.IntRange(min=0), default=0, help="First frame, from 0.")
@click.option("--end", "last", type=click.IntRange(min=0), help="Last frame, inclusive.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, and OUT.part.")
@click.option("--resume", is_flag=True, help="Go on with a run that was ended (OUT.part).")
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    metavar="FRAMES",
    help="Frames encoded as one; a resumed run repeats less than that. [default: about 256]",
)
@click.option("--allow-interlaced", is_flag=True, help="Take interlaced frames as progressive.")
@model_options
def command(
    source: Path,
    output: Path,
    codec: str | None,
    crf: float | None,
    preset: str | None,
    lossless: bool,
    start: int,
    last: int | None,
    overwrite: bool,
    resume: bool,
    allow_interlaced: bool,
    chunk: int | None,
    settings: ModelSettings,
) -> None:
    """Deblur a video file into another.

    The pixel format, colour properties and times of the frames stay as they are; audio, subtitles,
    chapters and metadata are copied. The container is that of OUT's suffix: .mp4, .m4v, .mov,
    .mkv or .webm.
    """
    from vs_deblur.encoder import Wanted, container_for

    if last is not None and last < start:
        raise UsageError(f"--end must not be before --start, got {last} and {start}")
    container_for(output)
    wanted = Wanted(codec, crf, preset, lossless)
    target = OutputFile(output, overwrite=overwrite, inputs=(source,), keep_part=True)
    if target.special:
        raise OutputError("output is not a file", str(output))
    if resume or not overwrite:
        _check_part(target.part, resume=resume)
    with target:
        job = prepare(
            source,
            output,
            settings,
            wanted,
            Range(start, None if last is None else last + 1),
            allow_interlaced=allow_interlaced,
            chunk=chunk,
        )
        deblur_file(job, settings, target, resume=resume)
