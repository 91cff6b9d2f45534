"""Optical flow for figures along the motion; scikit-image is a package of the developers."""

from __future__ import annotations

from typing import Any

import numpy as np

from vs_deblur.flicker import Flow
from vs_deblur.metrics import Image


def optical_flow(guide: Image, before: Image) -> Flow:
    """Where the things of a frame were in the one before, by TV-L1 (Zach, Pock, Bischof 2007).

    Args:
        guide, before: (H, W, 3) uint8.

    Returns:
        (2, H, W) float32, pixels down and to the right.
    """
    from skimage.registration import optical_flow_tvl1

    luma = np.array((0.299, 0.587, 0.114), np.float32) / np.float32(255)
    estimate: Any = optical_flow_tvl1  # scikit-image has no annotations
    flow: Flow = estimate(guide.astype(np.float32) @ luma, before.astype(np.float32) @ luma)
    return flow
