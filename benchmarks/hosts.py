"""What each host adds to the network: frames a second, and the share of time outside the network.

The engine fed with arrays, the VapourSynth filter, `serve` and `video` deblur the same clip, each
in a process of its own; the time inside the network's steps is taken from within.

``uv run python -m benchmarks.hosts [--frames 48] [-o docs/benchmarks/hosts.csv]``
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import click
import numpy as np

from benchmarks.machine import Table

WIDTH, HEIGHT = 640, 480
HOSTS = ("engine", "filter", "serve", "video", "video --lossless")


def write_clip(path: Path, frames: int) -> None:
    """A textured picture in motion, H.264 4:2:0."""
    rng = np.random.default_rng(0)
    base = np.kron(rng.random((60, 120, 3)), np.ones((16, 16, 1))) * 200
    base += rng.random(base.shape) * 40
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for n in range(frames):
            view = base[5 * n % 400 :, 7 * n % 1000 :][:HEIGHT, :WIDTH].astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class Meter:
    """Adds up the time inside :meth:`Deblurrer._run`, first steps (set-up) left out."""

    def __init__(self) -> None:
        from vs_deblur.engine import Deblurrer

        self.inside, self.steps = 0.0, 0
        self.begin: float | None = None
        original = Deblurrer._run

        def timed(deblurrer: Deblurrer, *arguments: Any) -> Any:
            start = time.perf_counter()
            result = original(deblurrer, *arguments)
            self.steps += 1
            if self.steps > 2:
                self.inside += time.perf_counter() - start
            if self.steps == 2:
                self.begin = time.perf_counter()
            return result

        setattr(Deblurrer, "_run", timed)  # noqa: B010


def run_engine(clip: Path, _: Path) -> None:
    """Arrays through :meth:`Deblurrer.video`."""
    from vs_deblur.engine import Deblurrer

    with av.open(str(clip)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    for _out in Deblurrer(segment=0).video(frames):
        pass


def run_filter(clip: Path, _: Path) -> None:
    """``deblur()`` in a graph, pulled in order."""
    import vapoursynth as vs

    from vs_deblur import deblur

    source = vs.core.bs.VideoSource(str(clip), cachemode=0)
    for _frame in deblur(source, segment=0).frames(close=True):
        pass


def run_command(*arguments: str) -> Callable[[Path, Path], None]:
    """A command of ours, in this process."""

    def run(clip: Path, folder: Path) -> None:
        from vs_deblur.cli import main

        out = folder / ("out.y4m" if arguments[0] == "serve" else "out.mkv")
        target = ["-o", str(out)] if arguments[0] == "serve" else [str(out)]
        sys.argv = ["vs-deblur", arguments[0], str(clip), *target, *arguments[1:]]
        sys.argv += ["--segment", "0", "--overwrite"]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise

    return run


RUNS: dict[str, Callable[[Path, Path], None]] = {
    "engine": run_engine,
    "filter": run_filter,
    "serve": run_command("serve"),
    "video": run_command("video"),
    "video --lossless": run_command("video", "--lossless"),
}


def child(host: str, clip: Path, folder: Path) -> None:
    """Run one host and print its figures as JSON on the last line."""
    meter = Meter()
    RUNS[host](clip, folder)
    assert meter.begin is not None
    total = time.perf_counter() - meter.begin
    frames = meter.steps - 2
    figures = {"fps": frames / total, "outside": 1 - meter.inside / total}
    print("\n" + json.dumps(figures), flush=True)


@click.command()
@click.option("--frames", default=48, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
@click.option("--child", "only", hidden=True, type=click.Choice(HOSTS))
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
def main(frames: int, output: Path | None, only: str | None, folder: Path | None) -> None:
    """Measure and print a table."""
    if only is not None and folder is not None:
        child(only, folder / "clip.mp4", folder)
        return
    table = Table("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_clip(place / "clip.mp4", frames)
        for host in HOSTS:
            command = [sys.executable, "-m", "benchmarks.hosts", "--child", host]
            done = subprocess.run(
                [*command, "--folder", str(place)],
                capture_output=True,
                text=True,
                check=True,
                timeout=1800,
            )
            figures = json.loads(done.stdout.strip().splitlines()[-1])
            base = table.rows[0]["fps"] if table.rows else figures["fps"]
            table.add(
                host=host,
                size=f"{WIDTH}x{HEIGHT}",
                fps=round(figures["fps"], 2),
                of_engine=round(figures["fps"] / base, 3),
                outside_network=round(figures["outside"], 3),
            )
    table.write(output)


if __name__ == "__main__":
    main()
