"""Selections, layers of all sorts, and what is refused; a worker that makes negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import INPUTS, Gegl, Gimp, deblur, digest, pixels, report, start

WIDTH, HEIGHT = 160, 120


def new_image(base: Any = Gimp.ImageBaseType.RGB) -> Any:
    return Gimp.Image.new(WIDTH, HEIGHT, base)


def add_layer(
    image: Any,
    name: str = "photo",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    at: tuple[int, int] = (0, 0),
    parent: Any = None,
    alpha: bool = False,
) -> Any:
    """A layer whose sample at x, y is 50 + (x + 2 y) % 100."""
    grey = image.get_base_type() == Gimp.ImageBaseType.GRAY
    kinds = Gimp.ImageType
    kind = (kinds.GRAYA_IMAGE if alpha else kinds.GRAY_IMAGE) if grey else None
    kind = kind or (kinds.RGBA_IMAGE if alpha else kinds.RGB_IMAGE)
    layer = Gimp.Layer.new(image, name, *size, kind, 100.0, Gimp.LayerMode.NORMAL)
    image.insert_layer(layer, parent, 0)
    layer.set_offsets(*at)
    rows = bytearray()
    for y in range(size[1]):
        for x in range(size[0]):
            value = 50 + (x + 2 * y) % 100
            rows += bytes([value] * (1 if grey else 3) + [200] * alpha)
    name = ("Y'" if grey else "R'G'B'") + ("A u8" if alpha else " u8")
    buffer = layer.get_buffer()
    buffer.set(Gegl.Rectangle.new(0, 0, *size), name, bytes(rows))
    buffer.flush()
    del buffer
    layer.update(0, 0, *size)
    image.set_selected_layers([layer])
    return layer


def samples(layer: Any) -> str:
    """The first channel, in hexadecimal."""
    data = pixels(layer)
    step = len(data) // (layer.get_width() * layer.get_height())
    return data[::step].hex()


def facts(image: Any, layer: Any) -> dict[str, Any]:
    found = {"samples": samples(layer), "names": [x.get_name() for x in image.get_layers()]}
    found["selected"] = [x.get_name() for x in image.get_selected_layers()]
    found["size"] = [layer.get_width(), layer.get_height()]
    return found


def whole() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image)
    before = digest(image)
    result = deblur(image)
    copy = image.get_selected_layers()[0]
    found = result | facts(image, copy) | {"original": samples(layer)}
    copy_offsets = list(copy.get_offsets()[1:])
    image.remove_layer(copy)
    image.set_selected_layers([layer])
    return found | {"offsets": copy_offsets, "same": digest(image) == before}


def rectangle() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image)
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 30, 20, 50, 40)
    return deblur(image, new_layer=False) | facts(image, layer)


def feathered() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image)
    Gimp.context_push()
    Gimp.context_set_feather(True)
    Gimp.context_set_feather_radius(10, 10)
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 40, 30, 80, 60)
    Gimp.context_pop()
    return deblur(image, new_layer=False) | facts(image, layer)


def small_with_offset() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image, size=(60, 50), at=(100, -10), alpha=True)
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 0, 0, 130, 20)
    found = deblur(image, new_layer=False) | facts(image, layer)
    return found | {"alpha": sorted(set(pixels(layer)[3::4]))}


def larger() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image, size=(WIDTH + 90, HEIGHT + 70), at=(-40, -30))
    return deblur(image, new_layer=False) | facts(image, layer)


def grey() -> dict[str, Any]:
    image = new_image(Gimp.ImageBaseType.GRAY)
    layer = add_layer(image, alpha=True)
    return deblur(image, new_layer=False) | facts(image, layer)


def masked() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image)
    mask = layer.create_mask(Gimp.AddMaskType.BLACK)
    layer.add_mask(mask)
    before = pixels(mask).hex()
    result = deblur(image)
    copy = image.get_selected_layers()[0]
    masks = {
        x.get_mask() is not None and pixels(x.get_mask()).hex() == before for x in (layer, copy)
    }
    return result | facts(image, copy) | {"masks": masks == {True}}


def several() -> dict[str, Any]:
    image = new_image()
    group = Gimp.GroupLayer.new(image, "group")
    image.insert_layer(group, None, 0)
    inside = add_layer(image, "inside", parent=group)
    above = add_layer(image, "above", size=(50, 60), at=(10, 20))
    image.set_selected_layers([inside, above])
    result = deblur(image, [inside, above])
    children = [x.get_name() for x in group.get_children()]
    found = result | facts(image, image.get_layers()[0]) | {"children": children}
    return found | {"inside": samples(group.get_children()[0])}


def locked_alpha() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image, alpha=True)
    layer.set_lock_alpha(True)
    return deblur(image, new_layer=False) | facts(image, layer)


def locked_as_new_layer() -> dict[str, Any]:
    image = new_image()
    layer = add_layer(image)
    layer.set_lock_content(True)
    result = deblur(image)
    return result | facts(image, image.get_selected_layers()[0])


def last_values() -> dict[str, Any]:
    image = new_image()
    add_layer(image)
    result = deblur(image, run_mode=Gimp.RunMode.WITH_LAST_VALS)
    return result | facts(image, image.get_layers()[0])


def refused(prepare: Callable[[Any], list[Any]], **arguments: Any) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        image = new_image()
        layers = prepare(image)
        before = digest(image)
        return deblur(image, layers, **arguments) | {"same": digest(image) == before}

    return work


def indexed(image: Any) -> list[Any]:
    layer = add_layer(image)
    none, palette = Gimp.ConvertDitherType.NONE, Gimp.ConvertPaletteType.WEB
    image.convert_indexed(none, palette, 255, False, False, "")
    return [layer]


def group(image: Any) -> list[Any]:
    layer = Gimp.GroupLayer.new(image, "group")
    image.insert_layer(layer, None, 0)
    add_layer(image, parent=layer)
    return [layer]


def locked(image: Any) -> list[Any]:
    layer = add_layer(image)
    layer.set_lock_content(True)
    return [layer]


def outside(image: Any) -> list[Any]:
    layer = add_layer(image, size=(40, 40))
    image.select_rectangle(Gimp.ChannelOps.REPLACE, 100, 80, 20, 20)
    return [layer]


def mask(image: Any) -> list[Any]:
    layer = add_layer(image)
    layer.add_mask(layer.create_mask(Gimp.AddMaskType.WHITE))
    return [layer.get_mask()]


def channel(image: Any) -> list[Any]:
    add_layer(image)
    found = Gimp.Channel.new(image, "channel", WIDTH, HEIGHT, 50.0, Gegl.Color.new("black"))
    image.insert_channel(found, None, 0)
    return [found]


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "whole": whole,
    "rectangle": rectangle,
    "feathered": feathered,
    "small_with_offset": small_with_offset,
    "larger": larger,
    "grey": grey,
    "masked": masked,
    "several": several,
    "locked_alpha": locked_alpha,
    "locked_as_new_layer": locked_as_new_layer,
    "last_values": last_values,
    "refused_indexed": refused(indexed),
    "refused_group": refused(group),
    "refused_locked": refused(locked, new_layer=False),
    "refused_outside": refused(outside),
    "refused_mask": refused(mask),
    "refused_channel": refused(channel),
}


def work() -> dict[str, Any]:
    start(INPUTS["invert"])
    return {name: case() for name, case in CASES.items()}


if __name__ == "<run_path>":
    report(work)
