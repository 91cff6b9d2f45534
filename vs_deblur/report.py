"""A comparison page: tables, curves and crops in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vs_deblur._version import __version__
from vs_deblur.measuring import Compared, FrameFigures, SequenceFigures
from vs_deblur.metrics import Image, mean

CROP = 192  # pixels; shown at twice its size

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tr.mean td { font-weight: 600; }
figure { display: inline-block; margin: 0 1rem 1rem 0; }
figure img { display: block; image-rendering: pixelated; }
figcaption { font-size: .85rem; color: #555; }
.gain { color: #0a7a2f; } .loss { color: #b3261e; }
svg text { font: 11px system-ui, sans-serif; fill: #555; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616; } th, td { border-color: #3a3a3a; }
  figcaption, svg text { color: #aaa; fill: #aaa; }
}
"""


@dataclass(frozen=True)
class Sample:
    """A frame to be shown.

    Attributes:
        label: why it is shown.
        number: of the frame in its sequence, from 0.
        frame: its three versions.
        figures: its figures.
    """

    label: str
    number: int
    frame: Compared
    figures: FrameFigures


class Samples:
    """Picks the frames of a sequence with the largest and the smallest gain as they go by."""

    def __init__(self) -> None:
        self._seen = 0
        self._best: Sample | None = None
        self._worst: Sample | None = None

    def add(self, frame: Compared, figures: FrameFigures) -> None:
        """Look at the next frame."""
        number, self._seen = self._seen, self._seen + 1
        gain = figures.gain
        if gain is None:
            return
        if self._best is None or gain > (self._best.figures.gain or 0.0):
            self._best = Sample("largest gain", number, frame, figures)
        if self._worst is None or gain < (self._worst.figures.gain or 0.0):
            self._worst = Sample("smallest gain", number, frame, figures)

    def chosen(self) -> list[Sample]:
        """What was picked: none, one or two."""
        picked = [s for s in (self._best, self._worst) if s is not None]
        return picked[:1] if len(picked) == 2 and picked[0].number == picked[1].number else picked


def most_changed(before: Image, after: Image, size: int = CROP) -> tuple[slice, slice]:
    """The square in which the largest change was made, as rows and columns.

    Args:
        before, after: (H, W, 3) uint8.
        size: its side, pixels; smaller where the frame is.
    """
    change = np.abs(after.astype(np.int64) - before).sum(axis=2)  # (H, W)
    height, width = min(size, change.shape[0]), min(size, change.shape[1])
    total = np.zeros((change.shape[0] + 1, change.shape[1] + 1), dtype=np.int64)
    total[1:, 1:] = change.cumsum(axis=0).cumsum(axis=1)
    sums = total[height:, width:] - total[:-height, width:]
    sums = sums - total[height:, :-width] + total[:-height, :-width]
    top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + height), slice(left, left + width)


def _image(pixels: Image, caption: str) -> str:
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    text = escape(caption, quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}" '
        f'width="{2 * width}" height="{2 * height}"><figcaption>{text}</figcaption></figure>'
    )


def _figure(sample: Sample) -> str:
    frame, figures = sample.frame, sample.figures
    crop = most_changed(frame.blurred, frame.result)
    captions = (
        (frame.blurred, f"before, {figures.psnr_before:.2f} dB"),
        (frame.result, f"after, {figures.psnr_after:.2f} dB"),
        (frame.sharp, "sharp"),
    )
    images = "".join(_image(pixels[crop], caption) for pixels, caption in captions)
    title = f"Frame {sample.number}: {sample.label}, {sample.figures.gain or 0.0:+.2f} dB"
    return f"<h3>{escape(title)}</h3>\n<div>{images}</div>"


def _polyline(values: Sequence[float | None], low: float, high: float, colour: str) -> str:
    step = 600 / max(len(values) - 1, 1)
    points = " ".join(
        f"{40 + i * step:.1f},{150 - 140 * (v - low) / (high - low):.1f}"
        for i, v in enumerate(values)
        if v is not None
    )
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def curves(figures: SequenceFigures) -> str:
    """PSNR of each frame before (grey) and after (blue), as SVG; frames that are identical to the
    sharp ones are left out.
    """
    before = [None if f.identical else f.psnr_before for f in figures.frames]
    after = [None if f.identical else f.psnr_after for f in figures.frames]
    known = [v for v in (*before, *after) if v is not None]
    if len(figures.frames) < 2 or not known:
        return ""
    low, high = min(known) - 0.25, max(known) + 0.25
    return (
        '<svg viewBox="0 0 650 170" width="650" role="img" '
        'aria-label="PSNR of each frame, dB: grey before, blue after">'
        f'<text x="0" y="14">{high:.1f}</text><text x="0" y="154">{low:.1f}</text>'
        f'<text x="40" y="168">PSNR of each frame, dB: grey before, blue after</text>'
        f"{_polyline(before, low, high, '#888')}{_polyline(after, low, high, '#1f6feb')}</svg>"
    )


def _cell(value: float | None, digits: int = 2, sign: bool = False) -> str:
    if value is None:
        return "<td>–</td>"
    if not sign:
        return f"<td>{value:.{digits}f}</td>"
    kind = "loss" if value < 0 else "gain"
    return f'<td class="{kind}">{value:+.{digits}f}</td>'


def _row(name: str, frames: int, cells: Iterable[float | None], kind: str = "") -> str:
    before, after, gain, ssim_before, ssim_after = cells
    return (
        f'<tr class="{kind}"><td>{escape(name)}</td><td>{frames}</td>'
        f"{_cell(before)}{_cell(after)}{_cell(gain, sign=True)}"
        f"{_cell(ssim_before, 4)}{_cell(ssim_after, 4)}</tr>"
    )


def _table(rows: Sequence[SequenceFigures]) -> str:
    columns = [(r.psnr_before, r.psnr_after, r.gain, r.ssim_before, r.ssim_after) for r in rows]
    body = [_row(r.name, len(r.frames), c) for r, c in zip(rows, columns, strict=True)]
    total = sum(len(r.frames) for r in rows)
    means = [mean(column) for column in zip(*columns, strict=True)]
    head = "".join(
        f"<th>{t}</th>"
        for t in ("Sequence", "Frames", "PSNR before, dB", "after", "gain", "SSIM before", "after")
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}"
        f"{_row('mean', total, means, 'mean')}</tbody></table>"
    )


def page(
    rows: Sequence[SequenceFigures], samples: Sequence[Sequence[Sample]], settings: str
) -> str:
    """The page.

    Args:
        rows: figures of each sequence, at least one.
        samples: frames to show of each.
        settings: one line on model, device and precision.
    """
    parts = []
    for row, shown in zip(rows, samples, strict=True):
        sizes = ", ".join(f"{w}x{h}" for w, h in row.sizes)
        parts.append(f"<h2>{escape(row.name)}</h2>\n<p>{len(row.frames)} frames, {sizes}</p>")
        parts.append(curves(row))
        parts.extend(map(_figure, shown))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>vs-deblur: before, after, sharp</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>Before, after, sharp</h1>\n<p>vs-deblur {__version__}: {escape(settings)}. "
        "Crops are where the most was changed, at twice their size. PSNR of 8-bit RGB; "
        "a sequence's figure is the mean over its frames.</p>\n"
        f"{_table(rows)}\n{body}\n</body>\n</html>\n"
    )
