"""Seconds a megapixel of each photo network and precision, against torch eager in float32.

All rows of a network come from one run, and what counts is their ratio. The last column says how
many megapixels three seconds are enough for.

``uv run python -m benchmarks.photos [--device cuda] [-o docs/benchmarks/photos.csv]``
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.machine import Table
from benchmarks.networks import against_the_first, engines_of
from vs_deblur.engine import Deblurrer
from vs_deblur_models.registry import build_network

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "photo_lite": ("photo_lite", {}),
    "dmphn 1-2-4-8": ("dmphn", {}),
    "srn colour": ("srn", {"colour": True, "lstm": False}),
    "srn planes, lstm": ("srn", {}),
    "mscnn": ("mscnn", {}),
}


def eager(network: Any, side: int, device: str) -> Callable[[], object]:
    """The network as anybody would run it: torch eager, float32, NCHW."""
    x = torch.rand(1, 3, side, side, device=device)

    @torch.inference_mode()
    def run() -> None:
        network(x)

    return run


def through_engine(deblurrer: Deblurrer, side: int) -> Callable[[], object]:
    """A 16-bit picture through the engine, conversions and all."""
    picture = np.random.default_rng(0).integers(0, 65536, (side, side, 3), dtype=np.uint16)
    return lambda: deblurrer.photo(picture)


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--repeat", default=3, show_default=True)
@click.option("--side", default=512, show_default=True, help="Height and width; a multiple of 32.")
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)))
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(
    device: str, repeat: int, side: int, networks: tuple[str, ...], output: Path | None
) -> None:
    """Measure and print a table."""
    table = Table(device)
    for label in networks or NETWORKS:
        name, config = NETWORKS[label]
        network = build_network(name, config).to(device).eval()
        runs = {"torch eager fp32": eager(network, side, device)}
        engines = engines_of(network, device, kind="photo")
        runs |= {f"engine {p}": through_engine(e, side) for p, e in engines.items()}
        for path, p50, _, times in against_the_first(runs, repeat, device):
            seconds = p50 / 1e3 / (side * side / 1e6)
            table.add(
                network=label,
                path=path,
                s_per_megapixel=round(seconds, 3),
                times_eager_fp32=round(times, 2),
                gflop_per_s=round(network.spec.flops_per_pixel * side * side / p50 / 1e6),
                megapixels_in_3s=round(3 / seconds, 2),
            )
    table.write(output)


if __name__ == "__main__":
    main()
