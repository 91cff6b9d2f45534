"""``vs-deblur demo``: a blurred clip made by the program, deblurred, and the difference shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vs_deblur.cli._common import ModelSettings, model_options
from vs_deblur.cli._output import OutputFile
from vs_deblur.cli._progress import note, tell
from vs_deblur.cli.video import Range, Result, deblur_file, prepare
from vs_deblur.errors import EngineError, OutputError, UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vs_deblur.demo_scene import Image8, Scene

RATE = 24
FOLDER = Path("vs-deblur-demo")
NAMES = ("blurred.mp4", "sharp.mp4", "comparison.png")


@dataclass(frozen=True)
class Figures:
    """PSNR against the ground truth, dB, means over the frames' squared errors."""

    before: float
    after: float

    @property
    def gain(self) -> float:
        """How much nearer the deblurred clip is, dB."""
        return self.after - self.before


def encode(path: Path, frames: Iterable[Image8], *, crf: int = 12) -> None:
    """Write RGB frames, (H, W, 3) uint8, as H.264 in 4:2:0, BT.709.

    Raises:
        OutputError: it cannot be written.
    """
    import av
    from av.video.frame import VideoFrame

    from vs_deblur.encoder import base_options

    try:
        with av.open(str(path), "w", format="mp4") as container:
            stream: Any = None
            for i, frame in enumerate(frames):
                if stream is None:
                    stream = container.add_stream("libx264", rate=RATE)
                    stream.height, stream.width = frame.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.options = base_options("libx264") | {"crf": str(crf)}
                    stream.codec_context.color_range = 1
                    for name in ("colorspace", "color_primaries", "color_trc"):
                        setattr(stream.codec_context, name, 1)
                picture = VideoFrame.from_ndarray(frame, "rgb24").reformat(
                    format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
                )
                picture.pts = i
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except OSError as error:
        raise OutputError(f"cannot write: {reason(error)}", str(path)) from error


def decode(path: Path) -> list[Image8]:
    """The frames of a video file as (H, W, 3) uint8 RGB."""
    from vs_deblur.hosts.video import open_video
    from vs_deblur.measuring import rgb8

    reader = open_video(path)
    return [rgb8(planes, reader.info.fmt) for planes in reader.frames()]


def compare(blurred: list[Image8], sharp: list[Image8], truth: list[Image8]) -> Figures:
    """PSNR before and after, over all frames together."""
    import numpy as np

    def decibels(frames: list[Image8]) -> float:
        errors = [
            float(np.mean((a.astype(np.float32) - b) ** 2))
            for a, b in zip(frames, truth, strict=True)
        ]
        return 10 * math.log10(255.0**2 / max(float(np.mean(errors)), 1e-9))

    return Figures(decibels(blurred), decibels(sharp))


