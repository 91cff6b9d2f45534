"""``vs-deblur gimp …``: the action in GIMP 3, put there, taken away, examined, and its worker."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import click

from vs_deblur import gimp
from vs_deblur._version import __version__
from vs_deblur.bridge import PROTOCOL, Message, pack, unpack
from vs_deblur.cli._progress import note, tell
from vs_deblur.errors import (
    DeblurError,
    DeviceError,
    InputError,
    OutputError,
    ProtocolError,
    WeightsError,
    reason,
)
from vs_deblur.stdout import private_stdout

RESTART = "restart GIMP: the action is in Filters > Enhance > Motion Deblur…"
_PATIENCE = 120.0  # seconds in which a worker answers; it loads torch and a network meanwhile


@click.group()
def command() -> None:
    """Install the action for GIMP 3 (Filters > Enhance > Motion Deblur…)."""


_profile = click.option(
    "--profile",
    "profile",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A profile of GIMP, e.g. ~/.config/GIMP/3.0. [default: every one that is found]",
)


def _chosen(profile: Path | None) -> list[Path]:
    """The profile that was named, or all that are there.

    Raises:
        InputError: none.
    """
    if profile is not None:
        if not profile.is_dir():
            raise InputError("no such folder", str(profile), "start GIMP once: it makes it")
        if not gimp.is_profile(profile):
            hint = "name the one of a version, e.g. ~/.config/GIMP/3.0"
            raise InputError("not a profile of GIMP 3", str(profile), hint)
        return [profile]
    found = gimp.profiles()
    if not found:
        if gimp.is_snap():
            raise InputError(
                "GIMP from Snap may not start other programs",
                None,
                "use GIMP from your distribution, Flatpak or AppImage",
            )
        places = ", ".join(map(str, gimp.roots(sys.platform, os.environ, gimp.home_folder())))
        raise InputError("no profile of GIMP 3", places, "start GIMP once, or name it: --profile")
    return found


@command.command()
@_profile
@click.option(
    "--model",
    "models",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A safetensors file of ours to offer as well; may be given again, is remembered.",
)
def install(profile: Path | None, models: tuple[Path, ...]) -> None:
    """Put the action into GIMP's profiles. Run it again after an update of vs-deblur."""
    chosen = _chosen(profile)
    here = gimp.settings_here(models)
    for each in chosen:
        own = gimp.own_models(each)
        settings = replace(here, models=gimp.choices((*own, *models))) if own else here
        tell(f"installed {__version__}: {gimp.install(each, settings)}")
        tell(f"models: {', '.join(label for _, label in settings.models)}")
    tell(f"it runs {sys.executable}")
    tell(RESTART)


@command.command()
@_profile
def uninstall(profile: Path | None) -> None:
    """Take the action out of GIMP's profiles."""
    removed = [folder for each in _chosen(profile) if (folder := gimp.uninstall(each))]
    for folder in removed:
        tell(f"removed {folder}")
    tell("restart GIMP" if removed else "the action was not installed")


# ---------------------------------------------------------------------------- doctor


class Client:
    """Starts a worker as the action does, and asks it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._requests: IO[bytes] = process.stdin
        self._answers: IO[bytes] = process.stdout

    def _read(self, count: int) -> bytearray:
        found = self._answers.read(count)
        if len(found) < count:
            raise ProtocolError("the worker ended without an answer")
        return bytearray(found)

    def say(self, kind: str, payload: Any = b"", **fields: Any) -> None:
        """Send a message. Whether the worker is still there is told by its answer."""
        with suppress(BrokenPipeError):
            for part in pack(kind, payload, **fields):
                self._requests.write(part)
            self._requests.flush()

    def listen(self) -> Message:
        """The next answer.

        Raises:
            ProtocolError: none came, or it was no frame.
            DeblurError: the worker answered with an error; its class has the error's exit code.
        """
        message = unpack(self._read)
        if message.kind == "error":
            kinds = {5: WeightsError, 6: DeviceError}
            raise kinds.get(message.fields.get("code", 1), DeblurError)(message.fields["message"])
        return message

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a message and read its answer."""
        self.say(kind, **fields)
        return self.listen().fields


