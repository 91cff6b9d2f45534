"""What the user changes while the network computes, and groups that are locked.

The action's own functions run here, in a process of GIMP, with a worker that does something to the
image between the request and its answer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import INPUTS, Gimp, deblur, digest, report, start
from layers import add_layer, new_image

PATH = Path(Gimp.directory(), "plug-ins", "vs-deblur", "vs-deblur.py")


def action() -> Any:
    spec = importlib.util.spec_from_file_location("action", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Worker:
    """Gives zeros back, after something was done to the image."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.change = change

    def load(self, _model: str) -> dict[str, Any]:
        return {"model": "test", "device": "here", "margin": 8, "align": 4}

    def deblur(self, job: Any, strips: Iterator[bytes], _progress: Any) -> list[bytes]:
        assert sum(map(len, strips)) == job.read.width * job.read.height * job.wire.pixel
        self.change()
        return [bytes(job.box.width * job.box.height * job.wire.pixel)]


def changed(change: Callable[[Any, Any], object], new_layer: bool) -> dict[str, Any]:
    module = action()
    image = new_image()
    first = add_layer(image, "first")
    second = add_layer(image, "second")
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 10, 10, 100, 80)
    before: list[str] = []

    def now() -> None:
        if not before:  # while the first of the two is computed
            change(image, first)
            before.append(digest(image))

    options = module.Options("auto", 1.0, new_layer)
    try:
        module.deblur(image, [first, second], options, Worker(now), lambda *_: None)
    except module.Failure as failure:
        said = str(failure)
    else:
        said = ""
    return {"said": said, "same": digest(image) == before[0]}


def lock(_image: Any, layer: Any) -> None:
    layer.set_lock_content(True)


CHANGES: dict[str, Callable[[Any, Any], object]] = {
    "nothing": lambda image, _: None,
    "selection": lambda image, _: Gimp.Selection.none(image),
    "size": lambda _, layer: layer.resize(90, 70, -5, -5),
    "deleted": lambda image, layer: image.remove_layer(layer),
    "deleted_before_its_turn": lambda image, _: image.remove_layer(image.get_layers()[0]),
    "alpha": lambda _, layer: layer.add_alpha(),
}


def locked_group(new_layer: bool) -> dict[str, Any]:
    image = new_image()
    free = add_layer(image, "free")
    group = Gimp.GroupLayer.new(image, "group")
    image.insert_layer(group, None, 0)
    inside = add_layer(image, "inside", parent=group)
    group.set_lock_content(True)
    image.set_selected_layers([free, inside])
    before = digest(image)
    result = deblur(image, [free, inside], new_layer=new_layer)
    return result | {"same": digest(image) == before}


def work() -> dict[str, Any]:
    start(INPUTS["invert"])
    found = {
        f"{name} {int(new)}": changed(change, new)
        for name, change in CHANGES.items()
        for new in (False, True)
    }
    found["lock 0"] = changed(lock, False)
    for new in (False, True):
        found[f"group {int(new)}"] = locked_group(new)
    return found


report(work)
