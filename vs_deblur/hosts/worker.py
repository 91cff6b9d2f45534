"""The other half of the action in GIMP: deblurs what comes through a pipe (docs/gimp-bridge.md).

GIMP's Python has neither torch nor NumPy, so that the action starts this in a process of its own
and talks to it in frames (:mod:`vs_deblur.bridge`). One side talks at a time. When the pipe of
requests ends, the user has cancelled, or GIMP is gone: the process leaves at once, whatever it is
in the middle of.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vs_deblur._version import __version__
from vs_deblur.bridge import PROTOCOL, Message, pack, unpack
from vs_deblur.errors import (
    DeblurError,
    EngineError,
    OutOfMemoryError,
    ProtocolError,
    UsageError,
)
from vs_deblur.photofile.picture import Picture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vs_deblur.engine import Deblurrer, Progress

logger = logging.getLogger(__name__)

SAMPLES: dict[str, Any] = {"u8": np.uint8, "u16": np.uint16, "f16": np.float16, "f32": np.float32}
CHANNELS = {"y": (1, False), "ya": (1, True), "rgb": (3, False), "rgba": (3, True)}
MAX_SIDE = 1 << 19  # GIMP's own limit, pixels
STRIP = 16 << 20  # bytes of samples a frame
_CHUNK = 1 << 20  # bytes a read
_AHEAD = 64 << 20  # bytes that are taken before they are asked for


class Deblur(Protocol):
    """What deblurs a picture: :func:`vs_deblur.hosts.photo.deblur`."""

    def __call__(self, picture: Picture, engine: Any, progress: Progress | None) -> Picture:
        """The picture with sharper colours, alpha as it was."""


class Ended(Exception):
    """The pipe of requests has ended."""


class RefusedError(Exception):
    """A request that rows would have followed: they cannot be told from requests any more."""

    def __init__(self, error: DeblurError) -> None:
        self.error = error


class Requests:
    """The pipe of requests, read by a thread of its own, so that its end is seen at any time.

    Args:
        descriptor: of the pipe.
        leave: called when the pipe ends while :meth:`busy`; must not return.
    """

    def __init__(self, descriptor: int, leave: Callable[[], object]) -> None:
        self._descriptor, self._leave = descriptor, leave
        self._changed = threading.Condition()
        self._bytes = bytearray()
        self._ended = self._busy = False
        # os.read: a thread in a buffered read would stop Python from ending.
        threading.Thread(target=self._pump, name="vs-deblur bridge", daemon=True).start()

    def _pump(self) -> None:
        while True:
            try:
                chunk = os.read(self._descriptor, _CHUNK)
            except OSError:
                chunk = b""
            with self._changed:
                self._bytes += chunk
                self._ended = not chunk
                self._changed.notify_all()
                if self._ended:
                    if self._busy:
                        self._leave()
                    return
                self._changed.wait_for(lambda: len(self._bytes) < _AHEAD)

    def read(self, count: int) -> bytearray:
        """The next so many bytes.

        Raises:
            Ended: there are not so many to come.
        """
        result = bytearray()
        with self._changed:
            while len(result) < count:
                self._changed.wait_for(lambda: self._bytes or self._ended)
                if not self._bytes:
                    raise Ended
                wanted = count - len(result)
                result += self._bytes[:wanted]
                del self._bytes[:wanted]
                self._changed.notify_all()
        return result

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While work is done for the other side: its end ends the process."""
        with self._changed:
            self._busy = True
            if self._ended:
                self._leave()
        try:
            yield
        finally:
            with self._changed:
                self._busy = False


def _number(fields: Mapping[str, Any], name: str, low: float, high: float) -> Any:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{name} must be {low:g}..{high:g}, got {value!r:.40}")
    return value


def _choice[T](fields: Mapping[str, Any], name: str, choices: Mapping[str, T]) -> T:
    value = fields.get(name)
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r:.40}")
    return choices[value]


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "auto")
    if not isinstance(value, str):
        raise UsageError(f"{name} must be text, got {value!r:.40}")
    return value


@dataclass(frozen=True)
class Job:
    """A request to deblur.

    Attributes:
        width, height: of the picture that comes, pixels.
        colours: 1 or 3; alpha: whether a channel of it follows.
        sample: type of the samples.
        box: left, top, width and height of what is to come back.
        strength: 0..1.
    """

    width: int
    height: int
    colours: int
    alpha: bool
    sample: Any
    box: tuple[int, int, int, int]
    strength: float

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Job:
        """Read it from a message.

        Raises:
            UsageError: a field is missing, or has a value that cannot be.
        """
        width, height = (int(_number(fields, n, 1, MAX_SIDE)) for n in ("width", "height"))
        colours, alpha = _choice(fields, "channels", CHANNELS)
        sample = _choice(fields, "sample", SAMPLES)
        given = fields.get("box", [0, 0, width, height])
        if not isinstance(given, list) or not all(type(v) is int for v in given):
            raise UsageError("box must be four whole numbers")
        if len(given) != 4 or min(given[:2]) < 0 or min(given[2:]) < 1:
            raise UsageError("box must be left, top, width and height")
        left, top, inner_width, inner_height = given
        if left + inner_width > width or top + inner_height > height:
            raise UsageError("box must lie in the picture")
        strength = float(_number(fields, "strength", 0, 1))
        box = (left, top, inner_width, inner_height)
        return cls(width, height, colours, alpha, sample, box, strength)

    def empty(self) -> NDArray[Any]:
        """Room for the samples, (H, W, C).

        Raises:
            OutOfMemoryError: there is not so much memory.
        """
        try:
            return np.empty((self.height, self.width, self.colours + self.alpha), self.sample)
        except (MemoryError, ValueError) as error:
            raise OutOfMemoryError("the picture does not fit into memory", "cpu") from error


