"""Pictures of every kind of sample through the action: each in place, at two strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import FOLDER, INPUTS, Babl, Gimp, deblur, load, pixels, report, save, start


def profile(image: Any) -> str:
    found = image.get_color_profile()
    return bytes(found.get_icc_profile()).hex() if found is not None else ""


def one(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    image = load(folder / case["file"])
    if case.get("profile") == "adobe":
        image.set_color_profile(Gimp.ColorProfile.new_rgb_adobe())
    if case.get("profile") == "linear":
        image.set_color_profile(Gimp.ColorProfile.new_rgb_srgb_linear())
    if "precision" in case:
        image.convert_precision(getattr(Gimp.Precision, case["precision"]))
    layer = image.get_layers()[0]
    if "beyond" in case:  # values below 0 and above 1
        stretch = layer.get_buffer()
        box = stretch.get_extent()
        name = Babl.get_name(layer.get_format())
        stretch.set(box, name, (folder / case["beyond"]).read_bytes())
        stretch.flush()
        del stretch
        layer.update(0, 0, layer.get_width(), layer.get_height())
    name = case["name"]
    facts = {"format": Babl.get_name(layer.get_format()), "profile": profile(image)}
    (folder / f"{name}.before").write_bytes(pixels(layer))
    (folder / f"{name}.before.wire").write_bytes(pixels(layer, case["wire"]))
    still = deblur(image, strength=0.0, new_layer=False)
    (folder / f"{name}.still").write_bytes(pixels(layer))
    start(INPUTS["echo"])
    echo = deblur(image, strength=1.0, new_layer=False)
    (folder / f"{name}.echo").write_bytes(pixels(layer))
    start(INPUTS["real"])
    sharp = deblur(image, strength=1.0, new_layer=False)
    (folder / f"{name}.sharp").write_bytes(pixels(layer))
    (folder / f"{name}.sharp.wire").write_bytes(pixels(layer, case["wire"]))
    if case.get("save"):
        save(image, folder / f"{name}-sharp.png")
    facts |= {"still": still, "echo": echo, "sharp": sharp, "after": profile(image)}
    image.delete()
    return facts


def work() -> dict[str, Any]:
    return {case["name"]: one(case, FOLDER) for case in INPUTS["cases"]}


report(work)
