"""A GIMP for the tests of the action."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.gimp.host import INSIDE, Gimp, find
from vs_deblur import gimp as place


@pytest.fixture(scope="session")
def bare_gimp(tmp_path_factory: pytest.TempPathFactory) -> Gimp:
    """A real GIMP 3 with a profile that has been started never yet."""
    home = tmp_path_factory.mktemp("gimp")
    found = find(home)
    if found is None:
        pytest.skip("SKIPPED: NO GIMP 3; .ci/gimp makes one, VS_DEBLUR_GIMP=DIR names it")
    found.profile.mkdir()
    (found.profile / "gimprc").write_text(
        f'(check-updates no)\n(show-welcome-dialog no)\n(config-version "{found.version}")\n'
    )
    return found


@pytest.fixture(scope="module")
def gimp(bare_gimp: Gimp) -> Gimp:
    """The same with the action installed, as users install it.

    Anew for every module: the scripts of the others put workers of their own into its settings.
    """
    place.install(bare_gimp.profile, place.settings_here())
    return bare_gimp


def worker(*argv: object, python: str = sys.executable) -> str:
    """Settings that start a worker of the tests."""
    return place.Settings(python, tuple(map(str, argv)), "9.9", (("auto", "Automatic"),)).text()


def echo(*arguments: object) -> str:
    """Settings that start :mod:`tests.gimp.inside.echo`."""
    return worker("-I", INSIDE / "echo.py", *arguments)


@pytest.fixture(scope="module")
def folder(gimp: Gimp, request: pytest.FixtureRequest) -> Path:
    """A folder that GIMP can write to."""
    path: Path = gimp.home / request.module.__name__.rpartition(".")[2]
    path.mkdir()
    return path
