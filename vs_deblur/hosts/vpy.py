"""VapourSynth scripts, run in this process: their output 0 as a source of frames in order."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import vapoursynth as vs

from vs_deblur.errors import InputError, reason
from vs_deblur.pipeline import ClipInfo, MarkedFrame
from vs_deblur.vspixels import frame_format, guesses

if TYPE_CHECKING:
    from vs_deblur_kernels.pixels import PixelFormat

logger = logging.getLogger(__name__)

_NAME = "__vapoursynth__"  # what vspipe calls a script's module


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _line_in(path: str, error: BaseException) -> str:
    """The script and the line of it that an error came from."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == path:
            return f"{path}, line {frame.lineno}"
    return path


@contextlib.contextmanager
def _inside(folder: Path) -> Generator[None]:
    """Work in a folder, as vspipe does while it evaluates a script."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _evaluate(path: str) -> None:
    """Run a script as vspipe does.

    Raises:
        InputError: it cannot be read, or fails.
    """
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", path) from error
    module = ModuleType(_NAME)
    module.__file__ = path
    sys.modules[_NAME] = module
    try:
        code = compile(source, path, "exec", dont_inherit=True)
        with _inside(Path(path).resolve().parent):
            exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, vs.Error) else f"{type(error).__name__}: "
        text = error.msg if isinstance(error, SyntaxError) else _last_line(error)
        raise InputError(f"the script failed: {kind}{text}", _line_in(path, error)) from error


class Script:
    """A script's output 0.

    Args:
        path: the script.
        allow_interlaced: take interlaced frames as if they were progressive.

    Attributes:
        info: the clip; properties are those of frame 0.
        deblurred_by: the model named by ``VSDeblurModel`` where the script deblurs already.

    Raises:
        InputError: the script fails, sets no clip, or one that is not supported.
    """

    def __init__(self, path: str, *, allow_interlaced: bool = False) -> None:
        self.path, self._allow_interlaced = path, allow_interlaced
        _evaluate(path)
        self._clip = _output(path)
        try:
            with self._clip.get_frame(0) as frame:
                props = dict(frame.props)
        except vs.Error as error:
            raise InputError(f"frame 0: {_last_line(error)}", path) from error
        self._check_progressive(0, props)
        pixels = self._pixel_format(props)
        if guessed := guesses(pixels, props):
            logger.warning("%s: the frames do not say everything: %s assumed", path, guessed)
        model = props.get("VSDeblurModel")
        self.deblurred_by = model if model is None or isinstance(model, str) else str(model)
        rate = Fraction(self._clip.fps)
        self.info = ClipInfo(
            self._clip.width,
            self._clip.height,
            pixels,
            rate or None,
            _aspect(props),
            self._clip.num_frames,
        )

    def _pixel_format(self, props: dict[str, Any]) -> PixelFormat:
        fmt = self._clip.format
        try:
            return frame_format(
                fmt.color_family.name,
                fmt.bits_per_sample,
                fmt.sample_type == vs.FLOAT,
                (fmt.subsampling_w, fmt.subsampling_h),
                self._clip.height,
                props,
            )
        except InputError as error:
            raise error.at(self.path) from None
        except ValueError as error:
            raise InputError(f"the format {fmt.name} is not supported", self.path) from error

    def _check_progressive(self, n: int, props: Any) -> None:
        if int(props.get("_FieldBased", 0)) > 0 and not self._allow_interlaced:
            raise InputError(
                f"frame {n} is interlaced",
                self.path,
                "deinterlace first, or --allow-interlaced to take it as it is",
            )

    def frames(
        self, start: int = 0, end: int | None = None, requests: int | None = None
    ) -> Generator[MarkedFrame]:
        """Frames in order; ``_SceneChangePrev`` marks cuts.

        Args:
            start: first frame.
            end: frame before which to stop, None for all.
            requests: frames asked for at once, None for as many as VapourSynth has threads.

        Raises:
            InputError: a frame cannot be made; those before it have come.
        """
        ahead = requests or vs.core.num_threads
        clip = _once(self._clip[start:end])
        n = start
        try:
            # A backlog of the same size: frames that wait for one before them.
            for frame in clip.frames(prefetch=ahead, backlog=ahead):
                self._check_progressive(n, frame.props)
                planes = [np.asarray(frame[i]) for i in range(frame.format.num_planes)]
                yield MarkedFrame(planes, frame.props.get("_SceneChangePrev", 0) == 1)
                n += 1
        except vs.Error as error:
            raise InputError(f"frame {n}: {_last_line(error)}", self.path) from error

    def close(self) -> None:
        """Let go of the script and its clip."""
        del self._clip
        vs.clear_outputs()
        sys.modules.pop(_NAME, None)


def _once(clip: vs.VideoNode) -> vs.VideoNode:
    """A clip of which each frame is asked for once, in order, so that nothing is kept for later.

    The node of a script's output has a cache as long as it is asked directly, with a history of
    thousands of frames whose entries lie between the planes and keep freed ones apart.
    """
    node = cast(Any, clip).std.RemoveFrameProps(props=["_VSDeblurNothing"])
    node.std.SetVideoCache(mode=0)
    return cast(vs.VideoNode, node)


def _output(path: str) -> vs.VideoNode:
    outputs = vs.get_outputs()
    if 0 not in outputs:
        raise InputError("the script sets no output 0", path, "end it with clip.set_output()")
    clip = getattr(outputs[0], "clip", None)
    if not isinstance(clip, vs.VideoNode):
        raise InputError("output 0 of the script is not video", path)
    if clip.format.color_family == vs.UNDEFINED or not clip.width or not clip.height:
        raise InputError("constant format and size needed", path, "resize the clip's parts first")
    if getattr(clip, "gpu_resident", False):
        raise InputError("the clip's frames are on the GPU", path, "use std.GPUDownload first")
    return clip


def _aspect(props: dict[str, Any]) -> Fraction | None:
    numerator, denominator = (cast(int, props.get(k, 0)) for k in ("_SARNum", "_SARDen"))
    return Fraction(numerator, denominator) if numerator > 0 and denominator > 0 else None
