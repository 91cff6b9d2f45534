"""Output files: refused before any work if they cannot be, written as ``.part``, then renamed.

The name of a part file can be guessed. In a folder where others may write, such as ``/tmp``, one of
theirs is never written to, and no link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
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


class OutputFile:
    """A file to be made. As a context manager: leaving it normally puts the file in its place,
    leaving it by an error leaves what was written as ``<name>.part``, or nothing if that is empty.

    Pipes and devices (``/dev/null``) are written as they are.

    Args:
        path: the file to make.
        overwrite: whether a file of that name may be replaced.
        inputs: files that must not be the output.
        keep_part: whether a part file that is there is to be gone on with, not emptied.
        private: whether the part file is of this process alone and goes away on an error: for
            what is written in one go, maybe by two processes at once.

    Raises:
        UsageError: the output is one of the inputs, or exists.
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
        self.special = False
        self._check(overwrite, inputs)
        #: where to write
        ending = f".{os.getpid()}.part" if private else ".part"
        self.part = self.path if self.special else self.path.with_name(self.path.name + ending)
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

    def _probe(self, inputs: tuple[str | Path, ...]) -> None:
        """Create the part file: the one sure way to know that it can be written."""
        folder = self.path.parent
        for source in inputs:
            with contextlib.suppress(OSError):
                if self.part.samefile(source):
                    raise UsageError("output would be written over the input", str(self.part))
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

    def _make_part(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        if not self._keep_part:
            self.part.unlink(missing_ok=True)  # whatever it was
            flags |= os.O_EXCL
        try:
            descriptor = os.open(self.part, flags, 0o666)
            try:
                own = _is_own(os.fstat(descriptor), self.part.parent)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            own = False
        if not own:
            raise OutputError(
                "the part file was put there by somebody else, or is a link",
                str(self.part),
                "remove it, or write to a folder of your own",
            )

    def commit(self) -> None:
        """Put the finished file in its place.

        Raises:
            OutputError: the system refuses.
        """
        if self.special:
            return
        try:
            self.part.replace(self.path)
        except OSError as error:
            raise OutputError(f"cannot rename: {reason(error)}", str(self.part)) from error

    def discard_if_empty(self) -> None:
        """Remove a part file that has nothing in it."""
        if not self.special:
            with contextlib.suppress(OSError):
                if self.part.stat().st_size == 0:
                    self.part.unlink()

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        elif self._private and not self.special:
            self.part.unlink(missing_ok=True)
        else:
            self.discard_if_empty()
