"""Output files: refused before any work if they cannot be, written as ``.part``, then renamed.

They are on the disk before they get their name, so that a loss of power leaves the whole file or
none under it.

The name of a part file can be guessed. In a folder where others may write, such as ``/tmp``, one of
theirs is never written to, and no link is followed. While a run writes a part file it holds a lock
on it: a second run for the same output is refused, instead of writing between the frames of the
first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from types import TracebackType

from vs_deblur.errors import OutputError, UsageError, reason


def _is_own(found: os.stat_result, folder: Path) -> bool:
    """Whether a part file is a plain one, and nobody else's in a folder that is everybody's."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        return False
    everybodys = stat.S_ISVTX | stat.S_IWOTH
    if os.name != "posix" or folder.stat().st_mode & everybodys != everybodys:
        return True
    return found.st_uid == os.geteuid()


def _belongs_to_another(found: os.stat_result, folder: Path) -> bool:
    """Whether a file cannot be replaced though its folder can be written to: somebody else's, where
    each may remove only what is theirs (``/tmp``).
    """
    if os.name != "posix" or os.geteuid() == 0:
        return False
    around = folder.stat()
    owners = (found.st_uid, around.st_uid)
    return bool(around.st_mode & stat.S_ISVTX) and os.geteuid() not in owners


