"""What ``vs-deblur measure`` can compare: pair folders, folders of images, two files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vs_deblur.errors import InputError, UsageError

if TYPE_CHECKING:
    from vs_deblur.engine import Kind
    from vs_deblur.hosts.video import VideoReader
    from vs_deblur.measuring import Planes, Run
    from vs_deblur.metrics import Image
    from vs_deblur.sequences import ImageSequence


@dataclass(frozen=True)
class Source:
    """One row of the table before it is measured.

    Attributes:
        name: of the sequence.
        frames: their number, None where it is not known beforehand.
        runs: opens it.
        kind: what it is taken for, "photo" or "video".
        why: what says so, in a few words.
    """

    name: str
    frames: int | None
    runs: Callable[[], Iterator[Run]]
    kind: Kind
    why: str


def sources(blurred: Path, sharp: Path | None) -> list[Source]:
    """What there is to measure.

    Raises:
        InputError: something is missing, or blurred and sharp do not go together.
        UsageError: a file without its sharp counterpart.
    """
    for path in (blurred, sharp):
        if path is not None and not path.exists():
            raise InputError("no such file or folder", str(path))
    if blurred.is_dir() and (sharp is None or sharp.is_dir()):
        from vs_deblur.sequences import pair_folders, two_folders

        found = pair_folders(blurred) if sharp is None else two_folders(blurred, sharp)
        return [_of_images(s) for s in found]
    if sharp is None:
        raise UsageError("a file needs a second one to be compared with", str(blurred))
    if blurred.is_dir() or sharp.is_dir():
        raise InputError("one is a folder and one is a file", f"{blurred} and {sharp}")
    return [_of_files(blurred, sharp)]


def _of_images(sequence: ImageSequence) -> Source:
    def runs() -> Iterator[Run]:
        from vs_deblur.measuring import image_runs

        return image_runs(sequence)

    return Source(sequence.name, sequence.frames, runs, *_kind_of(sequence))


def _kind_of(sequence: ImageSequence) -> tuple[Kind, str]:
    """What images in a folder are taken for, and why."""
    from vs_deblur.sequences import sizes_differ

    if all(len(run) == 1 for run in sequence.runs):
        return "photo", "no two numbers follow each other"
    if sizes_differ(sequence):
        return "photo", "their sizes differ"
    return "video", "numbers follow each other"


def _of_files(blurred: Path, sharp: Path) -> Source:
    """Two image files are a photo and its sharp counterpart, everything else are films."""
    from vs_deblur.sequences import IMAGE_SUFFIXES, ImagePair, ImageSequence, header

    files = (blurred, sharp)
    headers = [header(f) if f.suffix.lower() in IMAGE_SUFFIXES else None for f in files]
    are_images = all(f.suffix.lower() in IMAGE_SUFFIXES for f in files)
    if not are_images or any(h is not None and h.is_animated for h in headers):
        return _of_videos(blurred, sharp)
    if any(h is not None and h.is_deep for h in headers):  # Pillow would cut them to 8 bits
        found = _of_videos(blurred, sharp)
    else:
        found = _of_images(ImageSequence(blurred.stem, ((ImagePair(blurred, sharp),),)))
    return replace(found, kind="photo", why="two image files")


def _of_videos(blurred: Path, sharp: Path) -> Source:
    from vs_deblur.hosts.video import VideoReader

    ours, theirs = VideoReader(blurred), VideoReader(sharp)
    sizes = [f"{r.info.width}x{r.info.height}" for r in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise InputError(f"blurred is {sizes[0]}, sharp {sizes[1]}", f"{blurred} and {sharp}")

    def runs() -> Iterator[Run]:
        from vs_deblur.measuring import Run

        yield Run(ours.info.fmt, _side_by_side(ours, theirs))

    return Source(blurred.stem, ours.info.length, runs, "video", "two video files")


def _side_by_side(ours: VideoReader, theirs: VideoReader) -> Iterator[tuple[Planes, Image]]:
    from vs_deblur.measuring import rgb8

    blurred, sharp = ours.frames(), theirs.frames()
    n = 0
    for n, planes in enumerate(blurred, 1):
        other = next(sharp, None)
        if other is None:
            _refuse(ours, theirs, n + sum(1 for _ in blurred), n - 1)
        else:
            yield planes, rgb8(other, theirs.info.fmt)
    if left := sum(1 for _ in sharp):
        _refuse(ours, theirs, n, n + left)


def _refuse(ours: VideoReader, theirs: VideoReader, blurred: int, sharp: int) -> None:
    raise InputError(
        f"{blurred} blurred but {sharp} sharp frames", f"{ours.path} and {theirs.path}"
    )
