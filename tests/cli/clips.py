"""Small y4m clips, made by arithmetic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vs_deblur.hosts import y4m


def frames_of(header: y4m.Header, count: int, seed: int = 1) -> list[bytes]:
    """Noise that moves by one pixel a frame; samples of every frame."""
    bits = header.layout.bits
    rng = np.random.default_rng(seed)
    kind = np.dtype("<u2" if bits > 8 else "u1")
    planes = [
        rng.integers(20, 220, (h, w + count)).astype(kind) << (bits - 8)
        for h, w in header.plane_shapes
    ]
    shapes = header.plane_shapes
    return [
        b"".join(p[:, n : n + w].tobytes() for p, (_, w) in zip(planes, shapes, strict=True))
        for n in range(count)
    ]


def clip(
    count: int = 6, width: int = 48, height: int = 32, colour: str = "420", extra: str = ""
) -> bytes:
    """A whole stream."""
    header = y4m.parse_header(
        f"YUV4MPEG2 C{colour} W{width} H{height} F25:1 Ip A1:1 {extra}".rstrip().encode()
    )
    frames = frames_of(header, count)
    return y4m.write_header(header) + b"".join(y4m.FRAME + f for f in frames)


def split(stream: bytes) -> tuple[bytes, list[bytes]]:
    """Header line and samples of each frame of a stream of whole frames."""
    line, _, rest = stream.partition(b"\n")
    size = len(y4m.FRAME) + y4m.parse_header(line).frame_bytes
    assert len(rest) % size == 0, "not whole frames"
    parts = [rest[i : i + size] for i in range(0, len(rest), size)]
    assert all(p.startswith(y4m.FRAME) for p in parts)
    return line, [p[len(y4m.FRAME) :] for p in parts]


def luma(frame: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """The first plane of an 8-bit frame."""
    return np.frombuffer(frame, np.uint8)[: width * height].reshape(height, width)
