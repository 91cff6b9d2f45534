"""Orientation, and what in the metadata has to change with the pixels.

Everything is changed where it stands, so that offsets in the notes of camera makers stay true.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np

from vs_deblur.photofile import ifd
from vs_deblur.photofile.ifd import BadDirectory, Directory, Entry, Layout
from vs_deblur.photofile.picture import Density, Picture, Samples, Unit

ORIENTATION = 274
_THUMBNAIL, _THUMBNAIL_LENGTH = 513, 514
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
_UNITS: dict[int, Unit] = {1: "none", 2: "inch", 3: "cm"}

_TURNS: dict[int, Callable[[Samples], Samples]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def upright(picture: Picture) -> None:
    """Turn the samples as EXIF says, and the metadata with them; drop the thumbnail.

    Orientation in XMP is reset together with that of EXIF. Where only XMP has one (programs differ
    in whether they heed it) the picture and its XMP stay as they are, and are shown as before.
    """
    meta = picture.meta
    turn = 1
    if meta.exif is not None:
        turn = orientation(meta.exif)
        meta.exif = prepared_exif(meta.exif, on_side=turn >= 5)
    if meta.xmp is not None:
        meta.xmp = _without_xmp_thumbnails(meta.xmp)
    if meta.photoshop is not None:
        meta.photoshop = without_thumbnails(meta.photoshop)
    if turn == 1:
        return
    picture.samples = np.ascontiguousarray(_TURNS[turn](picture.samples))
    if meta.xmp is not None:
        meta.xmp = _upright_xmp(meta.xmp, on_side=turn >= 5)
    if meta.density is not None and turn >= 5:
        meta.density = meta.density.turned()


# ---------------------------------------------------------------------------- EXIF


def orientation(exif: bytes) -> int:
    """The orientation that an EXIF block states, 1..8; 1 where it states none that makes sense."""
    try:
        layout, at = ifd.read_header(exif)
        entry = ifd.read_directory(exif, at, layout).entries.get(ORIENTATION)
        value = entry.numbers(layout.order)[0] if entry else 1
    except BadDirectory:
        return 1
    return value if value in _TURNS else 1


def prepared_exif(exif: bytes, *, on_side: bool) -> bytes:
    """An EXIF block for the upright picture: orientation 1, no thumbnail.

    Args:
        exif: a block; one that cannot be read stays as it is.
        on_side: whether width and height change places.
    """
    block = bytearray(exif)
    try:
        layout, at = ifd.read_header(exif)
        main = ifd.read_directory(exif, at, layout)
    except BadDirectory:
        return exif
    entry = main.entries.get(ORIENTATION)
    if entry is not None:
        _put_number(block, entry, 1, layout)
    if on_side:
        _exchange(block, main, X_RESOLUTION, Y_RESOLUTION, layout)
        _exchange(block, main, 256, 257, layout)
        _turn_dimensions(block, main, layout)
    return bytes(_drop_thumbnail(block, main, layout))


def _put_number(block: bytearray, entry: Entry, value: int, layout: Layout) -> None:
    code = ifd.CODES.get(entry.kind)
    if code is not None:
        struct.pack_into(layout.order + code, block, entry.position, value)


def _exchange(block: bytearray, of: Directory, a: int, b: int, layout: Layout) -> None:
    """Let two tags change values."""
    first, second = of.entries.get(a), of.entries.get(b)
    if first is None or second is None:
        return
    if first.kind == second.kind and len(first.data) == len(second.data):
        block[first.position : first.position + len(first.data)] = second.data
        block[second.position : second.position + len(second.data)] = first.data
        return
    try:
        one, two = first.numbers(layout.order)[0], second.numbers(layout.order)[0]
        _put_number(block, first, two, layout)
        _put_number(block, second, one, layout)
    except (BadDirectory, struct.error):  # a number too large for the other's type
        return


def _turn_dimensions(block: bytearray, main: Directory, layout: Layout) -> None:
    """PixelXDimension and PixelYDimension of the EXIF directory proper."""
    pointer = main.entries.get(ifd.EXIF)
    if pointer is None:
        return
    try:
        below = ifd.read_directory(bytes(block), pointer.numbers(layout.order)[0], layout)
    except BadDirectory:
        return
    _exchange(block, below, 0xA002, 0xA003, layout)


def _drop_thumbnail(block: bytearray, main: Directory, layout: Layout) -> bytearray:
    """Unlink the directory of the thumbnail, and remove its picture."""
    if not main.next:
        return block
    struct.pack_into(layout.word, block, main.next_at, 0)
    try:
        entries = ifd.read_directory(bytes(block), main.next, layout).entries
        start, length = (
            entries[tag].numbers(layout.order)[0] for tag in (_THUMBNAIL, _THUMBNAIL_LENGTH)
        )
    except (BadDirectory, KeyError):
        return block
    if block[start : start + 2] != b"\xff\xd8" or start + length > len(block):
        return block
    if start + length >= len(block) - 1:
        return block[:start]
    block[start : start + length] = bytes(length)
    return block


def exif_density(exif: bytes) -> Density | None:
    """Pixels for a unit of length as the tags state it."""
    try:
        layout, tags = ifd.read_block(exif)
    except BadDirectory:
        return None
    values = []
    for tag in (X_RESOLUTION, Y_RESOLUTION):
        entry = tags.get(tag)
        if not isinstance(entry, Entry) or entry.kind != ifd.RATIONAL:
            return None
        above, below = struct.unpack_from(layout.order + "II", entry.data)
        if not above or not below:
            return None
        values.append(above / below)
    unit = tags.get(RESOLUTION_UNIT)
    number = 2
    if isinstance(unit, Entry) and unit.kind == ifd.SHORT:
        number = unit.numbers(layout.order)[0]
    return Density(values[0], values[1], _UNITS.get(number, "none"))


def held(picture: Picture, unit: Unit, least: float, most: float, name: str) -> Density | None:
    """The density as a format can hold it.

    Args:
        picture: where the density is; one that cannot be held is added to what it loses.
        unit: of length that the format has, "inch" for one that has centimetres as well.
        least, most: that a number may be in it.
        name: of the format.

    Returns:
        None if there is none, or one that says nothing (0), or one that cannot be held.
    """
    density = picture.meta.density
    if density is None or not density.x or not density.y:
        return None
    if unit != "inch" or density.unit == "metre":
        density = density.to(unit)
    if all(least <= value <= most for value in (density.x, density.y)):
        return density
    a_unit = "" if density.unit == "none" else f" per {density.unit}"
    picture.lost.append(
        f"density of {density.x:g} x {density.y:g} pixels{a_unit} ({name} cannot hold it)"
    )
    return None


#: The densities that tags are made of.
LEAST_IN_TAGS, MOST_IN_TAGS = 0.0001, 2**32 - 1


def density_tags(density: Density, layout: Layout) -> dict[int, Entry]:
    """The tags that state it.

    Args:
        density: from LEAST_IN_TAGS to MOST_IN_TAGS pixels, not per metre; see :func:`held`.
        layout: of the directory.
    """

    def rational(value: float) -> Entry:
        scale = 1 if float(value).is_integer() or value * 10000 > MOST_IN_TAGS else 10000
        data = struct.pack(layout.order + "II", round(value * scale), scale)
        return Entry(ifd.RATIONAL, 1, data)

    unit = {name: number for number, name in _UNITS.items()}[density.unit]
    return {
        X_RESOLUTION: rational(density.x),
        Y_RESOLUTION: rational(density.y),
        RESOLUTION_UNIT: Entry(ifd.SHORT, 1, struct.pack(layout.order + "H", unit)),
    }


def exif_with_density(picture: Picture, name: str) -> bytes | None:
    """An EXIF block for files of a format that has no other place for the density.

    Args:
        picture: whose; a density that has no place in its EXIF is added to what it loses.
        name: of the format.
    """
    meta = picture.meta
    density = held(picture, "inch", LEAST_IN_TAGS, MOST_IN_TAGS, name)
    if density is None:
        return meta.exif
    if meta.exif is not None:
        says_something = density.unit != "none" or density.x != density.y
        if says_something and exif_density(meta.exif) is None:
            picture.lost.append(f"density ({name} has room for it in EXIF only)")
        return meta.exif
    layout = Layout("<")
    return ifd.write_block(dict(density_tags(density, layout)), layout)


# ---------------------------------------------------------------------------- XMP, image resources


def _upright_xmp(xmp: bytes, *, on_side: bool) -> bytes:
    """A packet with orientation 1; of the same length."""
    xmp = re.sub(rb"(tiff:Orientation\s*=\s*[\"'])[2-8](?=[\"'])", rb"\g<1>1", xmp)
    xmp = re.sub(rb"(<tiff:Orientation>\s*)[2-8](?=\s*<)", rb"\g<1>1", xmp)
    if on_side:
        for a, b in (
            (b"tiff:ImageWidth", b"tiff:ImageLength"),
            (b"exif:PixelXDimension", b"exif:PixelYDimension"),
        ):
            xmp = _exchange_xmp(xmp, a, b)
    return xmp


def _exchange_xmp(xmp: bytes, a: bytes, b: bytes) -> bytes:
    def find(name: bytes) -> re.Match[bytes] | None:
        return re.search(name + rb"(?:\s*=\s*[\"']|>\s*)(\d+)", xmp)

    found = sorted((m for m in (find(a), find(b)) if m), key=lambda m: m.start())
    if len(found) != 2:
        return xmp
    first, second = found
    middle = xmp[first.end(1) : second.start(1)]
    return xmp[: first.start(1)] + second[1] + middle + first[1] + xmp[second.end(1) :]


def _without_xmp_thumbnails(xmp: bytes) -> bytes:
    # No regular expression: it would look through all the rest again for each that has no end.
    for name in (b"xmp:Thumbnails>", b"xap:Thumbnails>"):
        kept, at = [], 0
        while (begin := xmp.find(b"<" + name, at)) >= 0:
            end = xmp.find(b"</" + name, begin)
            if end < 0:
                break
            kept.append(xmp[at:begin])
            at = end + len(b"</" + name)
        xmp = b"".join((*kept, xmp[at:]))
    return xmp


_RESOURCE_THUMBNAILS = (1033, 1036)
_RESOURCE_IPTC = 1028


def resources(photoshop: bytes) -> list[tuple[int, bytes, bytes]]:
    """Image resources: number, data, and the whole resource as it stands.

    What comes after the first thing that is none is left out.
    """
    found, at = [], 0
    while photoshop[at : at + 4] == b"8BIM" and at + 12 <= len(photoshop):
        (number,) = struct.unpack_from(">H", photoshop, at + 4)
        name = photoshop[at + 6] + 1
        start = at + 6 + name + name % 2
        if start + 4 > len(photoshop):
            break
        (length,) = struct.unpack_from(">I", photoshop, start)
        end = start + 4 + length
        if end > len(photoshop):
            break
        data = photoshop[start + 4 : end]
        end += length % 2
        found.append((number, data, photoshop[at:end]))
        at = end
    return found


def without_thumbnails(photoshop: bytes) -> bytes:
    """Image resources without the picture's old thumbnails; as they are if there are none."""
    found = resources(photoshop)
    if not any(number in _RESOURCE_THUMBNAILS for number, _, _ in found):
        return photoshop
    return b"".join(whole for number, _, whole in found if number not in _RESOURCE_THUMBNAILS)


def iptc_of(photoshop: bytes) -> bytes | None:
    """The IPTC records among image resources."""
    return next(
        (data for number, data, _ in resources(photoshop) if number == _RESOURCE_IPTC), None
    )


def iptc_resource(iptc: bytes) -> bytes:
    """IPTC records as an image resource."""
    head = b"8BIM" + struct.pack(">HHI", _RESOURCE_IPTC, 0, len(iptc))
    return head + iptc + b"\0" * (len(iptc) % 2)
