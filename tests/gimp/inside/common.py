"""What the scripts share that run inside GIMP, in its own Python: no packages but gi."""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gi

gi.require_version("Babl", "0.1")
gi.require_version("Gegl", "0.4")
gi.require_version("Gimp", "3.0")
from gi.repository import Babl, Gegl, Gimp, Gio  # noqa: E402

FOLDER = Path(os.environ["VS_DEBLUR_TEST"])
INPUTS: dict[str, Any] = json.loads((FOLDER / "inputs.json").read_text())
QUIET = Gimp.RunMode.NONINTERACTIVE


def report(work: Callable[[], dict[str, Any]]) -> None:
    """Do the work, and leave what it found, or why it failed, as ``result.json``."""
    try:
        found = work()
    except BaseException:
        found = {"traceback": traceback.format_exc()}
    part = FOLDER / "result.part"
    part.write_text(json.dumps(found, indent=1))
    part.rename(part.with_name("result.json"))


def start(settings: str) -> None:
    """From now on the action starts its worker by these settings."""
    Path(Gimp.directory(), "plug-ins", "vs-deblur", "vs-deblur.json").write_text(settings)


def load(path: Path) -> Any:
    return Gimp.file_load(QUIET, Gio.File.new_for_path(str(path)))


def save(image: Any, path: Path) -> None:
    Gimp.file_save(QUIET, image, Gio.File.new_for_path(str(path)), None)


def deblur(image: Any, layers: list[Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Call the action through the PDB: whether it succeeded, what it said, how long it took."""
    procedure = Gimp.get_pdb().lookup_procedure("plug-in-vs-deblur")
    config = procedure.create_config()
    config.set_property("image", image)
    config.set_core_object_array("drawables", layers or image.get_selected_layers())
    for name, value in arguments.items():
        config.set_property(name.replace("_", "-"), value)
    begin = time.monotonic()
    result = procedure.run(config)
    failed = result.index(0) != Gimp.PDBStatusType.SUCCESS
    message = Gimp.get_pdb().get_last_error() if failed else ""
    return {"ok": not failed, "said": message, "seconds": time.monotonic() - begin}


def pixels(layer: Any, encoding: str | None = None) -> bytes:
    """All samples of a layer, as they are stored or in another encoding of the same space."""
    own = layer.get_format()
    name = Babl.get_name(Babl.format_with_space(encoding, own) if encoding else own)
    buffer = layer.get_buffer()
    box = Gegl.Rectangle.new(0, 0, layer.get_width(), layer.get_height())
    return buffer.get(box, 1.0, name, Gegl.AbyssPolicy.CLAMP)


def digest(image: Any) -> str:
    """Of everything of an image that an action could change."""
    found = hashlib.sha256()
    for layer in image.get_layers():
        found.update(repr((layer.get_name(), layer.get_offsets()[1:])).encode())
        if not isinstance(layer, Gimp.GroupLayer):
            found.update(pixels(layer))
    selection = [(x.get_name()) for x in image.get_selected_drawables()]
    found.update(repr((selection, Gimp.Selection.bounds(image)[1:])).encode())
    return found.hexdigest()
