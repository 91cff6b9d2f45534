"""Every kind of sample through the action in a real GIMP, against the command's own pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gimp.conftest import echo
from tests.gimp.host import Gimp
from tests.pictures import P3, PROFILE, waves
from vs_deblur import gimp as place
from vs_deblur.engine import Deblurrer
from vs_deblur.hosts.photo import deblur
from vs_deblur.photofile import Picture, read, write
from vs_deblur.photofile.picture import Metadata

HEIGHT, WIDTH = 90, 120
_TYPES: dict[str, Any] = {"u8": "u1", "u16": "<u2", "half": "<f2", "float": "<f4"}


@dataclass(frozen=True)
class Kind:
    """A kind of picture.

    Attributes:
        file: the picture that GIMP loads.
        wire: the encoding in which the samples are to travel.
        precision: GIMP's name of the type that it is brought to.
        profile: one of GIMP's own that it gets.
        saved: whether GIMP's PNG is compared with the command's.
        beyond: whether it gets values below 0 and above 1.
    """

    file: str
    wire: str
    precision: str | None = None
    profile: str | None = None
    saved: bool = False
    beyond: bool = False


KINDS = {
    "u8_alpha": Kind("rgba8.png", "R'G'B'A u8", saved=True),
    "u8_icc": Kind("icc8.png", "R'G'B' u8", saved=True),
    "u16_p3": Kind("p3.png", "R'G'B' u16", saved=True),
    "u16": Kind("rgb16.png", "R'G'B' u16", saved=True),
    "u16_adobe": Kind("rgb16.png", "R'G'B' u16", profile="adobe", saved=True),
    "u8_perceptual": Kind("rgb8.png", "R~G~B~ u8", "U8_PERCEPTUAL"),
    "u16_linear": Kind("rgb16.png", "R'G'B' float", "U16_LINEAR"),
    "half": Kind("rgb16.png", "R'G'B' half", "HALF_NON_LINEAR"),
    "float": Kind("rgb16.png", "R'G'B' float", "FLOAT_NON_LINEAR", beyond=True),
    "float_alpha": Kind("rgba16.png", "R'G'B'A float", "FLOAT_NON_LINEAR"),
    "linear_profile": Kind("rgb16.png", "R~G~B~ float", "FLOAT_LINEAR", profile="linear"),
    "grey8_alpha": Kind("greya8.png", "Y'A u8", saved=True),
    "grey16": Kind("grey16.png", "Y' u16", saved=True),
    "grey_float": Kind("grey16.png", "Y' float", "FLOAT_NON_LINEAR"),
}


def pictures(folder: Path) -> None:
    """The files of :data:`KINDS`: waves with some grain, so that the network has work."""
    rng = np.random.default_rng(5)
    for bits in (8, 16):
        kind = np.uint8 if bits == 8 else np.uint16
        top = np.iinfo(kind).max
        for name, colours, alpha in (
            ("rgb", 3, 0),
            ("rgba", 3, 1),
            ("grey", 1, 0),
            ("greya", 1, 1),
        ):
            samples = waves(HEIGHT, WIDTH, colours + alpha, np.float64)
            samples += rng.normal(0, 0.03, samples.shape)
            values = np.clip(np.rint(samples * top), 0, top).astype(kind)
            if alpha:
                values[:20, :30, -1] = 0
            picture = Picture(values, colours, "straight" if alpha else None)
            write(picture, folder / f"{name}{bits}.png", "png")
            if name == "rgb":
                picture.meta = Metadata(icc=PROFILE if bits == 8 else P3)
                write(picture, folder / ("icc8.png" if bits == 8 else "p3.png"), "png")


@pytest.fixture(scope="module")
def found(gimp: Gimp, folder: Path) -> dict[str, Any]:
    pictures(folder)
    stretched = waves(HEIGHT, WIDTH, 3, np.float32)
    assert stretched.min() < 0
    assert stretched.max() > 1
    (folder / "beyond.f32").write_bytes(stretched.tobytes())
    cases = []
    for name, kind in KINDS.items():
        case = {"name": name, "file": kind.file, "wire": kind.wire, "save": kind.saved}
        case |= {"precision": kind.precision} if kind.precision else {}
        case |= {"profile": kind.profile} if kind.profile else {}
        case |= {"beyond": "beyond.f32"} if kind.beyond else {}
        cases.append(case)
    real = place.settings_here().text()
    return gimp.script("kinds.py", folder, cases=cases, echo=echo(), real=real)


@pytest.fixture(scope="module")
def engine() -> Deblurrer:
    return Deblurrer(kind="photo")


def samples(path: Path, kind: Kind) -> NDArray[Any]:
    """What GIMP wrote in the encoding of the wire."""
    colours, _, name = kind.wire.rpartition(" ")
    channels = sum(colours.count(letter) for letter in "RGBYA")
    return np.frombuffer(path.read_bytes(), _TYPES[name]).reshape(HEIGHT, WIDTH, channels)


@pytest.mark.parametrize("name", KINDS)
def test_strength_0_changes_no_bit(found: dict[str, Any], folder: Path, name: str) -> None:
    assert found[name]["still"]["ok"], found[name]["still"]["said"]
    assert (folder / f"{name}.still").read_bytes() == (folder / f"{name}.before").read_bytes()


@pytest.mark.parametrize("name", KINDS)
def test_the_way_to_the_network_and_back_changes_nothing(
    found: dict[str, Any], folder: Path, name: str
) -> None:
    assert found[name]["echo"]["ok"], found[name]["echo"]["said"]
    before, after = ((folder / f"{name}.{s}").read_bytes() for s in ("before", "echo"))
    if KINDS[name].precision == "FLOAT_LINEAR":  # another curve and back
        first, second = (np.frombuffer(b, np.float32) for b in (before, after))
        np.testing.assert_allclose(second, first, atol=1e-6)
    else:
        assert after == before


@pytest.mark.parametrize("name", KINDS)
def test_strength_1_is_what_the_command_makes(
    found: dict[str, Any], folder: Path, engine: Deblurrer, name: str
) -> None:
    assert found[name]["sharp"]["ok"], found[name]["sharp"]["said"]
    kind = KINDS[name]
    before = samples(folder / f"{name}.before.wire", kind)
    after = samples(folder / f"{name}.sharp.wire", kind)
    colours = 1 if "Y" in kind.wire else 3
    picture = Picture(before, colours, "straight" if "A" in kind.wire else None)
    expected = deblur(picture, engine).samples
    # A curve and back change the last bit of a float; bfloat16 may make its own last bit of that.
    float_code = 2e-4 if engine.precision == "fp32" else 2**-8
    code = {"u1": 1.0, "u2": 1.0, "f2": 2**-10, "f4": float_code}[before.dtype.str[1:]]
    difference = np.abs(after.astype(np.float64) - expected.astype(np.float64))
    assert difference.max() <= code
    assert np.abs(expected.astype(np.float64) - before).max() > 2 * code, "nothing was done"


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if "A" in k.wire])
def test_alpha_is_as_it_was(found: dict[str, Any], folder: Path, name: str) -> None:
    assert found[name]["sharp"]["ok"]
    kind = KINDS[name]
    before = samples(folder / f"{name}.before.wire", kind)
    after = samples(folder / f"{name}.sharp.wire", kind)
    assert after[..., -1].tobytes() == before[..., -1].tobytes()
    # What cannot be seen has the colours that it had.
    hidden = before[..., -1] == 0
    assert hidden.any()
    assert np.array_equal(after[hidden], before[hidden])


@pytest.mark.parametrize("name", KINDS)
def test_profile_is_as_it_was(found: dict[str, Any], name: str) -> None:
    assert found[name]["after"] == found[name]["profile"]
    kind = KINDS[name]
    own = {"icc8.png": PROFILE, "p3.png": P3}.get(kind.file)
    if kind.profile:
        assert found[name]["profile"]
    if own is not None:
        assert bytes.fromhex(found[name]["profile"]) == own


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if k.saved and k.profile is None])
def test_the_file_is_what_the_command_makes(
    found: dict[str, Any], folder: Path, engine: Deblurrer, name: str
) -> None:
    assert found[name]["sharp"]["ok"]
    mine = deblur(read(folder / KINDS[name].file), engine).samples
    theirs = read(folder / f"{name}-sharp.png").samples
    seen = np.ones(mine.shape[:2], bool) if mine.shape[2] in (1, 3) else mine[..., -1] > 0
    assert np.abs(mine[seen].astype(int) - theirs[seen].astype(int)).max() <= 1
