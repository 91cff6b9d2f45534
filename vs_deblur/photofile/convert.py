"""What a picture must become for a format that does not hold all kinds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vs_deblur.errors import UsageError
from vs_deblur.photofile import png
from vs_deblur.photofile.picture import Format, Picture, Samples

_SPOKEN = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "webp": "WebP"}
# Pixels a side, of the formats and of the libraries that write them.
_LARGEST = {"jpeg": 65500, "png": 2**31 - 1, "tiff": 2**31 - 1, "webp": 16383}


def check_suits(picture: Picture, kind: Format) -> None:
    """Whether a format can hold a picture; what can be done without is not asked for.

    Transparency, floats and the meaning of colours are never dropped.

    Raises:
        UsageError: it cannot.
    """
    name, largest = _SPOKEN[kind], _LARGEST[kind]
    if max(picture.size) > largest:
        width, height = picture.size
        raise UsageError(
            f"{name} holds at most {largest} pixels a side, the picture is {width}x{height}",
            None,
            "use --format png or tiff",
        )
    if picture.is_float and kind != "tiff":
        raise UsageError(f"{name} holds no floats", None, "use --format tiff")
    if picture.alpha is not None and kind == "jpeg":
        raise UsageError("JPEG holds no transparency", None, "use --format png, webp or tiff")
    if picture.format == "png" and kind != "png" and png.has_other_colours(picture):
        raise UsageError(
            f"{name} cannot say what the colours are (the PNG file has cICP, not of sRGB)",
            None,
            "use --format png",
        )


def suited(picture: Picture, kind: Format) -> Picture:
    """The picture in a form that a format holds; what is lost by that is added to its list.

    Args:
        picture: one that :func:`check_suits` lets pass; it stays as it is.
        kind: the format. 16 bits become 8 where it has no more.
    """
    name = _SPOKEN[kind]
    result = replace(picture, lost=list(picture.lost))
    if kind == "tiff":
        return result
    if picture.alpha == "associated":
        result.samples, result.alpha = straight(picture), "straight"
    if picture.extras:
        result.samples = result.samples[..., : result.samples.shape[2] - picture.extras]
        result.lost.append(f"{picture.extras} channels beside colours and alpha")
    if kind != "png" and result.bits > 8:
        result.samples = to_8_bits(result.samples)
        result.lost.append(f"16 bits a sample ({name} holds 8)")
    if kind == "webp" and picture.colours == 1:
        grey = np.repeat(result.samples[..., :1], 3, axis=2)
        result.samples = np.concatenate([grey, result.samples[..., 1:]], axis=2)
        result.colours = 3
        if (picture.meta.icc or b"")[16:20] == b"GRAY":
            result.meta = replace(picture.meta, icc=None)
            result.lost.append("ICC profile (of grey, which WebP stores as RGB)")
    return result


def to_8_bits(samples: Samples) -> Samples:
    """uint16 as the nearest uint8."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def straight(picture: Picture) -> Samples:
    """Colours divided by the alpha that they were multiplied with; integers rounded."""
    samples, colours = picture.samples, picture.colours
    result = samples.copy()
    alpha = samples[..., colours : colours + 1].astype(np.float32)
    full = 1.0 if picture.is_float else float(np.iinfo(samples.dtype).max)
    divided = np.divide(
        samples[..., :colours].astype(np.float32) * full,
        alpha,
        out=np.zeros_like(samples[..., :colours], dtype=np.float32),
        where=alpha > 0,
    )
    if not picture.is_float:
        divided = np.clip(np.rint(divided), 0, full)
    result[..., :colours] = divided.astype(samples.dtype)
    return result
