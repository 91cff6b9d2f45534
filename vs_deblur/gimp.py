"""The action's place in GIMP: profiles, and what lies in them.

An action is a folder ``plug-ins/vs-deblur`` in a profile of GIMP 3 with two files: the action
itself, ``vs-deblur.py``, run by GIMP's own Python, and ``vs-deblur.json``, which says how to start
the worker (:mod:`vs_deblur.hosts.worker`) in ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vs_deblur._version import __version__
from vs_deblur.errors import InputError, OutputError, WeightsError, reason

logger = logging.getLogger(__name__)

NAME = "vs-deblur"
_PROFILE = re.compile(r"3\.\d+")
_OF_OUR_VERSION = re.compile(r'^VERSION = "(?P<version>[^"]+)"', re.MULTILINE)

# What a host sets for its own libraries and must not reach another Python.
HOST_VARIABLES = frozenset(
    ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "GI_TYPELIB_PATH")
)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what GIMP sets for itself."""
    return {
        name: value
        for name, value in environment.items()
        if name not in HOST_VARIABLES and not name.startswith("DYLD_")
    }


# ---------------------------------------------------------------------------- profiles


def home_folder() -> Path:
    """The user's folder.

    Raises:
        InputError: there is none, as for some users in containers.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        hint = "name the profile: --profile"
        raise InputError("the user has no home folder", None, hint) from error


def roots(platform: str, environment: Mapping[str, str], home: Path) -> list[Path]:
    """Folders that hold a profile for each version of GIMP.

    Args:
        platform: as :data:`sys.platform`.
        environment: variables that say where programs keep their settings.
        home: the user's folder.
    """
    if platform == "win32":
        return [Path(environment.get("APPDATA") or home / "AppData" / "Roaming") / "GIMP"]
    if platform == "darwin":
        return [home / "Library" / "Application Support" / "GIMP"]
    config = environment.get("XDG_CONFIG_HOME") or home / ".config"
    # A Flatpak has a place of its own where it may not use that of all others.
    return [Path(config) / "GIMP", home / ".var" / "app" / "org.gimp.GIMP" / "config" / "GIMP"]


def profiles(
    platform: str | None = None,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> list[Path]:
    """The profiles of GIMP 3 that are there, e.g. ``~/.config/GIMP/3.0``."""
    environment = os.environ if environment is None else environment
    found = []
    own = environment.get("GIMP3_DIRECTORY")  # GIMP looks there and nowhere else
    if own and Path(own).is_dir():
        found.append(Path(own))
    for root in roots(platform or sys.platform, environment, home or home_folder()):
        with suppress(OSError):
            found += sorted(p for p in root.iterdir() if _PROFILE.fullmatch(p.name) and p.is_dir())
    return list(dict.fromkeys(found))


def is_profile(folder: Path) -> bool:
    """Whether a folder looks like a profile of GIMP 3: by its name, or what GIMP leaves in it."""
    signs = ("gimprc", "sessionrc", "pluginrc", "tags.xml")
    return bool(_PROFILE.fullmatch(folder.name)) or any((folder / s).is_file() for s in signs)


def is_snap(home: Path | None = None) -> bool:
    """Whether GIMP was installed from Snap, where it may start no other program."""
    return ((home or home_folder()) / "snap" / "gimp").is_dir()


def folder_of(profile: Path) -> Path:
    """The action's folder in a profile."""
    return profile / "plug-ins" / NAME


# ---------------------------------------------------------------------------- files


def action_source() -> Path:
    """The file of the action: in the wheel, or in the checkout that is used in its place."""
    packaged = Path(str(files("vs_deblur"))) / "gimp_plugin" / f"{NAME}.py"
    if packaged.is_file():
        return packaged
    return Path(__file__).parents[1] / "gimp_plugin" / NAME / f"{NAME}.py"


