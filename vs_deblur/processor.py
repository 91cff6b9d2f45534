"""What instructions this processor has, as far as torch finds out."""

from __future__ import annotations

from typing import Literal, get_args

Instructions = Literal["avx2", "avx512", "avx512_bf16", "amx"]
INSTRUCTIONS: tuple[Instructions, ...] = get_args(Instructions)

_PROBES: dict[Instructions, str] = {
    "avx2": "_is_avx2_supported",
    "avx512": "_is_avx512_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx": "_is_amx_tile_supported",
}


def processor_has(instructions: Instructions) -> bool:
    """Whether the processor has them; False where torch cannot tell."""
    import torch

    return bool(getattr(torch.cpu, _PROBES[instructions], bool)())
