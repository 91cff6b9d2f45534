"""Numbers of Rec. ITU-T H.273 for how YUV was made, and what is taken where nothing is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vs_deblur_kernels.pixels import Matrix

UNSPECIFIED = 2  # a matrix, primaries or a transfer

# Those that are a linear map of R'G'B', and known to us.
MATRICES: dict[int, Matrix] = {
    1: "709",
    4: "fcc",
    5: "601",
    6: "601",
    7: "240m",
    9: "2020",
}


def guessed_matrix(height: int) -> Matrix:
    """The matrix of a frame that does not say: 709 for HD, 601 below.

    Args:
        height: of the frame, pixels.
    """
    return "709" if height >= 720 else "601"
