"""What tiles cost: PSNR between a picture computed in tiles and whole, by overlap of the tiles.

Networks for photos see too far for exact tiles (see ``NetworkSpec.tile_overlap``): their tiles
overlap and are blended. At 50 dB the root mean square difference is 0.8 code values of 8 bits.

``uv run python -m benchmarks.tiles PHOTO… [--model FILE] [-o docs/benchmarks/tiles.csv]``
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import Table
from vs_deblur.engine import Deblurrer
from vs_deblur.tiling import least_patch, round_up

OVERLAPS = (32, 64, 128, 192, 256)


def middle(path: Path, side: int) -> NDArray[np.uint8]:
    """The middle of a picture, at most ``side`` pixels high and wide, (H, W, 3)."""
    with Image.open(path) as image:
        x, y = max(image.width - side, 0) // 2, max(image.height - side, 0) // 2
        crop = image.convert("RGB").crop(
            (x, y, min(x + side, image.width), min(y + side, image.height))
        )
        return np.asarray(crop)


def by_overlap(deblurrer: Deblurrer, picture: NDArray[np.uint8], tile: int) -> dict[int, float]:
    """PSNR in dB between the tiled and the whole result (in float32), by overlap in pixels."""
    given = picture.astype(np.float32) / 255
    whole = deblurrer.photo(given)
    spec = deblurrer.spec
    found = {}
    for overlap in OVERLAPS:
        if least_patch(overlap, spec.multiple_of) > tile:
            continue
        deblurrer.spec = replace(spec, tile_overlap=overlap)
        deblurrer._tile = round_up(tile, spec.multiple_of)
        error = float(np.mean((deblurrer.photo(given) - whole) ** 2))
        found[overlap] = -10 * math.log10(max(error, 1e-12))
    deblurrer.spec, deblurrer._tile = spec, None
    return found


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="auto", show_default=True)
@click.option("--side", default=1024, show_default=True, help="Pixels of each picture's middle.")
@click.option("--tile", default=512, show_default=True, help="Size of the tiles.")
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(photos: tuple[Path, ...], model: str, side: int, tile: int, output: Path | None) -> None:
    """Print a table: the worst and the mean of all photos."""
    deblurrer = Deblurrer(model, device="cpu", precision="fp32", kind="photo", memory=1e12)
    figures = [by_overlap(deblurrer, middle(p, side), tile) for p in photos]
    table = Table("cpu")
    for overlap in figures[0]:
        values = [f[overlap] for f in figures]
        table.add(
            model=deblurrer.model,
            tile=tile,
            overlap=overlap,
            worst_db=round(min(values), 1),
            mean_db=round(float(np.mean(values)), 1),
            photos=len(values),
        )
    table.write(output)


if __name__ == "__main__":
    main()
