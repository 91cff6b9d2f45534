"""Memory, file handles and threads over a long run: flat, or something leaks.

A clip of 640x360 that never existed as a file goes through `serve`, or through the filter, in a
process of its own; what comes out is checksummed and dropped. Every 100 frames the process is
looked at from outside (``/proc``, so Linux only).

``uv run python -m benchmarks.longrun serve  -o docs/benchmarks/long-run-serve.csv``
``uv run python -m benchmarks.longrun filter -o docs/benchmarks/long-run-filter.csv``
``uv run python -m benchmarks.longrun plot docs/benchmarks/long-run-*.csv``

``--model small`` is a network that is quick to run, for the program around it.
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine

PLOT = Path("docs/images/long-run.png")
SCENE = 250  # frames
WAITING = 32  # frames; with fewer to come they may be on their way out of a process that ended
THRESHOLD = "0.2"  # of the scene detector; scenes here differ by more, frames of one by less


@dataclass(frozen=True)
class Size:
    """Pixels of a frame; both even."""

    width: int = 640
    height: int = 360


@dataclass(frozen=True)
class Sample:
    """A process after so many frames came out of it.

    Attributes:
        frame: how many.
        seconds: since its first frame.
        rss_mib, pss_mib, anonymous_mib: its memory; anonymous: what it has allocated itself.
        files: open file handles.
        threads: threads.
        crc: CRC-32 of all samples up to here.
    """

    frame: int
    seconds: float
    rss_mib: float
    pss_mib: float
    anonymous_mib: float
    files: int
    threads: int
    crc: str


def look(pid: int, frame: int, seconds: float, crc: int) -> Sample:
    """Look at a process.

    Raises:
        ProcessLookupError: it is gone.
    """
    place = Path(f"/proc/{pid}")
    kib: dict[str, int] = {}
    for line in (place / "smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        kib[name.rstrip(":")] = int(value)
    return Sample(
        frame,
        round(seconds, 3),
        round(kib["Rss"] / 1024, 3),
        round(kib["Pss"] / 1024, 3),
        round(kib["Anonymous"] / 1024, 3),
        len(list((place / "fd").iterdir())),
        len(list((place / "task").iterdir())),
        f"{crc:08x}",
    )


class Clip:
    """Frames of YUV 4:2:0, 8 bits: a texture that moves, its negative in every other scene."""

    def __init__(self, size: Size) -> None:
        self.size = size
        y, x = np.mgrid[: size.height + 128, : size.width + 128].astype(np.int64)
        texture = (x * x // 7 + y * y // 5 + x * y // 3) % 251 // 2 + ((x // 16 + y // 16) % 2) * 64
        self._luma = (texture + 24).astype(np.uint8)

    def planes(self, n: int) -> list[NDArray[np.uint8]]:
        """Samples of frame n."""
        dy, dx = 3 * n % 128, 5 * n % 128
        luma = self._luma[dy : dy + self.size.height, dx : dx + self.size.width]
        if n // SCENE % 2:
            luma = 255 - luma
        return [luma, luma[::2, ::2] // 2 + 64, 191 - luma[::2, 1::2] // 2]


def feed(stream: IO[bytes], size: Size, frames: int) -> None:
    """Write a clip as y4m until nobody reads it any more."""
    clip = Clip(size)
    with contextlib.suppress(BrokenPipeError), stream:
        header = f"YUV4MPEG2 C420 W{size.width} H{size.height} F25:1 Ip A1:1 XCOLORRANGE=LIMITED\n"
        stream.write(header.encode())
        for n in range(frames):
            stream.write(b"FRAME\n" + b"".join(p.tobytes() for p in clip.planes(n)))


def watch(
    command: Sequence[str], size: Size, frames: int, *, fed: bool, every: int, limit: float
) -> Iterator[Sample]:
    """Run a command that writes y4m on stdout and look at it every few frames.

    Args:
        command: what to run.
        size: of its frames.
        frames: how many it must give.
        fed: whether it gets them on stdin.
        every: frames between two looks.
        limit: seconds after which it is killed.

    Raises:
        RuntimeError: it failed, or gave more or fewer frames.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    killer = threading.Timer(limit, lambda: os.killpg(child.pid, signal.SIGKILL))
    killer.daemon = True
    killer.start()
    feeder = threading.Thread(target=feed, args=(child.stdin, size, frames), daemon=True)
    if fed:
        feeder.start()
    assert child.stdout is not None
    try:
        child.stdout.readline()
        length = len(b"FRAME\n") + size.width * size.height * 3 // 2
        count = crc = 0
        begin = time.monotonic()
        while frame := child.stdout.read(length):
            count += 1
            crc = zlib.crc32(frame, crc)
            if count % every == 0 and count <= frames - WAITING:
                yield look(child.pid, count, time.monotonic() - begin, crc)
        code = child.wait()
        if code or count != frames:
            raise RuntimeError(f"exit code {code} after {count} of {frames} frames")
    finally:
        killer.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        if fed:
            feeder.join()
        child.wait()


def serve_command(model: str) -> list[str]:
    """The frame server, y4m in and out."""
    options = ["--scene-threshold", THRESHOLD, "--matrix", "601", "--device", "cpu", "--quiet"]
    return [sys.executable, "-m", "vs_deblur", "serve", "-", "--model", model, *options]


def filter_command(model: str, size: Size, frames: int) -> list[str]:
    """The filter in a graph, y4m out."""
    numbers = [str(n) for n in (size.width, size.height, frames)]
    return [sys.executable, "-m", "benchmarks.longrun", "graph", model, *numbers]


