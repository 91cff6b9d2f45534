"""The recipe for many files in docs/gimp.md, as it is printed there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.conftest import ROOT
from tests.gimp.host import Gimp
from tests.pictures import waves
from vs_deblur.photofile import Picture, write


def test_the_recipe_makes_a_file_of_each(gimp: Gimp, folder: Path) -> None:
    text = (ROOT / "docs" / "gimp.md").read_text(encoding="utf-8")
    found = re.search(r"```sh\n(gimp-console .*?)```", text, re.DOTALL)
    assert found is not None
    recipe = found[1].replace("/home/me/holiday", str(folder))
    recipe = recipe.replace("gimp-console", gimp.console, 1)
    for name in ("one", "two"):
        samples = np.clip(waves(60, 80, 3).astype(int) + len(name), 0, 255).astype(np.uint8)
        write(Picture(samples, 3), folder / f"{name}.png", "png")
    done = gimp.run(["sh", "-c", recipe])
    made = sorted(p.name for p in folder.glob("*-sharp.xcf"))
    assert made == ["one-sharp.xcf", "two-sharp.xcf"], done.stdout
    for path in folder.glob("*-sharp.xcf"):
        assert path.read_bytes().startswith(b"gimp xcf")