@contextmanager
def worker_of(settings: gimp.Settings) -> Iterator[Client]:
    """A worker, started as the action starts it; ended at the end.

    Raises:
        DeviceError: it cannot be started, or ended, or answered with something else.
    """
    python = os.environ.get("VS_DEBLUR_PYTHON") or settings.python
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [python, *settings.argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=gimp.clean_environment(os.environ),
            )
        except OSError as error:
            what = f"the worker cannot be started: {reason(error)}"
            raise DeviceError(what, python, "run `vs-deblur gimp install`") from error
        watchdog = threading.Timer(_PATIENCE, process.kill)
        watchdog.start()
        try:
            yield Client(process)
        except (ProtocolError, OSError) as error:
            process.kill()
            process.wait()
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            what = error.what if isinstance(error, ProtocolError) else "the worker ended"
            raise DeviceError("; ".join((what, *said[-1:])), python) from error
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what could not be sent
                        pipe.close()


def _examine(profile: Path) -> Iterator[str]:
    """What is found in a profile, line by line.

    Raises:
        DeblurError: something is wrong with it.
    """
    folder = gimp.folder_of(profile)
    version = gimp.installed_version(profile)
    if version is None:
        raise DeviceError("the action is not there", str(folder), "run `vs-deblur gimp install`")
    action = folder / f"{gimp.NAME}.py"
    if os.name == "posix" and not os.access(action, os.X_OK):
        raise DeviceError("the action is not executable", str(action), f"chmod +x {action}")
    yield f"action {version}: {action}"
    settings = gimp.Settings.read(action.with_suffix(".json"))
    if {version, settings.version} != {__version__}:
        raise DeviceError(
            f"the action is of version {version}, its settings of {settings.version}, vs-deblur "
            f"is {__version__}",
            str(folder),
            "run `vs-deblur gimp install` again",
        )
    with worker_of(settings) as worker:
        hello = worker.ask("hello", protocol=PROTOCOL, version=__version__)
        theirs = hello.get("protocol"), hello.get("version")
        if theirs != (PROTOCOL, __version__):
            raise DeviceError(
                f"the worker is of version {theirs[1]}, protocol {theirs[0]}, the action of "
                f"{__version__}, {PROTOCOL}",
                settings.python,
                "run `vs-deblur gimp install` again",
            )
        yield f"worker {__version__}: {' '.join((settings.python, *settings.argv))}"
        for value, label in settings.models:
            loaded = worker.ask("load", model=value)
            yield f"model {label}: {loaded.get('description')}"


@command.command()
@_profile
@click.pass_context
def doctor(context: click.Context, profile: Path | None) -> None:
    """Examine the action in each profile: files, version, worker, models, device.

    Ends with 0 if all is well, 5 if a model cannot be loaded, 6 if anything else is wrong.
    """
    try:
        chosen = _chosen(profile)
    except InputError as error:
        raise DeviceError(error.what, error.where, error.hint) from error
    codes = set()
    for each in chosen:
        tell(f"{each}:")
        try:
            for line in _examine(each):
                tell(f"  ok    {line}")
        except DeblurError as error:
            tell(f"  fail  {error}")
            codes.add(5 if isinstance(error, WeightsError) else 6)
    context.exit(min(codes, default=0))


# ---------------------------------------------------------------------------- worker


@command.command()
@click.pass_context
def worker(context: click.Context) -> None:
    """The process that the action starts: frames on stdin and stdout (docs/gimp-bridge.md)."""
    from vs_deblur.cli._allocator import keep_freed_memory
    from vs_deblur.hosts.photo import deblur
    from vs_deblur.hosts.worker import Worker

    if sys.stdin is None or os.isatty(0):
        raise InputError("the worker is started by GIMP", None, "see `vs-deblur gimp install`")
    keep_freed_memory()
    note(f"worker {__version__}, process {os.getpid()}")
    logging.captureWarnings(True)
    try:
        with private_stdout() as answers:
            context.exit(Worker(0, answers, deblur).run())
    except OSError as error:
        raise OutputError(f"cannot answer: {reason(error)}") from error
