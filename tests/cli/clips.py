"""Small clips, made by arithmetic: y4m streams, a video file, a script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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


def planes_of(frame: bytes, header: y4m.Header) -> list[NDArray[np.uint8]]:
    """The planes of an 8-bit frame."""
    found, at = [], 0
    for height, width in header.plane_shapes:
        samples = np.frombuffer(frame, np.uint8)[at : at + height * width]
        found.append(samples.reshape(height, width))
        at += height * width
    return found


def padded(stream: bytes, width: int, height: int) -> bytes:
    """The stream of 8-bit frames with its last rows and columns repeated up to a size."""
    line, frames = split(stream)
    header = y4m.parse_header(line)
    large = replace(header, width=width, height=height)
    out = y4m.write_header(large)
    for frame in frames:
        out += y4m.FRAME
        for plane, (h, w) in zip(planes_of(frame, header), large.plane_shapes, strict=True):
            around = ((0, h - plane.shape[0]), (0, w - plane.shape[1]))
            out += np.pad(plane, around, mode="edge").tobytes()
    return out


def make_video(path: Path, data: bytes) -> None:
    """A lossless file of the frames of an 8-bit 4:2:0 stream."""
    import av

    header = y4m.parse_header(data.partition(b"\n")[0])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height = header.width, header.height
        stream.pix_fmt = "yuv420p"
        for samples in split(data)[1]:
            flat = np.frombuffer(samples, np.uint8)
            image = flat.reshape(header.height * 3 // 2, header.width)
            frame = av.VideoFrame.from_ndarray(image, "yuv420p")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


SCRIPT = """
import numpy as np
import vapoursynth as vs

def paint(n, f):
    f = f.copy()
    for p in range(f.format.num_planes):
        plane = np.asarray(f[p])
        plane[:] = np.random.default_rng(p).integers(20, 220, plane.shape) + n
    f.props._SceneChangePrev = int(n in (5, 11))
    return f

print("the script prints")
blank = vs.core.std.BlankClip(
    format=vs.{format}, width=48, height=32, length=16, fpsnum=25, fpsden=1
)
clip = blank.std.ModifyFrame(blank, paint)
{rest}
clip.set_output()
"""
WITH_PROPS = "clip = clip.std.SetFrameProps(_Matrix=1, _Range=0)\n"
DEBLURRED = WITH_PROPS + "from vs_deblur import deblur; clip = deblur(clip)\n"


def script(folder: Path, rest: str = WITH_PROPS, form: str = "YUV420P8") -> Path:
    """A VapourSynth script of 16 frames of 48x32 with cuts at 5 and 11."""
    path = folder / "clip.vpy"
    path.write_text(SCRIPT.format(format=form, rest=rest))
    return path
