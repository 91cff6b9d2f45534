"""The filter in scripts, run by vspipe."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

Vspipe = Callable[..., subprocess.CompletedProcess[str]]

LENGTH = 48
TOY = f"""
import vapoursynth as vs
from tests.vapoursynth.toy import CUTS, Toy, filtered, noise

vs.core.num_threads = int(globals().get("threads", 2))
filtered(noise({LENGTH}, CUTS), Toy()).set_output()
"""
LITE = f"""
import vapoursynth as vs
from tests.vapoursynth.toy import CUTS, noise
from vs_deblur import deblur

vs.core.num_threads = int(globals().get("threads", 2))
clip = noise({LENGTH}, CUTS)
deblur(clip, segment=8, warmup=2, model=globals().get("model", "auto")).set_output()
"""


def _written(vspipe: Vspipe, path: Path, *arguments: str) -> bytes:
    done = vspipe(*arguments, str(path))
    assert done.returncode == 0, done.stderr
    return path.read_bytes()


def _digest(vspipe: Vspipe, tmp_path: Path, script: Path, requests: int, threads: int) -> str:
    arguments = ["-c", "y4m", "-r", str(requests), "-a", f"threads={threads}", str(script)]
    return hashlib.md5(_written(vspipe, tmp_path / "out.y4m", *arguments)).hexdigest()


def _chunks(vspipe: Vspipe, tmp_path: Path, script: Path, pieces: int) -> bytes:
    """The clip in pieces between random borders, by as many processes at once."""
    inside = random.Random(7).sample(range(1, LENGTH), pieces - 1)

    def chunk(border: tuple[int, int]) -> bytes:
        first, end = border
        path = tmp_path / f"chunk{first}"
        return _written(vspipe, path, "-s", str(first), "-e", str(end - 1), str(script))

    with ThreadPoolExecutor(pieces) as all_at_once:
        return b"".join(all_at_once.map(chunk, pairwise([0, *sorted(inside), LENGTH])))


def test_any_number_of_requests_and_threads(vspipe: Vspipe, tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(TOY)
    matrix = [(r, t) for r in (1, 2, 8, 32) for t in (1, 2, 8)]
    assert len({_digest(vspipe, tmp_path, script, r, t) for r, t in matrix}) == 1


def test_chunks_end_to_end(vspipe: Vspipe, tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(TOY)
    whole = _written(vspipe, tmp_path / "whole", str(script))
    assert _chunks(vspipe, tmp_path, script, 4) == whole


def test_the_trained_network(vspipe: Vspipe, tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(LITE)
    whole = _written(vspipe, tmp_path / "whole", "-r", "1", "-a", "threads=1", str(script))
    busy = _written(vspipe, tmp_path / "busy", "-r", "32", "-a", "threads=8", str(script))
    assert busy == whole
    assert _chunks(vspipe, tmp_path, script, 2) == whole


def test_damaged_model_ends_vspipe(vspipe: Vspipe, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\0" * 100)
    path = tmp_path / "script.vpy"
    path.write_text(LITE)
    done = vspipe("-a", f"model={damaged}", str(path), "-")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "vapoursynth.Error: deblur: weights cannot be read" in done.stderr


def test_containers_hold_the_same_frames(vspipe: Vspipe, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV decodes what vspipe wrote")
    path = tmp_path / "script.vpy"
    path.write_text(TOY)
    decoded = {}
    for name in ("y4m", "mkv"):
        out = tmp_path / f"out.{name}"
        _written(vspipe, out, "-c", name, str(path))
        with av.open(str(out)) as container:
            decoded[name] = [f.to_ndarray() for f in container.decode(video=0)]
    assert len(decoded["y4m"]) == len(decoded["mkv"]) == LENGTH
    for a, b in zip(decoded["y4m"], decoded["mkv"], strict=True):
        assert np.array_equal(a, b)
    raw = _written(vspipe, tmp_path / "out.raw", str(path))
    assert b"".join(f.tobytes() for f in decoded["y4m"]) == raw


@pytest.mark.parametrize("name", ["deblur.vpy", "deblur_options.vpy"])
def test_examples_run(vspipe: Vspipe, tmp_path: Path, name: str) -> None:
    av = pytest.importorskip("av", reason="PyAV makes the source file")
    example = Path(__file__).parents[2] / "examples" / name
    if not example.is_file():
        pytest.skip("the examples are not part of the installed package")
    source = tmp_path / "shaky.mkv"
    rng = np.random.default_rng(1)
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            samples = rng.integers(16, 236, (72, 64), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(samples, "yuv420p")))
        container.mux(stream.encode(None))
    for output, width in {"deblur.vpy": [(0, 64)], "deblur_options.vpy": [(1, 128)]}[name]:
        arguments = ["-a", f"source={source}", "-o", str(output), str(example)]
        written = _written(vspipe, tmp_path / "out.raw", *arguments)
        assert len(written) == 5 * width * 48 * 3 // 2
