"""24 megapixels with transparency through a worker that changes nothing."""

from __future__ import annotations

from typing import Any

from common import INPUTS, Gegl, Gimp, deblur, digest, report, start

WIDTH, HEIGHT = 6000, 4000


def work() -> dict[str, Any]:
    start(INPUTS["echo"])
    image = Gimp.Image.new(WIDTH, HEIGHT, Gimp.ImageBaseType.RGB)
    kind = Gimp.ImageType.RGBA_IMAGE
    layer = Gimp.Layer.new(image, "photo", WIDTH, HEIGHT, kind, 100.0, Gimp.LayerMode.NORMAL)
    image.insert_layer(layer, None, 0)
    row = b"".join(bytes([x % 251, x % 241, x % 239, 255 - x % 7]) for x in range(WIDTH))
    buffer = layer.get_buffer()
    for top in range(0, HEIGHT, 200):
        buffer.set(Gegl.Rectangle.new(0, top, WIDTH, 200), "R'G'B'A u8", row * 200)
    buffer.flush()
    del buffer
    layer.update(0, 0, WIDTH, HEIGHT)
    image.set_selected_layers([layer])
    before = digest(image)
    result = deblur(image, new_layer=False)
    return result | {"same": digest(image) == before}


report(work)
