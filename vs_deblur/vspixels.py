"""How to read the samples of a VapourSynth frame, from its format and frame properties.

Pure: takes names and numbers, so that no host but the filter needs VapourSynth for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vs_deblur.errors import InputError
from vs_deblur.h273 import MATRICES, UNSPECIFIED, guessed_matrix

if TYPE_CHECKING:
    from vs_deblur_kernels.pixels import ChromaLocation, PixelFormat

# Matrices of Rec. ITU-T H.273 that are no linear map from R'G'B', or of which the coefficients are
# not in the frame.
_REFUSED = {
    0: "RGB in YUV planes",
    8: "YCgCo",
    10: "BT.2020 constant luminance",
    11: "Y'D'zD'x",
    12: "derived from the primaries",
    13: "derived from the primaries, constant luminance",
    14: "ICtCp",
}
_CHROMA_LOCATIONS: tuple[ChromaLocation, ...] = (
    "left",
    "center",
    "topleft",
    "top",
    "bottomleft",
    "bottom",
)


def _integer(props: Mapping[str, Any], name: str) -> int | None:
    value = props.get(name)
    return int(value) if isinstance(value, int) else None


def full_range(props: Mapping[str, Any]) -> bool | None:
    """Whether the samples use the full range; None if the frame does not say.

    ``_Range`` is 1 for full range; ``_ColorRange``, which it replaced, is 0 for it.
    """
    value = _integer(props, "_Range")
    if value is not None:
        return value == 1
    # VapourSynth that knows _Range lists no _ColorRange, and warns whoever asks for it by name.
    if "_ColorRange" not in list(props):
        return None
    return _integer(props, "_ColorRange") == 0


def frame_format(
    family: str,
    bits: int,
    is_float: bool,
    subsampling: tuple[int, int],
    height: int,
    props: Mapping[str, Any],
) -> PixelFormat:
    """The format of a frame.

    What the properties do not say is guessed: the matrix by height
    (:func:`~vs_deblur.h273.guessed_matrix`), full range for RGB and limited range for YUV and
    grey, chroma to the left.

    Args:
        family: "YUV", "RGB" or "GRAY".
        bits, is_float, subsampling: of the clip's format.
        height: of the frame, pixels.
        props: its properties.

    Raises:
        InputError: a matrix that is not a linear map of R'G'B', or a family of other planes.
    """
    from vs_deblur_kernels.pixels import PixelFormat

    full = full_range(props)
    if family == "RGB":
        return PixelFormat("rgb", bits, is_float, full_range=full is not False)
    number = _integer(props, "_Matrix")
    known = None if number is None else MATRICES.get(number)
    if family == "GRAY":
        # Only weights for one and the same change of R, G and B hang on it.
        matrix = known or guessed_matrix(height)
        return PixelFormat("gray", bits, is_float, matrix=matrix, full_range=bool(full))
    if family != "YUV":
        raise InputError(f"the colour family must be YUV, RGB or GRAY, not {family}")
    if known is None and number not in (None, UNSPECIFIED):
        name = _REFUSED.get(number or 0, "unknown")
        raise InputError(
            f"the matrix is not supported: {name} (_Matrix {number})",
            None,
            "convert to RGB, or to YUV of BT.709, BT.601 or BT.2020 non-constant luminance",
        )
    location = _integer(props, "_ChromaLocation") or 0
    if not 0 <= location < len(_CHROMA_LOCATIONS):
        raise InputError(f"the chroma location is unknown: _ChromaLocation {location}")
    return PixelFormat(
        "yuv",
        bits,
        is_float,
        subsampling,
        known or guessed_matrix(height),
        bool(full),
        _CHROMA_LOCATIONS[location],
    )


def guesses(fmt: PixelFormat, props: Mapping[str, Any]) -> str | None:
    """What was guessed about a frame, in words; None if nothing that matters was."""
    said = []
    if fmt.family == "yuv" and _integer(props, "_Matrix") in (None, UNSPECIFIED):
        said.append(f"matrix BT.{fmt.matrix}")
    if fmt.family == "yuv" and not fmt.is_float and full_range(props) is None:
        said.append("limited range")
    return " and ".join(said) or None
