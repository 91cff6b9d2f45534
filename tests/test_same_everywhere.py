"""One clip, one answer: filter under vspipe, frame server and file-to-file command agree.

The faces share one engine and one plan, but they read, schedule and write on their own: each
frame's samples must nevertheless be the same, byte for byte.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("vapoursynth")

WIDTH, HEIGHT, FRAMES = 96, 64, 21
SETTINGS = {"segment": 8, "warmup": 3, "scene_threshold": 0.2}
OPTIONS = ["--segment", "8", "--warmup", "3", "--scene-threshold", "0.2", "--device", "cpu"]
SCRIPT = """
import vapoursynth as vs
from vs_deblur import deblur
clip = vs.core.bs.VideoSource({clip!r}, cachemode=0)
deblur(clip, device="cpu", **{settings!r}).set_output()
"""
PLAIN = """
import vapoursynth as vs
vs.core.bs.VideoSource({clip!r}, cachemode=0).set_output()
"""


def write_clip(path: Path, pix_fmt: str) -> None:
    """Texture in motion with a hard cut in the middle, lossless, colours described."""
    rng = np.random.default_rng(9)
    scenes = [np.kron(rng.random((20, 30, 3)), np.ones((8, 8, 1))) * s for s in (100.0, 250.0)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.codec_context.colorspace = 1  # BT.709
        stream.codec_context.color_range = 1  # limited
        for n in range(FRAMES):
            scene = scenes[n >= 11]
            view = scene[2 * n :, 3 * n :][:HEIGHT, :WIDTH].astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace="ITU709")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def y4m_frames(data: bytes) -> list[bytes]:
    """Payloads of a y4m stream (no parameters on FRAME lines here)."""
    _, _, rest = data.partition(b"\n")
    return rest.split(b"FRAME\n")[1:]


def file_frames(path: Path) -> list[bytes]:
    """Planes of a video file, frame by frame, rows without padding."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            size = 1 if frame.format.components[0].bits == 8 else 2
            rows: NDArray[np.uint8]
            planes = []
            for plane in frame.planes:
                rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
                planes.append(rows[: plane.height, : plane.width * size].tobytes())
            frames.append(b"".join(planes))
    return frames


def run(command: list[str], environment: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
def test_filter_server_and_command_give_the_same_frames(
    tmp_path: Path, pix_fmt: str, vspipe: tuple[list[str], dict[str, str]]
) -> None:
    clip = tmp_path / "clip.mkv"
    write_clip(clip, pix_fmt)
    script = tmp_path / "clip.vpy"
    script.write_text(SCRIPT.format(clip=str(clip), settings=SETTINGS))
    plain = tmp_path / "plain.vpy"
    plain.write_text(PLAIN.format(clip=str(clip)))
    ours = [sys.executable, "-m", "vs_deblur"]
    command, environment = vspipe

    filtered = y4m_frames(run([*command, "-c", "y4m", str(script), "-"], environment))
    served = y4m_frames(run([*ours, "serve", str(clip), *OPTIONS]))
    scripted = y4m_frames(run([*ours, "serve", str(plain), *OPTIONS]))
    already = y4m_frames(run([*ours, "serve", str(script)]))
    out = tmp_path / "out.mkv"
    run([*ours, "video", str(clip), str(out), "--lossless", *OPTIONS])
    written = file_frames(out)

    assert len(filtered) == FRAMES
    source = file_frames(clip)
    assert filtered != source  # something was done
    assert served == filtered
    assert scripted == filtered
    assert already == filtered
    assert written == filtered
