"""Milliseconds a frame of each network, size and precision, against torch eager in float32.

All rows of a size come from one run, and what counts is their ratio; rows go to a CSV with the
machine named by its processor flags.

``uv run python -m benchmarks.networks [--device cuda] [-o docs/benchmarks/networks.csv]``
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.machine import Table
from vs_deblur.engine import Deblurrer, bf16_is_fast
from vs_deblur.tiling import padded_size
from vs_deblur_models.registry import build_network, save_network

SIZES = {"320x180": (180, 320), "640x480": (480, 640), "1280x720": (720, 1280)}
NETWORKS = ("strcnn_dtb_lite", "strcnn_dtb")


def milliseconds(run: Callable[[], object], repeat: int, device: str) -> tuple[float, float]:
    """Median and 80th percentile of the time of a call, after one to warm up."""
    on_gpu = torch.device(device).type == "cuda"
    times = []
    for i in range(repeat + 1):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        if i:
            times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return statistics.median(times), times[min(int(0.8 * len(times)), len(times) - 1)]


def against_the_first(
    runs: Mapping[str, Callable[[], object]], repeat: int, device: str
) -> Iterator[tuple[str, float, float, float]]:
    """Name, median and 80th percentile in ms of each run, and its speed in times the first's."""
    first = 0.0
    for name, run in runs.items():
        p50, p80 = milliseconds(run, repeat, device)
        first = first or p50
        yield name, p50, p80, first / p50


def precisions_of(device: str) -> list[str]:
    """What is worth timing there."""
    if device != "cpu":
        return ["fp32", "fp16", "bf16"]
    return ["fp32", "bf16"] if bf16_is_fast() else ["fp32"]


def engines_of(network: Any, device: str, **options: Any) -> dict[str, Deblurrer]:
    """An engine for each precision. Speed does not depend on the values of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.safetensors"
        save_network(network, path)
        return {
            p: Deblurrer(str(path), device=device, precision=p, **options)
            for p in precisions_of(device)
        }


def eager(network: Any, height: int, width: int, device: str) -> Callable[[], object]:
    """The network as anybody would run it: torch eager, float32, NCHW."""
    size = padded_size(height, width, network.spec.multiple_of, network.spec.minimum)
    x = torch.rand(1, 3 * network.spec.window, *size, device=device)
    state = None

    @torch.inference_mode()
    def run() -> None:
        nonlocal state
        _, state = network.step(x, state)

    return run


def through_engine(deblurrer: Deblurrer, height: int, width: int) -> Callable[[], object]:
    """One frame through the engine, conversions of pixels included."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(3)]

    def endless() -> Any:
        while True:
            yield from frames

    stream = deblurrer.video(endless())
    return lambda: next(stream)


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeat", default=7, show_default=True)
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)))
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS))
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(
    device: str,
    repeat: int,
    sizes: tuple[str, ...],
    networks: tuple[str, ...],
    output: Path | None,
) -> None:
    """Measure and print a table."""
    table = Table(device)
    for name in networks or NETWORKS:
        network = build_network(name).to(device).eval()
        engines = engines_of(network, device, segment=0)
        for size in sizes or tuple(SIZES):
            height, width = SIZES[size]
            runs = {"torch eager fp32": eager(network, height, width, device)}
            runs |= {f"engine {p}": through_engine(e, height, width) for p, e in engines.items()}
            for label, p50, p80, times in against_the_first(runs, repeat, device):
                table.add(
                    network=name,
                    size=size,
                    path=label,
                    ms_p50=round(p50, 2),
                    ms_p80=round(p80, 2),
                    fps=round(1e3 / p50, 2),
                    times_eager_fp32=round(times, 2),
                    gflop_per_s=round(network.spec.flops_per_pixel * height * width / p50 / 1e6),
                )
    table.write(output)


if __name__ == "__main__":
    main()