def bring_to_disk(path: Path) -> None:
    """Return when a file, or the names in a folder, would outlast a loss of power.

    Raises:
        OSError: the system could not write it.
    """
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":  # folders cannot be opened there
        return
    fd = os.open(path, os.O_RDONLY if is_folder or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems have nothing to do for folders, and say so in this way.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


class OutputFile:
    """A file to be made. As a context manager: leaving it normally puts the file in its place,
    leaving it by an error leaves what was written as ``<name>.part``, or nothing if that is empty.
    Entering it raises OutputError if another run writes the same file.

    Pipes and devices (``/dev/null``) are written as they are.

    Args:
        path: the file to make.
        overwrite: whether a file of that name may be replaced.
        inputs: files that must not be the output.
        keep_part: whether a part file that is there is the caller's to judge, and not emptied.
        private: whether the part file is of this process alone and goes away on an error: for
            what is written in one go, maybe by two processes at once.

    Attributes:
        part: where to write.
        whole: what is put in the file's place in the end: ``part``, unless set to another file
            beside it. ``part`` then is removed after that, and kept if it fails.
        special: whether the path is a pipe or a device.

    Raises:
        UsageError: the output is one of the inputs, or it or its part file exists.
        OutputError: the folder is missing or cannot be written to, or the path is a folder.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        inputs: tuple[str | Path, ...] = (),
        keep_part: bool = False,
        private: bool = False,
    ) -> None:
        self.path = Path(path)
        self._private = private
        self._keep_part = keep_part
        self._locked: int | None = None  # a descriptor of the part file
        self.special = False
        self._overwrite = overwrite
        self._check(overwrite, inputs)
        ending = f".{os.getpid()}.part" if private else ".part"
        self.part = self.path if self.special else self.path.with_name(self.path.name + ending)
        self.whole = self.part
        if not self.special:
            self._probe(inputs)

    def _check(self, overwrite: bool, inputs: tuple[str | Path, ...]) -> None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot write: {reason(error)}", str(self.path)) from error
        if stat.S_ISDIR(found.st_mode):
            raise OutputError("output is a folder", str(self.path), "give a file name")
        for source in inputs:
            with contextlib.suppress(OSError):
                if os.path.samestat(found, Path(source).stat()):
                    raise UsageError("output is the input", str(self.path), "give another name")
        self.special = not stat.S_ISREG(found.st_mode)
        if not self.special and not overwrite:
            raise UsageError("output exists", str(self.path), "use --overwrite or another name")
        if not self.special and _belongs_to_another(found, self.path.parent):
            raise OutputError("output is somebody else's", str(self.path), "give another name")

    def _probe(self, inputs: tuple[str | Path, ...]) -> None:
        """Create the part file: the one sure way to know that it can be written."""
        folder = self.path.parent
        self._check_part(inputs)
        try:
            self._make_part()
        except OutputError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                if folder.is_dir():  # one of the system's, like /proc
                    raise OutputError("no files can be made in this folder", str(folder)) from error
                raise OutputError("no such folder", str(folder), "create it first") from error
            raise OutputError(f"cannot write: {reason(error)}", str(folder)) from error

    def _check_part(self, inputs: tuple[str | Path, ...]) -> None:
        """See that a part file that is there may be written on."""
        try:
            found = self.part.stat()
        except OSError:  # there is none, or what it is shows when it is opened
            return
        for source in inputs:
            with contextlib.suppress(OSError):
                if os.path.samestat(found, Path(source).stat()):
                    raise UsageError("output would be written over the input", str(self.part))
        if self._overwrite or self._keep_part or self._private:
            return
        if found.st_size and stat.S_ISREG(found.st_mode):
            if self._is_written_elsewhere():
                raise self._taken()
            raise UsageError(
                "the part file of another run is there",
                str(self.part),
                "use --overwrite to replace it, or another name",
            )

    def _make_part(self) -> None:
        try:
            os.close(self._open())
        except OutputError:
            if self._keep_part:
                raise
            self.part.unlink()  # whatever it was
            os.close(self._open())

    def _open(self) -> int:
        """Open the part file, made if it is not there.

        Raises:
            OutputError: a link, or somebody else's.
        """
        flags = os.O_WRONLY | os.O_CREAT
        for name in ("O_NOFOLLOW", "O_NONBLOCK"):  # a pipe is not waited for
            flags |= getattr(os, name, 0)
        refusal = OutputError(
            "the part file was put there by somebody else, or is a link",
            str(self.part),
            "remove it, or write to a folder of your own",
        )
        try:
            fd = os.open(self.part, flags, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            raise refusal from error
        if not _is_own(os.fstat(fd), self.part.parent):
            os.close(fd)
            raise refusal
        return fd

    def _is_written_elsewhere(self) -> bool:
        """Whether another process writes the part file now."""
        fd = self._open()
        try:
            return not _lock(fd, self.part)
        finally:
            os.close(fd)

    def _taken(self) -> OutputError:
        hint = "wait, or give another name"
        return OutputError("another run writes this output", str(self.path), hint)

    def _take(self) -> None:
        """Lock the part file, and empty it if it is to be made anew."""
        try:
            fd = self._open()
            try:
                is_ours = _lock(fd, self.part)
                if is_ours and not self._keep_part:
                    os.ftruncate(fd, 0)
            except BaseException:
                os.close(fd)
                raise
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write: {reason(error)}", str(self.part)) from error
        if not is_ours:
            os.close(fd)
            raise self._taken()
        if sys.platform == "win32":  # a file that is open cannot be renamed there
            os.close(fd)
        else:
            self._locked = fd
        if self._keep_part:  # or its chunks would be on the disk, and its name not
            with contextlib.suppress(OSError):
                bring_to_disk(self.part.parent)

    def commit(self) -> None:
        """Put the finished file in its place.

        Raises:
            OutputError: the system refuses, or a file of that name appeared since the beginning.
        """
        if self.special:
            return
        try:
            bring_to_disk(self.whole)
            self._put_in_place()
        except FileExistsError as error:
            raise OutputError(
                "another file was put there in the meantime", str(self.path), self._way_out()
            ) from error
        except OSError as error:
            what = f"cannot be put in its place: {reason(error)}"
            raise OutputError(what, str(self.path), self._way_out()) from error
        with contextlib.suppress(OSError):  # it is there, and whole
            if self.whole != self.part:
                self.part.unlink()
            bring_to_disk(self.path.parent)

    def _put_in_place(self) -> None:
        """Rename; what must not be replaced is not, even if it has only just appeared.

        Raises:
            FileExistsError: it has.
            OSError: as the system does.
        """
        if self._overwrite:
            self.whole.replace(self.path)
        elif sys.platform == "win32":
            self.whole.rename(self.path)
        else:
            try:
                os.link(self.whole, self.path, follow_symlinks=False)
            except FileExistsError:
                raise
            except OSError:  # a file system without second names
                if os.path.lexists(self.path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                self.whole.replace(self.path)
            else:
                self.whole.unlink()

    def _way_out(self) -> str | None:
        """What can be done about a file that could not be put in its place."""
        if self._private:
            return None
        if self._keep_part:
            return f"{self.part} keeps what is done: --resume goes on"
        return f"the result is {self.part}"

    def discard_if_empty(self) -> None:
        """Remove a part file that has nothing in it."""
        if not self.special:
            with contextlib.suppress(OSError):
                if self.part.stat().st_size == 0:
                    self.part.unlink()

    def __enter__(self) -> OutputFile:
        if not self.special:
            self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        is_done = False
        try:
            if kind is None:
                self.commit()
                is_done = True
        finally:
            self._clean_up(is_done)
            if self._locked is not None:
                os.close(self._locked)
                self._locked = None

    def _clean_up(self, is_done: bool) -> None:
        """Remove what is of no use; where that fails, what led here is the error to tell."""
        if is_done or self.special:
            return
        with contextlib.suppress(OSError):
            if self.whole != self.part:
                self.whole.unlink()
        with contextlib.suppress(OSError):
            if self._private:
                self.part.unlink()
            else:
                self.discard_if_empty()


def _lock(fd: int, path: Path) -> bool:
    """Lock a file that is open; whether nobody else has, and the file is still the one at a path.

    Where files cannot be locked there is no protection.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network's file system without locks
        return True
    try:
        # The other run may have put the file in its place in between.
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
