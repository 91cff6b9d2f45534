"""``vs-deblur photo IN…``: photos into deblurred ones, with everything in them kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from vs_deblur.cli._common import ModelSettings, report, still_options
from vs_deblur.cli._output import OutputFile
from vs_deblur.cli._progress import is_terminal, note, say, status, warn
from vs_deblur.cli._signals import Stop, graceful
from vs_deblur.errors import InputError, OutputError, UsageError, reason
from vs_deblur.photofile import (
    MAX_PIXELS,
    SUFFIXES,
    Format,
    Picture,
    check_suits,
    format_of,
    is_picture,
    read,
    write,
)

if TYPE_CHECKING:
    from vs_deblur.engine import Progress
    from vs_deblur.hosts.photo import Engine

MARK = "-sharp"  # of the names of outputs beside their inputs


@dataclass(frozen=True)
class Source:
    """A file to be deblurred.

    Attributes:
        path: the file.
        under: its folder, relative to the folder that was named.
    """

    path: Path
    under: Path = Path()


# ---------------------------------------------------------------------------- which files


def find(
    inputs: Iterable[Path], *, recursive: bool = False, beside: bool = True
) -> tuple[list[Source], list[InputError]]:
    """The files that are meant: those named, and the pictures in the folders named.

    Of a folder, hidden files, raw files of cameras and, if outputs go beside inputs, outputs of an
    earlier run are left out.

    Args:
        inputs: files and folders.
        recursive: look into folders in folders as well.
        beside: whether outputs go beside inputs.

    Returns:
        the files, each once; and what is wrong with folders that cannot be read or hold no picture.
    """
    found: dict[Path, Source] = {}
    errors = []
    for path in inputs:
        try:
            for source in _files_of(path, recursive=recursive, beside=beside):
                found.setdefault(source.path, source)
        except InputError as error:
            errors.append(error)
    return list(found.values()), errors


def _files_of(path: Path, *, recursive: bool, beside: bool) -> list[Source]:
    if not path.is_dir():
        return [Source(path)]
    inside = list(_pictures_in(path, recursive=recursive, beside=beside))
    if not inside:
        hint = None if recursive else "--recursive looks into the folders in it as well"
        raise InputError("no pictures in this folder", str(path), hint)
    return inside


def _pictures_in(folder: Path, *, recursive: bool, beside: bool) -> Iterator[Source]:
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}", str(folder)) from error
    pictures = [p for p in names if is_picture(p) and not p.name.startswith(".") and p.is_file()]
    stems = {p.stem for p in pictures}
    for path in pictures:
        made_by_us = path.stem.endswith(MARK) and path.stem.removesuffix(MARK) in stems
        if not (beside and made_by_us):
            yield Source(path)
    if recursive:
        for path in names:
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                for source in _pictures_in(path, recursive=True, beside=beside):
                    yield Source(source.path, Path(path.name) / source.under)


@dataclass(frozen=True)
class Naming:
    """Where outputs go.

    Attributes:
        output: a file, a folder, or None for beside the input.
        is_folder: whether it is a folder.
        format: the format asked for.
    """

    output: Path | None
    is_folder: bool
    format: Format | None

    def kind(self, picture: Picture) -> Format:
        """The format of the output: as asked for; else that of the source, or PNG."""
        if self.format is not None:
            return self.format
        if self.output is not None and not self.is_folder:
            return format_of(self.output)
        return picture.format or "png"

    def target(self, source: Source, kind: Format) -> Path:
        """The output's path: the input's name, its suffix too if that is one of the format."""
        if self.output is not None and not self.is_folder:
            return self.output
        suffix = source.path.suffix
        if suffix.lower() not in SUFFIXES[kind]:
            suffix = SUFFIXES[kind][0]
        if self.output is None:
            return source.path.with_name(f"{source.path.stem}{MARK}{suffix}")
        return self.output / source.under / f"{source.path.stem}{suffix}"


def naming(output: Path | None, kind: str | None, *, many: bool) -> Naming:
    """Settle where outputs go.

    Args:
        output: as asked for.
        kind: the format asked for.
        many: whether there may be several outputs.

    Raises:
        UsageError: one file for many pictures, or a suffix of another format, or of none.
        OutputError: no such folder.
    """
    wanted = cast("Format | None", kind)
    if output is None or output.is_dir():
        return Naming(output, output is not None, wanted)
    if many and output.exists():
        raise UsageError("several pictures need a folder to go to", str(output))
    if many or not (output.suffix or wanted or output.exists()):
        raise OutputError("no such folder", str(output), "create it first")
    if wanted is None:
        format_of(output)
    elif any(output.suffix.lower() in s for name, s in SUFFIXES.items() if name != wanted):
        raise UsageError(f"the suffix is not one of {wanted}", str(output), "leave --format out")
    return Naming(output, False, wanted)


# ---------------------------------------------------------------------------- one picture


class TileProgress:
    """How far a picture is, on stderr: at once on a terminal, elsewhere every ten seconds."""

    def __init__(self, name: str, stop: Stop) -> None:
        self._name, self._stop = name, stop
        self._interval = 0.2 if is_terminal() else 10.0
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Say it, now and then; give up if a signal came."""
        self._stop.check()
        now = time.monotonic()
        if now - self._last >= self._interval and done < total:
            self._last = now
            status(f"vs-deblur: {self._name}: {100 * done // total} %")


@dataclass(frozen=True)
class Done:
    """A picture that was made: where it is, what it is, and what of its source it lacks."""

    path: Path
    what: str
    lost: list[str]


