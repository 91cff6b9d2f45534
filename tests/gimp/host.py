"""A real GIMP 3 that runs our scripts: one that is installed, or a tree made by ``.ci/gimp``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

INSIDE = Path(__file__).parent / "inside"
NAMES = ("gimp-console-3.2", "gimp-console-3.0", "gimp-console-3", "gimp-console")
_VERSION = re.compile(r"version (3\.\d+\.\d+)")


@dataclass(frozen=True)
class Gimp:
    """A GIMP, and the user whose settings it uses.

    Attributes:
        console: the program without windows.
        version: e.g. "3.0.4".
        home: folder of the user; anything below it can be written to by GIMP.
        tree: folder that holds GIMP and all it needs, None for one that is installed.
    """

    console: str
    version: str
    home: Path
    tree: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def profile(self) -> Path:
        """Its settings."""
        return self.home / "profile"

    def used_last(self, values: str | None) -> None:
        """What was asked for in the last dialog; None: there was none."""
        name = "GimpProcedureConfigRun-plug-in-vs-deblur.last"
        path = self.profile / "plug-in-settings" / name
        path.unlink(missing_ok=True)
        if values is not None:
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"# settings\n\n{values}\n\n# end of settings\n")

    def run(
        self, command: Iterable[object], *, timeout: float = 280.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program beside GIMP, as the user."""
        own = {
            "GIMP3_DIRECTORY": str(self.profile),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "HOME": str(self.home),
            **environment,
        }
        arguments = [str(a) for a in command]
        around = dict(os.environ)
        if self.tree is None:
            around |= own
        else:
            around["BIND"] = " ".join(dict.fromkeys((f"w:{self.home}", *map(str, _python()))))
            around["INSIDE_HOME"] = str(self.home)
            around["INSIDE_ENVIRONMENT"] = " ".join(f"{k}={v}" for k, v in own.items())
            arguments = [str(ROOT / ".ci" / "gimp"), "run", str(self.tree), *arguments]
        return subprocess.run(
            arguments,
            env=around,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )

    def script(self, name: str, folder: Path, **inputs: Any) -> dict[str, Any]:
        """Run a script of ``inside`` in a GIMP without windows; what it found.

        Args:
            name: of the script.
            folder: below :attr:`home`; the script's ``FOLDER``.
            inputs: the script's ``INPUTS``.
        """
        result = folder / "result.json"
        (folder / "inputs.json").write_text(json.dumps(inputs))
        code = f"import runpy; runpy.run_path({str(INSIDE / name)!r})"
        done = self.run(
            [
                self.console,
                *("--no-interface", "--no-data", "--no-fonts", "--quit"),
                *("--batch-interpreter", "python-fu-eval", "--batch", code),
            ],
            PYTHONPATH=str(INSIDE),
            VS_DEBLUR_TEST=str(folder),
        )
        assert result.is_file(), done.stdout
        found: dict[str, Any] = json.loads(result.read_text())
        assert "traceback" not in found, found["traceback"]
        return found


def _python() -> set[Path]:
    """Folders that the Python of these tests needs."""
    found = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve(), ROOT}
    return {p for p in found if not any(p != q and p.is_relative_to(q) for q in found)}


def find(home: Path) -> Gimp | None:
    """The GIMP 3 of this machine: the tree that ``VS_DEBLUR_GIMP`` names, or an installed one."""
    named = os.environ.get("VS_DEBLUR_GIMP")
    candidates: list[tuple[str, Path | None]] = []
    if named:
        candidates.append(("gimp-console", Path(named).resolve()))
    candidates += [(found, None) for name in NAMES if (found := shutil.which(name))]
    for console, tree in candidates:
        gimp = Gimp(console, "", home, tree)
        version = _VERSION.search(gimp.run([console, "--version"]).stdout)
        if version is not None:
            return Gimp(console, version[1], home, tree)
    return None