def picture(blurred: Image8, sharp: Image8, truth: Image8) -> Any:
    """Blurred, deblurred and true frame side by side, and below an enlarged detail of each.

    The detail is where the deblurred frame gained most.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from vs_deblur.metrics import psnr

    height, width = truth.shape[:2]
    zoom = min(3, height, width)
    tall, wide = height // zoom, width // zoom
    top, left = _most_gained(blurred, sharp, truth, tall, wide)
    margin, line = 6, 22
    sheet = Image.new("RGB", (3 * (width + margin) + margin, line + 2 * (height + margin)))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    frames = (("blurred", blurred), ("deblurred", sharp), ("ground truth", truth))
    for i, (name, frame) in enumerate(frames):
        x = margin + i * (width + margin)
        caption = name if frame is truth else f"{name}, this frame {psnr(frame, truth):.2f} dB"
        draw.text((x + 2, 3), caption, "white", font)
        marked = Image.fromarray(frame)
        box = (left, top, left + wide - 1, top + tall - 1)
        ImageDraw.Draw(marked).rectangle(box, outline=(255, 230, 0))
        sheet.paste(marked, (x, line))
        part = np.ascontiguousarray(frame[top : top + tall, left : left + wide])
        detail = Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(detail, (x, line + height + margin))
    return sheet


def _most_gained(
    blurred: Image8, sharp: Image8, truth: Image8, tall: int, wide: int
) -> tuple[int, int]:
    """Top and left of the rectangle in which the squared error fell most."""
    import numpy as np

    def error(frame: Image8) -> Any:
        return ((frame.astype(np.float32) - truth) ** 2).sum(axis=2)

    gain = np.pad((error(blurred) - error(sharp)).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = gain[tall:, wide:] - gain[:-tall, wide:] - gain[tall:, :-wide] + gain[:-tall, :-wide]
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(top), int(left)


def run(
    folder: Path, scene: Scene, settings: ModelSettings, *, overwrite: bool
) -> tuple[Figures, Result]:
    """Render, deblur and compare; leaves the files of :data:`NAMES`.

    Raises:
        OutputError: the folder cannot be made or written to.
        UsageError: there are files of these names, and ``overwrite`` is not set.
    """
    from vs_deblur.demo_scene import render
    from vs_deblur.encoder import Wanted

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder: {reason(error)}", str(folder)) from error
    source, target, shown = (folder / name for name in NAMES)
    for path in (source, target, shown):
        if path.exists() and not overwrite:  # before the work, not after it
            raise UsageError("output exists", str(path), "use --overwrite or another folder")
    note(f"drawing {scene.frames} frames of {scene.tau} sub-frames each")
    pairs = list(render(scene))
    with OutputFile(source, overwrite=overwrite) as output:
        encode(output.part, (blurred for blurred, _ in pairs))
    with OutputFile(target, overwrite=overwrite, inputs=(source,)) as output:
        job = prepare(source, target, settings, Wanted(crf=12), Range())
        result = deblur_file(job, settings, output)
    blurred, sharp, truth = decode(source), decode(target), [t for _, t in pairs]
    figures = compare(blurred, sharp, truth)
    middle = len(truth) // 2
    with OutputFile(shown, overwrite=overwrite) as output:
        try:
            sheet = picture(blurred[middle], sharp[middle], truth[middle])
            sheet.save(output.part, format="PNG")
        except OSError as error:
            raise OutputError(f"cannot write: {reason(error)}", str(shown)) from error
    return figures, result


@click.command()
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder for {', '.join(NAMES[:2])} and {NAMES[2]}. "
    f"[default: {FOLDER}, where those of an earlier demo are replaced]",
)
@click.option("--overwrite", is_flag=True, help="Replace files of these names in the folder of -o.")
@click.option("--size", nargs=2, type=click.IntRange(min=32), default=(640, 360), hidden=True)
@click.option("--frames", type=click.IntRange(min=1), default=30, hidden=True)
@model_options
def command(
    folder: Path | None,
    overwrite: bool,
    size: tuple[int, int],
    frames: int,
    settings: ModelSettings,
) -> None:
    """Make a blurred clip, deblur it, and show the difference.

    No input is needed: the program draws a scene seen by a shaky camera and exposes it as cameras
    do. Ends with an error if the result is not nearer to the truth than what went in.
    """
    from vs_deblur.demo_scene import Scene

    scene = Scene(size[0], size[1], frames)
    where = folder or FOLDER
    figures, result = run(where, scene, settings, overwrite=overwrite or folder is None)
    tell(f"model   {result.engine}")
    tell(f"speed   {result.frames / result.seconds:.2f} frames a second, files and all")
    tell(
        f"PSNR    {figures.before:.2f} dB blurred, {figures.after:.2f} dB deblurred"
        f" ({figures.gain:+.2f} dB, over all {result.frames} frames)"
    )
    tell(f"look at {where / NAMES[2]}")
    if settings.strength > 0 and figures.gain <= 0:
        raise EngineError("the deblurred clip is not better than the blurred one", str(where))
