"""The action as its users meet it: GIMP with windows, on a screen that nobody sees."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.gimp.conftest import echo, worker
from tests.gimp.host import INSIDE, Gimp
from vs_deblur import gimp as place
from vs_deblur.demo_scene import Scene, render
from vs_deblur.photofile import Picture, write

TOOLS = ("Xvfb", "openbox", "xdotool", "scrot")
Screen = NDArray[np.int16]


# The real worker with a network that takes ten minutes.
SLOW = """
import time
from vs_deblur.cli import main
from vs_deblur.hosts import photo
photo.deblur = lambda *_: time.sleep(600)
main(['gimp', 'worker'])
"""


@pytest.fixture(scope="module")
def found(gimp: Gimp, folder: Path) -> dict[str, Any]:
    where = gimp.tree / "usr/bin" if gimp.tree else None
    missing = [t for t in TOOLS if not shutil.which(t, path=str(where) if where else None)]
    if missing:
        pytest.skip(f"SKIPPED: GIMP 3 IS THERE, BUT NOT {', '.join(missing).upper()}")
    blurred, _ = next(render(Scene(640, 480, frames=1)))
    write(Picture(blurred, 3), folder / "photo.png", "png")
    inputs = {
        "gimp": gimp.console.replace("gimp-console", "gimp"),
        "picture": str(folder / "photo.png"),
        "real": place.settings_here().text(),
        "slow": worker("-I", "-c", SLOW),
        "broken": echo("version"),
    }
    (folder / "inputs.json").write_text(json.dumps(inputs))
    gimp.used_last(None)
    done = gimp.run([sys.executable, INSIDE / "window.py"], VS_DEBLUR_TEST=str(folder))
    artefacts = os.environ.get("VS_DEBLUR_ARTEFACTS")
    if artefacts:
        shutil.copytree(folder / "shots", Path(artefacts, "gimp"), dirs_exist_ok=True)
    assert (folder / "result.json").is_file(), done.stdout
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert "traceback" not in result, result["traceback"]
    return result


def screen(folder: Path, name: str) -> Screen:
    with Image.open(folder / "shots" / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def changed(folder: Path, first: str, second: str) -> int:
    """Pixels that differ between two pictures of the screen."""
    difference = np.abs(screen(folder, first) - screen(folder, second)).max(axis=2)
    return int(np.count_nonzero(difference > 2))


def test_the_result_is_one_step_to_undo(found: dict[str, Any]) -> None:
    assert "1 layer" in found["title"]
    assert not found["title"].startswith("*")
    assert "2 layers" in found["after"]
    assert found["after"].startswith("*")
    assert found["undone"] == found["title"]


def test_in_place_is_one_step_to_undo_and_repeat_does_the_same(found: dict[str, Any]) -> None:
    assert found["in_place"] == "*" + found["title"]
    assert found["repeated"] == "*" + found["title"]
    assert found["undone_again"] == found["title"]


def test_a_preview_that_failed_is_tried_again(found: dict[str, Any], folder: Path) -> None:
    assert found["mended"] == 1
    assert changed(folder, "broken_preview", "mended_preview") > 500


def test_the_preview_shows_the_difference_and_follows_the_mouse(
    found: dict[str, Any], folder: Path
) -> None:
    assert found["workers_while_open"] == 1
    assert changed(folder, "dialog", "preview") > 500, "no after beside the before"
    assert changed(folder, "preview", "line") > 300, "the line did not move"
    assert changed(folder, "line", "moved") > 20_000, "the picture did not move"


def test_cancel_in_the_dialog_leaves_nothing(found: dict[str, Any]) -> None:
    assert found["cancel_dialog"]["title"] == found["title"]


def test_cancel_of_a_run_leaves_nothing(found: dict[str, Any], folder: Path) -> None:
    assert found["cancel_run"]["title"] == found["title"]
    # Neither a message nor anything else on the screen.
    assert changed(folder, "undone", "cancelled") < 5_000


def test_a_worker_that_fails_is_a_message(found: dict[str, Any], folder: Path) -> None:
    assert found["broken"]["title"] == found["title"]
    assert not found["broken"]["dialog"]
    assert changed(folder, "cancelled", "broken") > 5_000