def graph(model: str, size: Size, frames: int) -> None:
    """The graph of :func:`filter_command`, in this process."""
    import vapoursynth as vs

    from vs_deblur import deblur

    source = Clip(size)
    core: Any = vs.core
    blank = core.std.BlankClip(
        format=vs.YUV420P8, width=size.width, height=size.height, length=frames, keep=True
    )

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for p, plane in enumerate(source.planes(n)):
            np.copyto(np.asarray(frame[p]), plane)
        frame.props.update(_Matrix=6, _Range=0)
        return frame

    clip = blank.std.ModifyFrame([blank], draw)
    done = deblur(clip, model=model, scene_threshold=float(THRESHOLD), device="cpu")
    done.output(sys.stdout.buffer, y4m=True)


def slope(samples: Sequence[Sample], name: str, warmup: int) -> float:
    """Growth in MiB per 1,000 frames after the warm-up, by least squares."""
    late = [s for s in samples if s.frame >= warmup]
    x = np.array([s.frame / 1000 for s in late])
    y = np.array([getattr(s, name) for s in late])
    return float(np.polyfit(x, y, 1)[0])


def summary(samples: Sequence[Sample], warmup: int) -> str:
    """What a run showed, in a few lines."""
    late = [s for s in samples if s.frame >= warmup]
    rate = samples[-1].frame / max(samples[-1].seconds, 1e-3)
    lines = [f"{samples[-1].frame} frames, {rate:.1f} a second"]
    for name in ("rss_mib", "pss_mib", "anonymous_mib"):
        values = [getattr(s, name) for s in late]
        lines.append(
            f"{name}: {slope(samples, name, warmup):+.3f} MiB per 1,000 frames after frame "
            f"{warmup}; {min(values):.1f} to {max(values):.1f}, at the end {values[-1]:.1f}"
        )
    for name in ("files", "threads"):
        lines.append(f"{name}: {sorted({getattr(s, name) for s in late})}")
    return "\n".join(lines)


def read(path: Path) -> list[Sample]:
    """The samples of a CSV."""
    kinds = {"frame": int, "files": int, "threads": int, "crc": str}
    with path.open(newline="") as file:
        return [
            Sample(**{f.name: kinds.get(f.name, float)(row[f.name]) for f in fields(Sample)})
            for row in csv.DictReader(file)
        ]


@contextlib.contextmanager
def weights(model: str) -> Iterator[str]:
    """The model; "small" is made as a file that is there while the context is."""
    if model != "small":
        yield model
        return
    from tests.small import save_small

    with tempfile.TemporaryDirectory() as folder:
        yield str(save_small(Path(folder) / "small.safetensors"))


def measure(host: str, model: str, size: Size, frames: int, every: int, output: Path) -> None:
    """Run, write the CSV row by row, and print a summary."""
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = describe_machine("cpu")
    samples: list[Sample] = []
    names = [f.name for f in fields(Sample)] + ["host", "model", "machine"]
    with weights(model) as file, output.open("w", newline="") as out:
        serving = host == "serve"
        command = serve_command(file) if serving else filter_command(file, size, frames)
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        for sample in watch(command, size, frames, fed=serving, every=every, limit=24 * 3600):
            samples.append(sample)
            writer.writerow({**asdict(sample), "host": host, "model": model, "machine": machine})
            out.flush()
    print(summary(samples, min(1000, frames // 5)))


def draw_plot(paths: Sequence[Path], output: Path) -> None:
    """Memory of runs above, file handles and threads below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    memory, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for path in paths:
        samples = read(path)
        x = [s.frame for s in samples]
        with path.open(newline="") as file:
            row = next(csv.DictReader(file))
        name = f"{row['host']}, {row['model']}"
        (line,) = memory.plot(x, [s.rss_mib for s in samples], label=name)
        colour = line.get_color()
        counts.plot(x, [s.threads for s in samples], color=colour, label=f"{name}: threads")
        counts.plot(x, [s.files for s in samples], ":", color=colour, label=f"{name}: file handles")
    memory.set_ylabel("resident memory, MiB")
    memory.set_ylim(bottom=0)
    counts.set_ylabel("number")
    counts.set_ylim(bottom=0)
    counts.set_xlabel("frames of 640x360")
    for axes in (memory, counts):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


@click.group()
def main() -> None:
    """Long runs, watched from outside."""


def _run_command(host: str, frames: int) -> click.Command:
    @click.command(host)
    @click.option("--frames", default=frames, show_default=True)
    @click.option("--model", default="auto", show_default=True, help='A model, or "small".')
    @click.option("--every", default=100, show_default=True, help="Frames between two looks.")
    @click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="CSV.")
    def command(frames: int, model: str, every: int, output: Path) -> None:
        measure(host, model, Size(), frames, every, output)

    command.help = f"Watch a long run of the {host}."
    return command


main.add_command(_run_command("serve", 20_000))
main.add_command(_run_command("filter", 2_000))


@main.command("graph", hidden=True)
@click.argument("model")
@click.argument("width", type=int)
@click.argument("height", type=int)
@click.argument("frames", type=int)
def _graph(model: str, width: int, height: int, frames: int) -> None:
    graph(model, Size(width, height), frames)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=PLOT, show_default=True)
def plot(paths: tuple[Path, ...], output: Path) -> None:
    """Draw the CSVs of runs, and print what they show."""
    for path in paths:
        samples = read(path)
        print(path.name, summary(samples, min(1000, samples[-1].frame // 5)), sep="\n", end="\n\n")
    draw_plot(paths, output)


if __name__ == "__main__":
    main()
