"""Workers that fail, and a picture that is large, in a real GIMP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gimp.conftest import echo, worker
from tests.gimp.host import Gimp
from tests.pictures import waves
from vs_deblur import gimp as place
from vs_deblur.photofile import Picture, write

AGAIN = "`uv run vs-deblur gimp install`), and restart GIMP."
DOCTOR = "`vs-deblur gimp doctor` in a terminal tells more."
LOG = "The log is {home}/cache/vs-deblur/gimp.log."

# What is wrong with the worker, and what the message says of it.
FAULTS = {
    "nothing is installed": ("does not know where vs-deblur is", AGAIN, LOG),
    "the interpreter is missing": ("cannot be started: No such file", "/gone/python", AGAIN, LOG),
    "the interpreter has no vs-deblur": ("ended unexpectedly (exit code 1)", DOCTOR, LOG),
    "rubbish": ("answered with something else", AGAIN, LOG),
    "version": ("vs-deblur 9.9 does not fit this action", AGAIN, LOG),
    "error": ("no such weights (somewhere); get them", AGAIN, LOG),
    "killed": ("ended unexpectedly (exit code -9)", "memory ran out", DOCTOR, LOG),
    "no weights": ("weights", AGAIN, LOG),
    "short": ("gave another picture back", AGAIN, LOG),
    "uneven": ("gave another picture back", AGAIN, LOG),
    "silent": ("did not start within 2 seconds", DOCTOR, LOG),
}


@pytest.fixture(scope="module")
def found(gimp: Gimp, folder: Path) -> dict[str, Any]:
    write(Picture(waves(90, 120, 3), 3), folder / "photo.png", "png")
    real = place.settings_here()
    # A real worker whose models are gone.
    lost = (
        "from vs_deblur import weights; from pathlib import Path;"
        "weights.weights_folder = lambda: Path('/gone');"
        "from vs_deblur.cli import main; main(['gimp', 'worker'])"
    )
    faults = {
        "nothing is installed": json.dumps({}),
        "the interpreter is missing": worker(*real.argv, python="/gone/python"),
        "the interpreter has no vs-deblur": worker("-I", "-c", "import vs_deblur_is_not_here"),
        "no weights": worker("-I", "-c", lost),
    }
    faults |= {
        name: echo(name) for name in ("rubbish", "version", "error", "killed", "short", "uneven")
    }
    assert faults.keys() | {"silent"} == FAULTS.keys()
    picture, silent = str(folder / "photo.png"), echo("silent")
    return gimp.script("faults.py", folder, faults=faults, silent=silent, picture=picture)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_said_and_the_image_untouched(
    found: dict[str, Any], gimp: Gimp, name: str
) -> None:
    case = found[name]
    assert not case["ok"]
    for words in FAULTS[name]:
        assert words.format(home=gimp.home) in case["said"]
    assert case["same"]
    assert not case["dirty"]


def test_the_log_says_what_the_worker_said(found: dict[str, Any], gimp: Gimp) -> None:
    assert not found["the interpreter has no vs-deblur"]["ok"]
    log = gimp.home / "cache" / "vs-deblur" / "gimp.log"
    assert "No module named 'vs_deblur_is_not_here'" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0  # what is worked on is nobody else's business


def test_no_worker_is_left(found: dict[str, Any]) -> None:
    assert [case["left"] for case in found.values()] == [0] * len(FAULTS)


@pytest.fixture(scope="module")
def large(gimp: Gimp, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    assert found
    (folder / "result.json").unlink()
    result = gimp.script("large.py", folder, echo=echo("watch", folder / "diary"))
    return result | {"peak": int((folder / "diary.peak").read_text()) * 1024}


def test_24_megapixels_come_back_as_they_went(large: dict[str, Any]) -> None:
    assert large["ok"], large["said"]
    assert large["same"]


def test_24_megapixels_take_little_memory_in_the_action(large: dict[str, Any]) -> None:
    samples = 4 * 24_000_000
    assert large["peak"] < 400e6 + 2 * samples
