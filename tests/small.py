"""A light network small enough for tests, with weights under which every part shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vs_deblur_models.registry import build_network, save_network

SMALL_LITE: dict[str, Any] = {
    "channels": (8, 12, 16),
    "encoder_blocks": (1, 2, 1),
    "decoder_blocks": (2, 1),
    "feedback_channels": 4,
}


def scramble(network: Any, seed: int = 0) -> Any:
    """Weights of ordinary size everywhere (some start at zero, which would hide faults)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 4:
                fan = p[0].numel()
                p.copy_(torch.randn(p.shape, generator=generator) * (1.0 / fan) ** 0.5)
            elif p.ndim == 1:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    return network.eval()


def save_small(path: Path) -> Path:
    """Write the small light network, whose output differs from its input, as a weights file."""
    save_network(scramble(build_network("strcnn_dtb_lite", SMALL_LITE)), path)
    return path
