"""``vs-deblur photo IN…``: photos into deblurred ones, with everything in them kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vs_deblur.cli._common import ModelSettings, report, still_options
from vs_deblur.cli._output import OutputFile
from vs_deblur.cli._progress import is_terminal, note, say, status, warn
from vs_deblur.cli._signals import Stop, graceful
from vs_deblur.errors import (
    DeblurError,
    EngineError,
    InputError,
    OutOfMemoryError,
    OutputError,
    UsageError,
    reason,
)
from vs_deblur.photofile import (
    MAX_PIXELS,
    SUFFIXES,
    Format,
    Picture,
    check_suits,
    format_in,
    format_of,
    is_picture,
    is_raw,
    read,
    write,
)

if TYPE_CHECKING:
    from vs_deblur.engine import Progress
    from vs_deblur.hosts.photo import Engine

MARK = "-sharp"  # of the names of outputs beside their inputs
_SLASHES = tuple(s for s in (os.sep, os.altsep) if s)
_ALIASES: dict[str, Format] = {"jpg": "jpeg", "tif": "tiff"}


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
    inputs: Iterable[Path], *, recursive: bool = False, output: Path | None = None
) -> tuple[list[Source], list[InputError]]:
    """The files that are meant: those named, and the pictures in the folders named.

    Of a folder, hidden files, raw files of cameras and outputs of an earlier run are left out:
    ``a-sharp.jpg`` beside an ``a``, and the folder that outputs go to.

    Args:
        inputs: files and folders.
        recursive: look into folders in folders as well.
        output: where outputs go.

    Returns:
        the files, each once; and what is wrong with folders that cannot be read or hold no picture.
    """
    search = Search(recursive, output)
    found: dict[Path, Source] = {}
    for path in inputs:
        for source in search.files_of(path):
            found.setdefault(source.path, source)
    return list(found.values()), search.errors


class Search:
    """A search for pictures in folders.

    Args:
        recursive: look into folders in folders as well.
        output: a folder that is not looked into from one above it.

    Attributes:
        errors: what is wrong with folders; the others are gone on with.
    """

    def __init__(self, recursive: bool, output: Path | None) -> None:
        self._recursive, self._output = recursive, output
        self.errors: list[InputError] = []
        self._raw = 0

    def files_of(self, path: Path) -> list[Source]:
        """What is meant by a file or folder."""
        if not _is_folder(path):
            return [Source(path)]
        before, self._raw = len(self.errors), 0
        inside = self._pictures_in(path)
        if not inside and len(self.errors) == before:
            self.errors.append(self._nothing(path))
        return inside

    def _nothing(self, folder: Path) -> InputError:
        if self._raw:
            return InputError(
                f"no pictures in this folder but {self._raw} raw files of cameras, which are left"
                " out",
                str(folder),
                "develop them into TIFF files of 16 bits first",
            )
        hint = None if self._recursive else "--recursive looks into the folders in it as well"
        return InputError("no pictures in this folder", str(folder), hint)

    def _pictures_in(self, folder: Path) -> list[Source]:
        try:
            names = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
            pictures = [p for p in names if is_picture(p) and p.is_file()]
            folders = [p for p in names if p.is_dir() and not p.is_symlink()]
        except OSError as error:
            self.errors.append(InputError(f"cannot be read: {reason(error)}", str(folder)))
            return []
        self._raw += sum(map(is_raw, names))
        stems = {p.stem for p in pictures}
        found = [
            Source(p)
            for p in pictures
            if not (p.stem.endswith(MARK) and p.stem.removesuffix(MARK) in stems)
        ]
        for path in folders if self._recursive else ():
            if self._output is None or not _are_same(path, self._output):
                found += [
                    Source(s.path, Path(path.name) / s.under) for s in self._pictures_in(path)
                ]
        return found


def _is_folder(path: Path) -> bool:
    """Whether it is one; not if nobody can tell."""
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _file_id(path: Path) -> tuple[int, int] | None:
    """What tells a file from all others; None if it is no file, or not there."""
    with contextlib.suppress(OSError):
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            return found.st_dev, found.st_ino
    return None


def _are_same(a: Path, b: Path) -> bool:
    """Whether two names are of one file or folder that is there."""
    with contextlib.suppress(OSError):
        return a.samefile(b)
    return False


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

    def kind(self, source: Format | None) -> Format:
        """The format of the output: as asked for; else that of the source, or PNG."""
        if self.format is not None:
            return self.format
        if self.output is not None and not self.is_folder:
            return format_of(self.output)
        return source or "png"

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


def naming(asked: str | None, kind: Format | None, *, many: bool) -> Naming:
    """Settle where outputs go.

    Args:
        asked: the output as asked for: a folder that is there or ends in a slash; a file; for many
            pictures a folder too if it has no suffix. It is made when the first picture goes there.
        kind: the format asked for.
        many: whether there may be several outputs.

    Raises:
        UsageError: one file for many pictures, or a suffix of another format, or of none.
        OutputError: there is no folder in which the folder could be made.
    """
    if asked is None:
        return Naming(None, False, kind)
    output = Path(asked)
    if _is_folder(output):
        return Naming(output, True, kind)
    if asked == "-":
        raise UsageError("photos are not written to standard output", None, "name a file or folder")
    if asked.endswith(_SLASHES) or (many and not output.suffix and not os.path.lexists(output)):
        if not _is_folder(output.parent):
            raise OutputError("no such folder", str(output.parent), "create it first")
        return Naming(output, True, kind)
    if many:
        hint = None if os.path.lexists(output) else "end it in a slash if it is to be one"
        raise UsageError("several pictures need a folder to go to", str(output), hint)
    if kind is None:
        _check_suffix(output)
    elif output.suffix.lower() not in SUFFIXES[kind] and (is_picture(output) or is_raw(output)):
        raise UsageError(
            f"the suffix is not one of {kind}", str(output), f"end it in {SUFFIXES[kind][0]}"
        )
    return Naming(output, False, kind)


def _check_suffix(output: Path) -> None:
    """Refuse a file whose name says no format that we write."""
    try:
        format_of(output)
    except UsageError as error:
        if output.suffix:
            raise
        hint = "or say --format; a folder ends in a slash"
        raise UsageError(error.what, error.where, hint) from None


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
        done: how many were made.
        there: how many were left as an earlier run made them.
    """

    sources: list[Source]
    names: Naming
    settings: ModelSettings
    max_pixels: int
    overwrite: bool
    single: bool
    done: int = 0
    there: int = 0

    def __post_init__(self) -> None:
        self._engine: Engine | None = None
        self._written: dict[Path, Path] = {}  # which source a target was made from
        self._inputs = {_file_id(source.path) for source in self.sources}

    def engine(self) -> Engine:
        """The engine, loaded when the first picture needs it."""
        from vs_deblur.hosts.photo import Unchanged

        if self._engine is None:
            if self.settings.strength == 0:
                self._engine = Unchanged()
            else:
                self._engine = self.settings.deblurrer(kind="photo")
        return self._engine

    def run(self, stop: Stop) -> list[DeblurError]:
        """Deblur all; what was wrong with those that could not be.

        Raises:
            DeblurError: one after which no other can be made either, or the only one.
        """
        failed: list[DeblurError] = []
        for i, source in enumerate(self.sources, 1):
            stop.check()
            label = f"{i}/{len(self.sources)} {source.path.name}"
            try:
                if self._is_there(source):
                    continue
                self.one(source, TileProgress(label, stop), f"[{i}/{len(self.sources)}]")
                self.done += 1
                stop.frames = self.done
            except (InputError, UsageError, EngineError, OutOfMemoryError) as error:
                if self.single:
                    raise
                report(error)
                failed.append(error)
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
        kind = self.names.kind(picture.format)
        try:
            check_suits(picture, kind)
        except UsageError as error:
            raise error.at(str(source.path)) from error
        target = self._open(source, kind)
        with target:
            lost = self._fill(target, source, picture, kind, progress)
        return Done(target.path, picture.describe(), lost)

    def _is_there(self, source: Source) -> bool:
        """Whether the output of one of many is there and is to stay: a run that is repeated goes on
        where it ended. Told, and counted.
        """
        if self.single or self.overwrite:
            return False
        path = self.names.target(source, self.names.kind(format_in(source.path)))
        file = _file_id(path)
        if file is None or file in self._inputs or _file_id(source.path) is None:
            return False  # nothing to leave out, or an error
        if self._written.setdefault(path, source.path) != source.path:
            return False
        note(f"exists: {path}")
        self.there += 1
        return True

    def _open(self, source: Source, kind: Format) -> OutputFile:
        """The output's file, so far empty.

        Raises:
            UsageError: it exists, is an input, or is that of another input as well.
            OutputError: it cannot be made.
        """
        path = self.names.target(source, kind)
        earlier = self._written.setdefault(path, source.path)
        if earlier != source.path:
            raise UsageError(f"{path} was made from {earlier}", str(source.path))
        if self.names.is_folder:
            try:
                path.parent.mkdir(parents=bool(source.under.parts), exist_ok=True)
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
        engine = None if unchanged else self.engine()
        try:
            sharp = picture if engine is None else deblur(picture, engine, progress)
            if unchanged:
                shutil.copyfile(source.path, target.part)
                return []
            return write(sharp, target.part, kind)
        except OutputError as error:
            raise error.at(str(target.path)) from error
        except InputError as error:
            raise error.at(str(source.path)) from error
        except (EngineError, OutOfMemoryError) as error:
            raise error.at(f"{source.path}, {error.where}") from error
        except OSError as error:
            raise OutputError(f"cannot write: {reason(error)}", str(target.part)) from error


