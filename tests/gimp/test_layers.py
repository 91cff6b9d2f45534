"""Selections, layers and refusals in a real GIMP; the worker makes negatives of 8-bit pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gimp.conftest import echo
from tests.gimp.host import Gimp

WIDTH, HEIGHT = 160, 120
Plane = NDArray[np.int16]


@pytest.fixture(scope="module")
def found(gimp: Gimp, folder: Path) -> dict[str, Any]:
    gimp.used_last("(new-layer no)")
    result = gimp.script("layers.py", folder, invert=echo("invert", folder / "diary"))
    result["diary"] = (folder / "diary").read_text().split("\n")
    return result


def original(width: int = WIDTH, height: int = HEIGHT) -> Plane:
    y, x = np.mgrid[:height, :width]
    plane: Plane = (50 + (x + 2 * y) % 100).astype(np.int16)
    return plane


def plane(case: dict[str, Any], key: str = "samples", size: tuple[int, int] | None = None) -> Plane:
    assert case["ok"], case["said"]
    width, height = size or case["size"]
    found = np.frombuffer(bytes.fromhex(case[key]), np.uint8).astype(np.int16)
    return found.reshape(height, width)


def test_the_result_is_a_new_layer_above(found: dict[str, Any]) -> None:
    case = found["whole"]
    assert np.array_equal(plane(case), 255 - original())
    assert np.array_equal(plane(case, "original"), original())
    assert case["names"] == ["photo (Motion Deblur)", "photo"]
    assert case["selected"] == ["photo (Motion Deblur)"]
    assert case["offsets"] == [0, 0]
    assert case["same"], "something else was changed"


def test_only_the_selection_changes(found: dict[str, Any]) -> None:
    expected = original()
    expected[20:60, 30:80] = 255 - expected[20:60, 30:80]
    assert np.array_equal(plane(found["rectangle"]), expected)
    assert found["rectangle"]["names"] == ["photo"]


def test_a_feathered_selection_is_blended(found: dict[str, Any]) -> None:
    result, before = plane(found["feathered"]), original()
    share = (result - before) / (255 - 2 * before)
    assert share[60, 80] == 1.0
    assert np.all(share[:10] == 0)
    assert np.all(share[:, :15] == 0)
    across = share[60, 25:56]
    assert np.all(np.diff(across) > -0.05)
    assert np.count_nonzero((across > 0.1) & (across < 0.9)) >= 5


def test_a_layer_beside_the_image(found: dict[str, Any]) -> None:
    # At 100, -10 of the image; the selection covers x < 130, 0 <= y < 20 of it.
    expected = original(60, 50)
    expected[10:30, :30] = 255 - expected[10:30, :30]
    assert np.array_equal(plane(found["small_with_offset"]), expected)
    assert found["small_with_offset"]["alpha"] == [200]


def test_a_layer_larger_than_the_image_changes_as_a_whole(found: dict[str, Any]) -> None:
    assert np.array_equal(plane(found["larger"]), 255 - original(WIDTH + 90, HEIGHT + 70))


@pytest.mark.parametrize("name", ["grey", "locked_alpha"])
def test_in_place(found: dict[str, Any], name: str) -> None:
    assert np.array_equal(plane(found[name]), 255 - original())


def test_a_mask_is_kept_and_copied(found: dict[str, Any]) -> None:
    assert np.array_equal(plane(found["masked"]), 255 - original())
    assert found["masked"]["masks"]


def test_several_layers_have_one_worker(found: dict[str, Any]) -> None:
    case = found["several"]
    assert case["names"] == ["above (Motion Deblur)", "above", "group"]
    assert case["children"] == ["inside (Motion Deblur)", "inside"]
    assert sorted(case["selected"]) == ["above (Motion Deblur)", "inside (Motion Deblur)"]
    assert np.array_equal(plane(case), 255 - original(50, 60))
    assert np.array_equal(plane(case, "inside", (WIDTH, HEIGHT)), 255 - original())
    # A line of a start for each run that was not refused, and one more picture than runs.
    done = [n for n, c in found.items() if n != "diary" and c["ok"]]
    assert found["diary"].count("started") == len(done) + 1  # refused_outside starts one
    assert found["diary"].count("done") == len(done) + 1


def test_pixels_that_are_locked_are_no_obstacle_to_a_new_layer(found: dict[str, Any]) -> None:
    assert np.array_equal(plane(found["locked_as_new_layer"]), 255 - original())


def test_last_values(found: dict[str, Any]) -> None:
    assert np.array_equal(plane(found["last_values"]), 255 - original())
    assert found["last_values"]["names"] == ["photo"], "the last values said: in place"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("indexed", "Image > Mode > RGB"),
        ("group", "select the layers in it"),
        ("locked", "unlock them or ask for a new layer"),
        ("outside", "outside of layer “photo”"),
        ("mask", "select a layer"),
        ("channel", "select a layer"),
    ],
)
def test_what_cannot_be_done_is_refused(found: dict[str, Any], name: str, words: str) -> None:
    case = found[f"refused_{name}"]
    assert not case["ok"]
    assert words in case["said"]
    assert case["same"]


# ---------------------------------------------------------------------------- changed meanwhile


@pytest.fixture(scope="module")
def changed(gimp: Gimp, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    assert found
    (folder / "result.json").unlink()
    return gimp.script("changed.py", folder, invert=echo("invert"))


@pytest.mark.parametrize("new", [0, 1])
@pytest.mark.parametrize(
    "name", ["selection", "size", "deleted", "deleted_before_its_turn", "alpha"]
)
def test_what_was_changed_meanwhile_is_not_overwritten(
    changed: dict[str, Any], name: str, new: int
) -> None:
    case = changed[f"{name} {new}"]
    assert case["said"] == "The layer or the selection was changed meanwhile: do it again."
    assert case["same"]


@pytest.mark.parametrize("new", [0, 1])
def test_what_was_not_changed_meanwhile_is(changed: dict[str, Any], new: int) -> None:
    assert changed[f"nothing {new}"] == {"said": "", "same": False}


def test_a_layer_that_was_locked_meanwhile(changed: dict[str, Any]) -> None:
    assert "“first” are locked" in changed["lock 0"]["said"]
    assert changed["lock 0"]["same"]


@pytest.mark.parametrize("new", [0, 1])
def test_a_group_that_is_locked(changed: dict[str, Any], new: int) -> None:
    case = changed[f"group {new}"]
    assert not case["ok"]
    assert "The group “group” is locked" in case["said"]
    assert case["same"]