@dataclass(frozen=True)
class Settings:
    """What ``vs-deblur.json`` says.

    Attributes:
        python: the interpreter that has vs-deblur.
        argv: arguments with which it runs the worker.
        version: of the vs-deblur that wrote it.
        models: value and label of each choice, "auto" first.
    """

    python: str
    argv: tuple[str, ...]
    version: str
    models: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """The file's text."""
        fields = {
            "python": self.python,
            "argv": list(self.argv),
            "version": self.version,
            "models": [list(m) for m in self.models],
        }
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read a file.

        Raises:
            InputError: it is not there or not what we write.
        """
        hint = "run `vs-deblur gimp install`"
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            models = tuple((str(value), str(label)) for value, label in fields["models"])
            argv = tuple(str(a) for a in fields["argv"])
            return cls(str(fields["python"]), argv, str(fields["version"]), models)
        except OSError as error:
            raise InputError(f"cannot be read: {reason(error)}", str(path), hint) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError("not written by vs-deblur", str(path), hint) from error


def worker_arguments(python: str) -> tuple[str, ...]:
    """How this Python runs the worker: apart from everything in the surroundings if that works.

    Isolated mode does not see packages of ``pip install --user``.
    """
    worker = ("-m", "vs_deblur", "gimp", "worker")
    probe = [python, "-I", "-c", "import vs_deblur"]
    alone = subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 0
    return ("-I", *worker) if alone else ("-E", "-P", *worker)


def choices(own: Iterable[Path] = ()) -> tuple[tuple[str, str], ...]:
    """Value and label of each model that the action offers, "auto" first.

    Args:
        own: weights files of the user.

    Raises:
        WeightsError: the manifest, or one of the files, cannot be read.
    """
    from vs_deblur.weights import load, shipped
    from vs_deblur_models.spec import takes_frames

    found = [("auto", "Automatic")]
    found += [(c.name, _label(c.name)) for c in shipped().values() if c.kind == "photo"]
    for path in dict.fromkeys(p.resolve() for p in own):
        if not path.is_file():
            raise WeightsError("no such file", str(path), "--model wants a safetensors file")
        if takes_frames(load(str(path)).network):
            logger.warning("%s was made for video: it hardly finds blur in a photo", path.name)
        label = _label(path.stem)
        if label in (taken for _, taken in found):
            label += f" ({path.parent})"
        found.append((str(path), label))
    return tuple(found)


def _label(name: str) -> str:
    """A name without underscores: some dialogs of GIMP take them for keys to press."""
    return name.replace("_", " ")


def install(profile: Path, settings: Settings) -> Path:
    """Put the action into a profile, in place of what is there; its folder.

    Raises:
        OutputError: it cannot be written.
    """
    folder = folder_of(profile)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        action = folder / f"{NAME}.py"
        _write(action, action_source().read_bytes(), executable=True)
        _write(action.with_suffix(".json"), settings.text().encode(), executable=False)
    except OSError as error:
        raise OutputError(f"cannot install: {reason(error)}", str(folder)) from error
    return folder


def _write(path: Path, content: bytes, *, executable: bool) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.chmod(0o755 if executable else 0o644)
    part.replace(path)


def uninstall(profile: Path) -> Path | None:
    """Take the action out of a profile; the folder that was removed, None if there was none.

    Raises:
        OutputError: it cannot be removed.
    """
    folder = folder_of(profile)
    if not folder.exists():
        return None
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"cannot remove: {reason(error)}", str(folder)) from error
    return folder


def installed_version(profile: Path) -> str | None:
    """The version that the action in a profile says it is of; None if there is no action."""
    try:
        text = (folder_of(profile) / f"{NAME}.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = _OF_OUR_VERSION.search(text)
    return found["version"] if found else "unknown"


def own_models(profile: Path) -> list[Path]:
    """Weights files of the user that the action in a profile offers, as far as they are good."""
    from vs_deblur.weights import load

    try:
        found = Settings.read(folder_of(profile) / f"{NAME}.json").models
    except InputError:
        return []
    good = []
    for path in (Path(value) for value, _ in found if Path(value).is_absolute()):
        try:
            load(str(path))
        except WeightsError as error:  # to install again is the remedy: it must not fail of it
            logger.warning("no longer offered: %s", error)
        else:
            good.append(path)
    return good


def settings_here(own: Sequence[Path] = ()) -> Settings:
    """Settings that start the worker in the Python that runs now."""
    python = sys.executable
    return Settings(python, worker_arguments(python), __version__, choices(own))
