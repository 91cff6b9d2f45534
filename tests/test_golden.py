"""Every network gives what it gave when ``tests/golden.json`` was written.

Exactly where the kind of processor and the version of torch are the same, within a stated tolerance
everywhere else. See tests/golden.py for how the file comes about.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import golden
from tests.golden import CASES, FILE, Case, Figures, Kind, figures, results
from vs_deblur_models.registry import ENTRIES

COMMAND = "python -m tests.golden --write"
IDS = [c.name for c in CASES]


@cache
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


@cache
def computed(number: int) -> list[Figures]:
    with golden.one_thread():
        return [figures(f) for f in results(CASES[number])]


def of_file(case: Case) -> list[Figures]:
    if case.config is None:
        check_weights(case.network)
    assert case.name in recorded()["cases"], f"a new case: {COMMAND}"
    return [Figures(**f) for f in recorded()["cases"][case.name]]


def check_weights(name: str) -> None:
    here, there = golden.weights_here()[name], recorded()["weights"].get(name)
    assert here == there, (
        f"regenerate: {FILE.name} belongs to other weights of {name} "
        f"(sha256 {there}, shipped are {here}): {COMMAND}"
    )


def same_kind() -> None:
    there, here = Kind(**recorded()["kind"]), golden.kind_here()
    if there != here:
        pytest.skip(f"exact checksums hold on {there}, this is {here}: only the tolerance is asked")


def test_what_is_made_by_integers_is_the_same_here() -> None:
    assert golden.made_here() == recorded()["made"]


@pytest.mark.parametrize("name", sorted({c.network for c in CASES if c.config is None}))
def test_the_file_belongs_to_the_shipped_weights(name: str) -> None:
    check_weights(name)


def test_the_file_has_these_cases_and_no_others() -> None:
    assert list(recorded()["cases"]) == IDS, f"regenerate: {COMMAND}"


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_frames_are_within_the_tolerance(case: Case) -> None:
    wanted, got = of_file(case), computed(CASES.index(case))
    assert len(wanted) == len(got)
    for n, (a, b) in enumerate(zip(wanted, got, strict=True)):
        allowed = case.tolerance * max(1.0, a.largest)
        for name in ("means", "samples"):
            differences = np.subtract(getattr(a, name), getattr(b, name))
            assert np.abs(differences).max() <= allowed, f"{name} of frame {n}"
        assert abs(a.largest - b.largest) <= allowed, f"frame {n}"


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_frames_are_exact_on_the_same_kind(case: Case) -> None:
    same_kind()
    wanted, got = of_file(case), computed(CASES.index(case))
    assert [f.crc for f in got] == [f.crc for f in wanted]
    assert [f.crc8 for f in got] == [f.crc8 for f in wanted]


# --------------------------------------------------------------------------- the figures themselves


def test_frames_of_a_case_differ_and_figures_see_small_changes() -> None:
    frame = results(CASES[4])[0]
    base = figures(frame)
    other = frame.copy()
    other[1, 20, 30] += 1e-6
    assert figures(other).crc != base.crc
    assert figures(other).crc8 == base.crc8
    shifted = figures(frame + np.float32(2e-4))
    assert shifted.crc8 != base.crc8
    assert np.abs(np.subtract(shifted.means, base.means)).min() > CASES[4].tolerance
    assert len({f["crc"] for f in recorded()["cases"][CASES[4].name]}) == CASES[4].frames


def test_other_weights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "weights_here", lambda: {"photo_lite": "0" * 64})
    with pytest.raises(AssertionError, match=r"regenerate.*--write"):
        of_file(next(c for c in CASES if c.name == "photo_lite shipped"))


def test_another_kind_skips_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(golden.kind_here(), capability="VSX")
    monkeypatch.setattr(golden, "kind_here", lambda: other)
    with pytest.raises(pytest.skip.Exception, match="VSX"):
        same_kind()


def test_the_file_is_written_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(golden, "FILE", tmp_path / "golden.json")
    monkeypatch.setattr(golden, "CASES", CASES[4:5])
    golden.write()
    written = json.loads((tmp_path / "golden.json").read_text())
    assert list(written["cases"]) == IDS[4:5]
    assert len(written["cases"][IDS[4]]) == CASES[4].frames


def test_every_network_has_golden_figures() -> None:
    assert {case.network for case in CASES} == ENTRIES.keys()