def _format(context: Any, parameter: Any, name: str | None) -> Format | None:
    """The format that is meant by a name."""
    return None if name is None else _ALIASES.get(name, cast("Format", name))


@click.command()
@click.argument("inputs", metavar="IN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE|DIR/",
    help="A file for one picture, a folder for many (made if it is not there). "
    "[default: NAME-sharp beside IN]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice([*SUFFIXES, *_ALIASES]),
    metavar=f"[{'|'.join(SUFFIXES)}]",
    callback=_format,
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
    output: str | None,
    kind: Format | None,
    recursive: bool,
    overwrite: bool,
    max_pixels: int,
    settings: ModelSettings,
) -> None:
    """Deblur photos.

    IN are picture files and folders of them. Size, bits, transparency, ICC profile, EXIF, XMP and
    density are kept, JPEG is written as IN was. What cannot be read is reported and left out; the
    exit code is 3 then. Of several, those whose output exists are left out.
    """
    many = len(inputs) > 1 or _is_folder(inputs[0])
    names = naming(output, kind, many=many)
    sources, errors = find(inputs, recursive=recursive, output=names.output)
    if len(inputs) == len(errors) == 1 and not sources:
        raise errors[0]
    for error in errors:
        report(error)
    batch = Batch(sources, names, settings, max_pixels, overwrite, single=not many)
    begin = time.monotonic()
    with graceful() as stop:
        stop.unit = "photos"
        failed = [*errors, *batch.run(stop)]
    done, there = batch.done, batch.there
    if many:
        took = f"{time.monotonic() - begin:.1f} seconds"
        rest = f", {there} exist already (--overwrite makes them anew)" if there else ""
        say(f"done: {done} of {len(sources)} photos in {took}{rest}")
    if failed:
        # The exit code is that of what all of them lacked; of several things, that of bad input.
        codes = {error.exit_code for error in failed}
        count = f"{len(failed)} of {done + there + len(failed)}"
        kind_of_error: type[DeblurError] = InputError
        if len(codes) == 1:
            kind_of_error = {6: OutOfMemoryError, 1: EngineError}.get(codes.pop(), InputError)
        raise kind_of_error(f"{count} could not be done", None, "see above")