class Worker:
    """Answers requests until their pipe ends.

    Args:
        requests: descriptor of the pipe of requests.
        answers: descriptor of the pipe of answers.
        deblur: what deblurs a picture with an engine.
        leave: called when the other side goes away in the middle of work; must not return.
    """

    def __init__(
        self,
        requests: int,
        answers: int,
        deblur: Deblur,
        leave: Callable[[], object] = lambda: os._exit(0),
    ) -> None:
        self._answers, self._deblur = answers, deblur
        self._requests = Requests(requests, leave)
        self._engines: dict[tuple[str, str, str], Deblurrer] = {}

    def run(self) -> int:
        """Serve; the exit code.

        What is asked for and cannot be done is answered with an error and costs nothing else. A
        stream that is not of this protocol is answered with a last error.
        """
        try:
            while True:
                message = unpack(self._requests.read)
                if message.kind == "bye":
                    return 0
                self._answer(message)
        except (Ended, BrokenPipeError):
            return 0
        except (ProtocolError, RefusedError) as end:  # what follows cannot be understood, either
            error = end.error if isinstance(end, RefusedError) else end
            with suppress(BrokenPipeError):
                self._say_error(error, last=True)
            return error.exit_code

    def _answer(self, message: Message) -> None:
        answers: dict[str, Callable[[Message], None]] = {
            "hello": self._hello,
            "load": self._load,
            "deblur": self._work,
        }
        answer = answers.get(message.kind)
        if answer is None:
            raise ProtocolError(f"no such request: {message.kind!r:.40}")
        try:
            answer(message)
        except (ProtocolError, RefusedError, BrokenPipeError, Ended):
            raise
        except DeblurError as error:
            self._say_error(error)
        except MemoryError:
            self._say_error(OutOfMemoryError("out of memory", "cpu", "close other programs"))
        except Exception as error:
            logger.exception("the worker failed")
            self._say_error(EngineError(f"{type(error).__name__}: {error}"))

    def _say(self, kind: str, payload: Any = b"", **fields: Any) -> None:
        for part in pack(kind, payload, **fields):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(self._answers, rest) :]

    def _say_error(self, error: DeblurError, *, last: bool = False) -> None:
        self._say("error", message=str(error), code=error.exit_code, last=last)

    # ---------------------------------------------------------------------------- requests

    def _hello(self, message: Message) -> None:
        if message.fields.get("protocol") != PROTOCOL:
            theirs = message.fields.get("protocol")
            raise ProtocolError(
                f"the action in GIMP speaks protocol {theirs!r:.20}, vs-deblur {__version__} "
                f"speaks {PROTOCOL}",
                None,
                "run `vs-deblur gimp install` again and restart GIMP",
            )
        self._say("hello", protocol=PROTOCOL, version=__version__)

    def _load(self, message: Message) -> None:
        with self._requests.busy():
            engine = self._engine(message.fields)
        self._say(
            "loaded",
            model=engine.model,
            device=str(engine.device),
            precision=engine.precision,
            description=engine.describe(),
            margin=engine.spec.receptive_field,
            align=engine.spec.multiple_of,
        )

    def _engine(self, fields: Mapping[str, Any]) -> Deblurrer:
        from vs_deblur.engine import Deblurrer

        model, device, precision = (_text(fields, n) for n in ("model", "device", "precision"))
        key = (model, device, precision)
        if key not in self._engines:
            self._engines.clear()  # one at a time in memory
            self._engines[key] = Deblurrer(model, device=device, precision=precision, kind="photo")
        return self._engines[key]

    def _work(self, message: Message) -> None:
        """A picture comes in rows, then progress goes back, then its box in rows.

        All rows are taken before anything else can fail, so that such an error leaves nothing in
        the pipe.

        Raises:
            RefusedError: it is not to be done, whatever rows come.
        """
        try:
            job = Job.of(message.fields)
            samples = job.empty()
        except DeblurError as error:
            raise RefusedError(error) from error
        self._fill(samples)
        begin = time.monotonic()
        picture = Picture(samples, job.colours, "straight" if job.alpha else None)
        tiles = 0

        def progress(done: int, total: int) -> None:
            nonlocal tiles
            tiles = total
            self._say("progress", done=done, total=total)

        with self._requests.busy():
            engine = self._engine(message.fields)
            engine.strength = job.strength
            sharp = self._deblur(picture, engine, progress).samples
        left, top, width, height = job.box
        sharp = sharp[top : top + height, left : left + width]
        rows = max(1, STRIP // sharp[:1].nbytes)
        for first in range(0, height, rows):
            self._say("rows", np.ascontiguousarray(sharp[first : first + rows]))
        self._say(
            "done",
            model=engine.model,
            device=str(engine.device),
            precision=engine.precision,
            tiles=tiles,
            seconds=round(time.monotonic() - begin, 3),
        )

    def _fill(self, samples: NDArray[Any]) -> None:
        """Take rows until a picture is whole.

        Raises:
            ProtocolError: something else comes, or too much.
        """
        flat = samples.reshape(-1).view(np.uint8)
        filled = 0
        while filled < flat.nbytes:
            message = unpack(self._requests.read)
            size = len(message.payload)
            if message.kind != "rows" or not 0 < size <= flat.nbytes - filled:
                raise ProtocolError(f"rows of the picture were to come, not {message.kind!r:.40}")
            flat[filled : filled + size] = np.frombuffer(message.payload, np.uint8)
            filled += size