@dataclass
class Batch:
    """Pictures to be deblurred, one after the other.

    Attributes:
        sources: the pictures.
        names: where they go.
        settings: how to deblur.
        max_pixels: larger ones are refused.
        overwrite: whether files that are there may be replaced.
        single: whether it is about one file: what is wrong with it is raised, not reported.
    """

    sources: list[Source]
    names: Naming
    settings: ModelSettings
    max_pixels: int
    overwrite: bool
    single: bool

    def __post_init__(self) -> None:
        self._engine: Engine | None = None
        self._written: dict[Path, Path] = {}  # which source a target was made from

    def engine(self) -> Engine:
        """The engine, loaded when the first picture needs it."""
        from vs_deblur.hosts.photo import Unchanged

        if self._engine is None:
            if self.settings.strength == 0:
                self._engine = Unchanged()
            else:
                self._engine = self.settings.deblurrer(kind="photo")
        return self._engine

    def run(self, stop: Stop) -> int:
        """Deblur all; the number of those that could not be.

        Raises:
            DeblurError: one after which no other can be made either, or the only one.
        """
        failed = 0
        for i, source in enumerate(self.sources, 1):
            stop.check()
            label = f"{i}/{len(self.sources)} {source.path.name}"
            try:
                self.one(source, TileProgress(label, stop), f"[{i}/{len(self.sources)}]")
                stop.frames += 1
            except (InputError, UsageError) as error:
                if self.single:
                    raise
                report(error)
                failed += 1
        return failed

    def one(self, source: Source, progress: Progress, label: str) -> None:
        """Deblur a picture into its file.

        Raises:
            DeblurError: it cannot be done. Nothing is left of the output.
        """
        begin = time.monotonic()
        try:
            done = self._make(source, progress)
        except MemoryError:
            raise InputError("the picture does not fit into memory", str(source.path)) from None
        took = time.monotonic() - begin
        note(f"{label} {source.path} -> {done.path} ({done.what}, {took:.1f} s)")
        if done.lost:
            warn(f"{done.path}: not carried over: {', '.join(done.lost)}")

    def _make(self, source: Source, progress: Progress) -> Done:
        picture = read(source.path, self.max_pixels)
        kind = self.names.kind(picture)
        try:
            check_suits(picture, kind)
        except UsageError as error:
            raise error.at(str(source.path)) from error
        target = self._open(source, kind)
        with target:
            lost = self._fill(target, source, picture, kind, progress)
        return Done(target.path, picture.describe(), lost)

    def _open(self, source: Source, kind: Format) -> OutputFile:
        """The output's file, so far empty.

        Raises:
            UsageError: it exists, is an input, or was written for another input just now.
            OutputError: it cannot be made.
        """
        path = self.names.target(source, kind)
        earlier = self._written.setdefault(path, source.path)
        if earlier != source.path:
            raise UsageError(f"{path} was made from {earlier} just now", str(source.path))
        if self.names.is_folder and source.under.parts:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"cannot make the folder: {reason(error)}", str(path.parent)
                ) from error
        inputs = tuple(s.path for s in self.sources)
        target = OutputFile(path, overwrite=self.overwrite, inputs=inputs, private=True)
        if target.special:
            raise OutputError("output is not a file", str(path))
        return target

    def _fill(
        self,
        target: OutputFile,
        source: Source,
        picture: Picture,
        kind: Format,
        progress: Progress,
    ) -> list[str]:
        """Deblur and write; what the output lacks."""
        from vs_deblur.hosts.photo import deblur

        unchanged = self.settings.strength == 0 and kind == picture.format
        sharp = picture if unchanged else deblur(picture, self.engine(), progress)
        try:
            if unchanged:
                shutil.copyfile(source.path, target.part)
                return []
            return write(sharp, target.part, kind)
        except OutputError as error:
            raise error.at(str(target.path)) from error
        except InputError as error:
            raise error.at(str(source.path)) from error
        except OSError as error:
            raise OutputError(f"cannot write: {reason(error)}", str(target.part)) from error


@click.command()
@click.argument("inputs", metavar="IN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE|DIR",
    type=click.Path(path_type=Path),
    help="A file for one picture, a folder for many. [default: NAME-sharp beside IN]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(SUFFIXES)),
    help="Format of the output. [default: by the suffix of FILE, else that of IN]",
)
@click.option("--recursive", is_flag=True, help="Look into the folders in a folder as well.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist (never an input).")
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    show_default=True,
    metavar="N",
    help="Refuse pictures that say they have more.",
)
@still_options
def command(
    inputs: tuple[Path, ...],
    output: Path | None,
    kind: str | None,
    recursive: bool,
    overwrite: bool,
    max_pixels: int,
    settings: ModelSettings,
) -> None:
    """Deblur photos.

    IN are picture files and folders of them. Size, bits, transparency, ICC profile, EXIF, XMP and
    density are kept, JPEG is written as IN was. What cannot be read is reported and left out; the
    exit code is 3 then.
    """
    many = len(inputs) > 1 or inputs[0].is_dir()
    names = naming(output, kind, many=many)
    sources, errors = find(inputs, recursive=recursive, beside=output is None)
    if len(inputs) == 1 and errors:
        raise errors[0]
    for error in errors:
        report(error)
    batch = Batch(sources, names, settings, max_pixels, overwrite, single=not many)
    begin = time.monotonic()
    with graceful() as stop:
        stop.unit = "photos"
        failed = len(errors) + batch.run(stop)
        done = stop.frames
    if many:
        say(f"done: {done} of {len(sources)} photos in {time.monotonic() - begin:.1f} seconds")
    if failed:
        raise InputError(f"{failed} of {done + failed} could not be done", None, "see above")
