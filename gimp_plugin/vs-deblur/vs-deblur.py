#!/usr/bin/env python3
"""Motion Deblur: an action for GIMP 3.0 and 3.2, Filters > Enhance > Motion Deblur…

GIMP's own Python runs this file, which therefore needs nothing but the standard library and gi.
The network runs in a worker, a process of the Python that has vs-deblur: ``vs-deblur gimp install``
puts this file into GIMP's profile and writes beside it, into ``vs-deblur.json``, how to start the
worker. What the two say to each other is in docs/gimp-bridge.md.

What must hold, and why the code below is as it is:

* GIMP ends a cancelled action with SIGKILL: no clean-up runs. The image is touched only after all
  is computed, in one undo group, and the worker leaves when its pipe ends.
* Colours travel in the layer's own space and, where they can, in its own type, so that what the
  network leaves alone comes back bit by bit. An unknown name of a format aborts the process.
* Shadow buffers are merged by GIMP, which does the selection and the locks.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import gi

gi.require_version("Babl", "0.1")
gi.require_version("Gegl", "0.4")
gi.require_version("Gimp", "3.0")
from gi.repository import Babl, Gegl, Gimp, GLib, GObject  # noqa: E402

VERSION = "0.1.0"
PROTOCOL = 1
PROCEDURE = "plug-in-vs-deblur"
TITLE = "Motion Deblur"
STRIP = 256  # rows that are read and written at once
STARTING = 60.0  # seconds in which a worker must say hello

Progress = Callable[[float, str], None]


class Failure(Exception):
    """What GIMP tells the user: what is wrong, and what to do."""


# ------------------------------------------------------------------------------------ the worker

HEAD = struct.Struct("<4sIQ")
MAGIC = b"VSDB"
WEIGHTS = 5  # the code of errors about weights
MAX_JSON = 1 << 16
MAX_PAYLOAD = 1 << 28
AGAIN = (
    "Run `vs-deblur gimp install` in a terminal (in a checkout: `uv run vs-deblur gimp install`), "
    "and restart GIMP."
)
CHANGED = "The layer or the selection was changed meanwhile: do it again."
DOCTOR = "`vs-deblur gimp doctor` in a terminal tells more."
# What GIMP sets for its own libraries and must not reach another Python.
HOST_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "GI_TYPELIB_PATH")


def settings() -> dict[str, Any]:
    """How to start the worker: the file that the installation wrote; empty if there is none."""
    try:
        found = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def log_path() -> Path:
    """The file that takes what the worker says."""
    return Path(GLib.get_user_cache_dir(), "vs-deblur", "gimp.log")


def where_log() -> str:
    """The end of a message."""
    return f"The log is {log_path()}."


def private(path: str, flags: int) -> int:
    """Open a file; one that is made is for this user only."""
    return os.open(path, flags, 0o600)


def open_log() -> Any:
    """The log, to be written on; begun anew when it is long."""
    path = log_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_long = path.exists() and path.stat().st_size > 1 << 20
        # What the user works on is nobody else's business.
        return open(path, "wb" if is_long else "ab", buffering=0, opener=private)
    except OSError:
        return Path(os.devnull).open("wb", buffering=0)


class Worker:
    """The process that computes.

    Raises:
        Failure: it cannot be started, or does not speak our protocol. So do all its methods.
    """

    def __init__(self) -> None:
        found = settings()
        python = os.environ.get("VS_DEBLUR_PYTHON") or found.get("python")
        if not python:
            raise Failure(f"{TITLE} does not know where vs-deblur is. {AGAIN} {where_log()}")
        argv = [str(a) for a in found.get("argv", ("-I", "-m", "vs_deblur", "gimp", "worker"))]
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in HOST_VARIABLES and not name.startswith("DYLD_")
        }
        self.log = open_log()
        try:
            self.process = subprocess.Popen(
                [python, *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                env=environment,
                # No window of a console on Windows.
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            self.log.close()
            why = error.strerror or str(error)
            raise Failure(
                f"vs-deblur cannot be started: {why} ({python}). {AGAIN} {where_log()}"
            ) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        watchdog = threading.Timer(STARTING, self.process.kill)
        watchdog.start()
        try:
            hello = self.ask("hello", protocol=PROTOCOL, version=VERSION)
        except BaseException as error:
            self.end()
            if not watchdog.is_alive() and isinstance(error, Failure):
                text = (
                    f"vs-deblur did not start within {STARTING:g} seconds. {DOCTOR} {where_log()}"
                )
                raise Failure(text) from error
            raise
        finally:
            watchdog.cancel()
        if hello.get("protocol") != PROTOCOL:
            self.end()
            version = hello.get("version")
            raise Failure(f"vs-deblur {version} does not fit this action. {AGAIN} {where_log()}")

    def say(self, kind: str, payload: bytes = b"", **fields: Any) -> None:
        """Send a message."""
        text = json.dumps({"type": kind, **fields}).encode()
        try:
            self.requests.write(HEAD.pack(MAGIC, len(text), len(payload)) + text)
            self.requests.write(payload)
            self.requests.flush()
        except (OSError, ValueError) as error:
            self.listen()  # its last words, if it had any
            raise self._ended() from error

    def listen(self) -> tuple[dict[str, Any], bytes]:
        """The next answer: its JSON and its payload."""
        magic, length, size = HEAD.unpack(self._read(HEAD.size))
        if magic != MAGIC or length > MAX_JSON or size > MAX_PAYLOAD:
            raise Failure(f"vs-deblur answered with something else. {AGAIN} {where_log()}")
        try:
            fields = json.loads(self._read(length).decode())
            kind = fields["type"]
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(f"vs-deblur gave no valid answer. {AGAIN} {where_log()}") from error
        if kind == "error":
            remedy = AGAIN if fields.get("code") == WEIGHTS else DOCTOR
            raise Failure(f"{fields.get('message')}. {remedy} {where_log()}")
        return fields, self._read(size)

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a message; the JSON of its answer."""
        self.say(kind, **fields)
        return self.listen()[0]

    def load(self, model: str) -> dict[str, Any]:
        """Load a model: what it is called, where it runs, and what it needs around a pixel."""
        return self.ask("load", model=model)

    def deblur(
        self, job: Job, strips: Iterator[bytes], progress: Callable[[int, int], None]
    ) -> list[bytes]:
        """Have a picture deblurred.

        Args:
            job: what comes.
            strips: its samples, rows after rows.
            progress: told of tiles that are done, and of all.

        Returns:
            the samples of the job's box, a number of whole rows each.
        """
        self.say(
            "deblur",
            model=job.model,
            strength=job.strength,
            width=job.read.width,
            height=job.read.height,
            channels=job.wire.channels,
            sample=job.wire.sample,
            box=[job.box.x - job.read.x, job.box.y - job.read.y, job.box.width, job.box.height],
        )
        for strip in strips:
            self.say("rows", strip)
        rows: list[bytes] = []
        line = job.box.width * job.wire.pixel
        while True:
            fields, payload = self.listen()
            if fields["type"] == "progress":
                progress(fields["done"], max(fields["total"], 1))
            elif fields["type"] == "rows":
                rows.append(payload)
            elif fields["type"] == "done":
                if sum(map(len, rows)) != line * job.box.height or any(len(r) % line for r in rows):
                    raise Failure(f"vs-deblur gave another picture back. {AGAIN} {where_log()}")
                self._note(
                    f"{fields['model']} on {fields['device']}, {fields['precision']}, strength "
                    f"{job.strength:g}, {job.box.width}x{job.box.height} pixels, "
                    f"{fields['tiles']} tiles, {fields['seconds']} s"
                )
                return rows

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        for stream in (self.requests, self.answers, self.log):
            with suppress(OSError):
                stream.close()

    def _read(self, count: int) -> bytes:
        try:
            found = self.answers.read(count)
        except (OSError, ValueError):
            found = b""
        if len(found) < count:
            # Rubbish is told from silence by its first bytes.
            if found and not MAGIC.startswith(found[:4]):
                raise Failure(f"vs-deblur answered with something else. {AGAIN} {where_log()}")
            raise self._ended()
        return found

    def _ended(self) -> Failure:
        try:
            code: Any = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = "none"
        memory = " Perhaps memory ran out: select a smaller part." if code == -9 else ""
        return Failure(
            f"vs-deblur ended unexpectedly (exit code {code}).{memory} {DOCTOR} {where_log()}"
        )

    def _note(self, text: str) -> None:
        with suppress(OSError):
            self.log.write(f"{time.strftime('%F %T')} {text}\n".encode())


# ------------------------------------------------------------------------------------ pixels


class Box(NamedTuple):
    """A rectangle of a layer, in its own coordinates, pixels."""

    x: int
    y: int
    width: int
    height: int

    def rectangle(self) -> Any:
        """The same for GEGL."""
        return Gegl.Rectangle.new(*self)

    def strips(self, rows: int = STRIP) -> Iterator[Box]:
        """The rectangle in pieces of so many rows."""
        for first in range(0, self.height, rows):
            yield self._replace(y=self.y + first, height=min(rows, self.height - first))


class Wire(NamedTuple):
    """How samples travel.

    Attributes:
        format: name for babl, with the layer's space.
        channels: name in the protocol; sample: likewise.
        pixel: bytes of a pixel.
    """

    format: str
    channels: str
    sample: str
    pixel: int


class Job(NamedTuple):
    """A layer to be deblurred: which part is to change, which is read for that, and how."""

    drawable: Any
    size: tuple[int, int]
    box: Box
    read: Box
    wire: Wire
    model: str
    strength: float

    @classmethod
    def of(cls, drawable: Any, box: Box, area: Box, model: str, strength: float) -> Job:
        """The job for a layer as it is now."""
        size = drawable.get_width(), drawable.get_height()
        return cls(drawable, size, box, area, wire_of(drawable), model, strength)


# What babl calls a type, what the protocol calls it, and its bytes.
_TYPES = {"u8": ("u8", 1), "u16": ("u16", 2), "half": ("f16", 2), "float": ("f32", 4)}


def wire_of(drawable: Any) -> Wire:
    """The layer's own type and curve; linear light in its profile's curve, as floats.

    The networks know pictures as they are encoded, not light. A profile whose own curve is linear
    gets a perceptual one.
    """
    image = drawable.get_image()
    precision = image.get_precision().value_nick  # e.g. "u16-non-linear"
    kind, _, curve = precision.partition("-")
    mark = "~" if curve == "perceptual" else "'"
    if curve == "linear":
        kind = "float"
        profile = image.get_effective_color_profile()
        mark = "~" if profile is not None and profile.is_linear() else "'"
    alpha = "A" if drawable.has_alpha() else ""
    letters = "Y" if drawable.is_gray() else "RGB"
    colours = "".join(letter + mark for letter in letters)
    # A name that babl does not know aborts the process.
    if kind not in _TYPES or not Babl.format_exists(f"{colours}{alpha} {kind}"):
        kind = "float"
    encoding = Babl.format_with_space(f"{colours}{alpha} {kind}", drawable.get_format())
    sample, size = _TYPES[kind]
    channels = (letters + alpha).lower()
    return Wire(Babl.get_name(encoding), channels, sample, size * len(channels))


def around(drawable: Any, box: Box, margin: int, align: int) -> Box:
    """A box with a margin, in the layer, that begins where the network's own grid has a line."""
    left, top = (max(0, v - margin) // align * align for v in box[:2])
    right = min(drawable.get_width(), box.x + box.width + margin)
    bottom = min(drawable.get_height(), box.y + box.height + margin)
    return Box(left, top, right - left, bottom - top)


def read(drawable: Any, box: Box, wire: Wire) -> Iterator[bytes]:
    """Samples of a box, strip after strip."""
    buffer = drawable.get_buffer()
    if buffer is None:
        raise Failure(CHANGED)  # it is deleted
    for strip in box.strips():
        yield buffer.get(strip.rectangle(), 1.0, wire.format, Gegl.AbyssPolicy.CLAMP)


def write(drawable: Any, box: Box, wire: Wire, rows: list[bytes]) -> None:
    """Put samples into a box; the selection decides how much of them is seen.

    Args:
        rows: samples of whole rows, a number of rows each.

    Raises:
        Failure: GIMP does not let the layer be changed.
    """
    shadow = drawable.get_shadow_buffer()
    # All of it is merged: what is not computed is what it was, to the bit.
    whole = Box(0, 0, drawable.get_width(), drawable.get_height()).rectangle()
    drawable.get_buffer().copy(whole, Gegl.AbyssPolicy.NONE, shadow, whole)
    top = box.y
    for part in rows:
        height = len(part) // (wire.pixel * box.width)
        here = Box(box.x, top, box.width, height)
        for strip in here.strips():
            first = (strip.y - top) * wire.pixel * box.width
            size = strip.height * wire.pixel * box.width
            shadow.set(strip.rectangle(), wire.format, part[first : first + size])
        top += height
    shadow.flush()
    del shadow  # before the merge
    if not drawable.merge_shadow(True):
        raise Failure(f"GIMP does not let layer “{drawable.get_name()}” be changed: unlock it.")
    drawable.update(*box)


# ------------------------------------------------------------------------------------ the action


class Options(NamedTuple):
    """What the user asked for."""

    model: str
    strength: float
    new_layer: bool

    @classmethod
    def of(cls, config: Any) -> Options:
        """Read a procedure's arguments."""
        names = ("model", "strength", "new-layer")
        return cls(*(config.get_property(name) for name in names))


def check(drawables: list[Any], new_layer: bool) -> None:
    """Refuse what cannot be deblurred, before anything is done.

    Raises:
        Failure: what it is, and what to do.
    """
    if not drawables:
        raise Failure("No layer is selected: select one.")
    for drawable in drawables:
        name = drawable.get_name()
        if isinstance(drawable, Gimp.GroupLayer):
            raise Failure(f"“{name}” is a group of layers: select the layers in it, or merge it.")
        if not isinstance(drawable, Gimp.Layer):
            raise Failure(f"“{name}” is a mask or channel: select a layer.")
        if drawable.is_indexed():
            raise Failure("The image has a palette: change it by Image > Mode > RGB first.")
        if drawable.is_floating_sel():
            raise Failure("The selection floats: anchor it first (Layer > Anchor Layer).")
        if not new_layer and drawable.get_lock_content():
            raise Failure(f"The pixels of “{name}” are locked: unlock them or ask for a new layer.")
        group = drawable.get_parent()
        while group is not None:
            if group.get_lock_content():
                raise Failure(f"The group “{group.get_name()}” is locked: unlock its pixels.")
            group = group.get_parent()


def selected(drawable: Any) -> Box:
    """The part of a layer that the selection touches.

    Raises:
        Failure: none.
    """
    ok, x, y, width, height = drawable.mask_intersect()
    if not ok or width < 1 or height < 1:
        raise Failure(f"The selection is outside of layer “{drawable.get_name()}”: change it.")
    return Box(x, y, width, height)


def deblur(
    image: Any, drawables: list[Any], options: Options, worker: Worker, progress: Progress
) -> None:
    """Deblur layers: compute everything, then change the image in one undo step.

    Raises:
        Failure: the image is as it was.
    """
    boxes = [selected(drawable) for drawable in drawables]
    progress(0.0, "Loading the network")
    facts = worker.load(options.model)
    text = f"{TITLE}: {facts['model']} on {facts['device']}"
    results = []
    for n, (drawable, box) in enumerate(zip(drawables, boxes, strict=True)):
        if not drawable.is_valid():
            raise Failure(CHANGED)
        area = around(drawable, box, facts["margin"], facts["align"])
        job = Job.of(drawable, box, area, options.model, options.strength)

        def share(done: int, total: int, n: int = n) -> None:
            tiles = f", {done} of {total} tiles" if done and total > 1 else ""
            progress((n + done / total) / len(drawables), text + tiles)

        share(0, 1)
        results.append((job, worker.deblur(job, read(drawable, area, job.wire), share)))
    progress(1.0, text)
    check_unchanged([job for job, _ in results], options)
    with undo_step(image), result_layers(image, drawables, options) as targets:
        for (job, rows), target in zip(results, targets, strict=True):
            write(target, job.box, job.wire, rows)


def check_unchanged(jobs: list[Job], options: Options) -> None:
    """GIMP stays alive while we compute: the user may have changed what the result is for.

    Raises:
        Failure: a layer or the selection is not what it was.
    """
    for job in jobs:
        layer = job.drawable
        same = layer.is_valid() and wire_of(layer) == job.wire
        size = (layer.get_width(), layer.get_height()) if same else None
        if not same or size != job.size or selected(layer) != job.box:
            raise Failure(CHANGED)
    check([job.drawable for job in jobs], options.new_layer)


def leave(image: Any, drawables: list[Any], options: Options) -> None:
    """The action at strength 0: no network is asked, and not a bit is changed."""
    for drawable in drawables:
        selected(drawable)
    if options.new_layer:
        with undo_step(image), result_layers(image, drawables, options):
            pass


@contextmanager
def undo_step(image: Any) -> Iterator[None]:
    """All that is done to the image is one step to undo."""
    image.undo_group_start()
    try:
        yield
    finally:
        image.undo_group_end()
        Gimp.displays_flush()


@contextmanager
def result_layers(image: Any, layers: list[Any], options: Options) -> Iterator[list[Any]]:
    """The layers that results go to: those that were given, or a copy above each.

    Copies are selected at the end, or gone again if it fails.
    """
    if not options.new_layer:
        yield layers
        return
    copies = []
    try:
        for layer in layers:
            copy = layer.copy()
            copy.set_name(f"{layer.get_name()} ({TITLE})")
            copy.set_lock_content(False)
            image.insert_layer(copy, layer.get_parent(), image.get_item_position(layer))
            copies.append(copy)
        yield copies
    except BaseException:
        for copy in copies:
            image.remove_layer(copy)
        raise
    image.set_selected_layers(copies)


def show_progress(share: float, text: str) -> None:
    """In GIMP's own bar."""
    Gimp.progress_set_text(text)
    Gimp.progress_update(share)


# ------------------------------------------------------------------------------------ the dialog


class Request(NamedTuple):
    """A part of the layer to be shown deblurred."""

    job: Job
    strips: list[bytes]


class Computer(threading.Thread):
    """Owns the worker while the dialog is open: starts it, loads models, deblurs parts.

    GIMP may be asked by the main thread only; this one knows nothing but bytes. Answers are given
    by calls in the main thread. Only the last request counts.

    Args:
        show: called with a request and its rows.
        fail: called with what went wrong.
    """

    def __init__(
        self, show: Callable[[Request, list[bytes]], bool], fail: Callable[[str], bool]
    ) -> None:
        super().__init__(daemon=True)
        self.worker: Worker | None = None
        self._show, self._fail = show, fail
        self._changed = threading.Condition()
        self._next: Request | None = None
        self._stopped = False

    def ask(self, request: Request) -> None:
        """Deblur this next; forget what has not been begun."""
        with self._changed:
            self._next = request
            self._changed.notify()

    def stop(self) -> Worker | None:
        """Give the worker back, when what it does is done; None if there is none."""
        self._begin_no_more()
        while self.is_alive():
            self.join(0.1)
            Gimp.progress_pulse()
        return self.worker

    def abandon(self) -> None:
        """End everything at once."""
        self._begin_no_more()
        if self.worker is not None:
            self.worker.process.kill()

    def _begin_no_more(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        """Work until stopped. A fault ends the worker; the next request begins with another."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._stopped)
                request, self._next = self._next, None
                if self._stopped:
                    return
            assert request is not None
            try:
                self.worker = self.worker or Worker()
                rows = self.worker.deblur(request.job, iter(request.strips), lambda *_: None)
            except Exception as error:
                if self.worker is not None:
                    self.worker.end()
                    self.worker = None
                if not self._stopped:
                    GLib.idle_add(self._fail, str(error))
            else:
                GLib.idle_add(self._show, request, rows)


class Preview:
    """Before and after, of a part of the layer, side by side under a line that can be moved.

    Dragging the line moves it; dragging elsewhere moves the part that is shown. The network's
    whole change is computed once for a place, and mixed in at the strength of the moment.

    Attributes:
        widget: what to put into a dialog.
        computer: what owns the worker.
    """

    SIDE = 384  # of the part that is shown, pixels
    MARGIN = 64  # read around it: less than the network sees, for the sake of speed
    NEAR = 10  # pixels from the line within which it is meant

    def __init__(self, drawable: Any, config: Any) -> None:
        gi.require_version("Gtk", "3.0")
        gi.require_version("GdkPixbuf", "2.0")
        from gi.repository import Gdk, GdkPixbuf, Gtk

        self._pixbufs, self._gdk = GdkPixbuf, Gdk
        self._drawable, self._config = drawable, config
        self._wire = wire_of(drawable)
        area = selected(drawable)
        self._size = min(self.SIDE, drawable.get_width()), min(self.SIDE, drawable.get_height())
        middle = area.x + area.width // 2, area.y + area.height // 2
        self._corner = self._inside(*(m - s // 2 for m, s in zip(middle, self._size, strict=True)))
        self._line = self._size[0] // 2
        self._drag: tuple[str, float, float, tuple[int, int]] | None = None
        self._before: Any = None
        self._after: Any = None

        self.widget = Gtk.Box(orientation=Gtk.Orientation.VERTICAL, spacing=4)
        names = Gtk.Box()
        names.pack_start(Gtk.Label(label="Before"), False, False, 0)
        names.pack_end(Gtk.Label(label="After"), False, False, 0)
        names.set_size_request(self._size[0], -1)
        names.set_halign(Gtk.Align.CENTER)
        self.widget.pack_start(names, False, False, 0)
        self._picture = Gtk.Image()
        events = Gtk.EventBox()
        events.add(self._picture)
        events.set_halign(Gtk.Align.CENTER)
        events.add_events(
            Gdk.EventMask.BUTTON_PRESS_MASK
            | Gdk.EventMask.BUTTON_RELEASE_MASK
            | Gdk.EventMask.POINTER_MOTION_MASK
        )
        events.connect("button-press-event", self._pressed)
        events.connect("button-release-event", self._released)
        events.connect("motion-notify-event", self._moved)
        self.widget.pack_start(events, False, False, 0)
        self._status = Gtk.Label(label="Starting the network…")
        self._status.set_line_wrap(True)
        self._status.set_max_width_chars(48)
        self.widget.pack_start(self._status, False, False, 0)
        self.widget.show_all()

        config.connect("notify::strength", lambda *_: self._draw())
        config.connect("notify::model", lambda *_: self._fetch())
        self.computer = Computer(self._arrived, self._failed)
        self.computer.start()
        self._fetch()

    def _inside(self, x: int, y: int) -> tuple[int, int]:
        """A corner from which the part lies in the layer."""
        width, height = self._drawable.get_width(), self._drawable.get_height()
        return (
            max(0, min(x, width - self._size[0])),
            max(0, min(y, height - self._size[1])),
        )

    # ---------------------------------------------------------------------------- pictures

    def _fetch(self) -> None:
        """Read the part that is to be shown, and have it deblurred."""
        box = Box(*self._corner, *self._size)
        if not self._drawable.is_valid():
            self._failed(CHANGED)
            return
        area = around(self._drawable, box, self.MARGIN, 32)
        job = Job.of(self._drawable, box, area, self._config.get_property("model"), 1.0)
        self._show_before(box)
        self.computer.ask(Request(job, list(read(self._drawable, area, self._wire))))

    def _show_before(self, box: Box) -> None:
        self._before = self._shown(self._drawable.get_buffer(), box)
        self._after = None
        self._draw()

    def _shown(self, buffer: Any, box: Box) -> Any:
        """A part of a buffer as it looks on the screen, over a chequered ground."""
        data = buffer.get(box.rectangle(), 1.0, "R'G'B'A u8", Gegl.AbyssPolicy.CLAMP)
        picture = self._pixbufs.Pixbuf.new_from_bytes(
            GLib.Bytes.new(data),
            self._pixbufs.Colorspace.RGB,
            True,
            8,
            box.width,
            box.height,
            4 * box.width,
        )
        nearest = self._pixbufs.InterpType.NEAREST
        return picture.composite_color_simple(
            box.width, box.height, nearest, 255, 16, 0x999999, 0x666666
        )

    def _arrived(self, request: Request, rows: list[bytes]) -> bool:
        box = request.job.box
        if box[:2] == self._corner and request.job.model == self._config.get_property("model"):
            buffer = Gegl.Buffer.new(self._wire.format, *box)
            buffer.set(box.rectangle(), self._wire.format, b"".join(rows))
            self._after = self._shown(buffer, box)
            self._status.set_text("Drag the line, or the picture.")
            self._draw()
        return False

    def _failed(self, text: str) -> bool:
        self._status.set_text(f"No preview. {text}")
        return False

    def _draw(self) -> None:
        """Before to the left of the line, after to the right."""
        if self._before is None:
            return
        width, height = self._size
        picture = self._before.copy()
        right = width - self._line
        after, opacity = self._after, round(255 * self._config.get_property("strength"))
        if after is None:  # it is waited for
            after, opacity = self._before.copy(), 100
            after.fill(0x808080FF)
        if right > 0:
            after.composite(
                picture,
                *(self._line, 0, right, height),
                *(0.0, 0.0, 1.0, 1.0),
                self._pixbufs.InterpType.NEAREST,
                opacity,
            )
        x = max(0, min(self._line, width - 2))
        picture.new_subpixbuf(x, 0, min(2, width), height).fill(0xFFFFFFFF)
        self._picture.set_from_pixbuf(picture)

    # ---------------------------------------------------------------------------- the mouse

    def _pressed(self, _widget: Any, event: Any) -> bool:
        what = "line" if abs(event.x - self._line) <= self.NEAR else "picture"
        self._drag = (what, event.x, event.y, self._corner)
        return True

    def _moved(self, widget: Any, event: Any) -> bool:
        near = abs(event.x - self._line) <= self.NEAR
        if self._drag is None:
            name = "ew-resize" if near else "grab"
            display = self._gdk.Display.get_default()
            widget.get_window().set_cursor(self._gdk.Cursor.new_from_name(display, name))
        elif self._drag[0] == "line":
            self._line = max(0, min(int(event.x), self._size[0]))
            self._draw()
        elif self._drawable.is_valid():
            self._corner = self._dragged(event)
            self._show_before(Box(*self._corner, *self._size))
        return True

    def _dragged(self, event: Any) -> tuple[int, int]:
        """The corner of what is shown when the picture has been dragged so far."""
        assert self._drag is not None
        _, x, y, corner = self._drag
        return self._inside(corner[0] + int(x - event.x), corner[1] + int(y - event.y))

    def _released(self, _widget: Any, event: Any) -> bool:
        if self._drag is not None and self._drag[0] == "picture":
            there, before = self._dragged(event), self._drag[3]
            self._corner = there
            if there != before or self._after is None:
                self._status.set_text("Computing…")
                self._fetch()
        self._drag = None
        return True


def ask_user(procedure: Any, config: Any, drawables: list[Any]) -> tuple[bool, Worker | None]:
    """Show the dialog: whether to go on, and the worker that it warmed up, if it did."""
    gi.require_version("GimpUi", "3.0")
    from gi.repository import GimpUi

    GimpUi.init("vs-deblur")
    dialog = GimpUi.ProcedureDialog.new(procedure, config, TITLE)
    dialog.get_scale_entry("strength", 100.0)
    preview: Preview | None = None
    try:
        preview = Preview(drawables[0], config)
        dialog.get_content_area().pack_start(preview.widget, True, True, 6)
    except Exception:  # the dialog does without; what is wrong with the worker is said by the run
        traceback.print_exc()
    dialog.fill(["model", "strength", "new-layer"])
    agreed = dialog.run()
    dialog.destroy()
    if preview is None:
        return agreed, None
    if not agreed:
        preview.computer.abandon()
        return False, None
    # With a bar to cancel it: a preview that was begun is finished first.
    Gimp.progress_init(TITLE)
    return True, preview.computer.stop()


# ------------------------------------------------------------------------------------ the plug-in


class MotionDeblur(Gimp.PlugIn):  # type: ignore[misc]  # gi has no types
    """What GIMP sees."""

    def do_set_i18n(self, _name: str) -> bool:
        """There is nothing to translate."""
        return False

    def do_query_procedures(self) -> list[str]:
        """Names of the procedures."""
        return [PROCEDURE]

    def do_create_procedure(self, name: str) -> Any:
        """Describe the procedure: where it is in the menu, and its arguments."""
        procedure = Gimp.ImageProcedure.new(self, name, Gimp.PDBProcType.PLUGIN, run, None)
        procedure.set_image_types("RGB*, GRAY*")
        sensitivity = Gimp.ProcedureSensitivityMask
        procedure.set_sensitivity_mask(sensitivity.DRAWABLE | sensitivity.DRAWABLES)
        procedure.set_menu_label("_Motion Deblur…")
        procedure.add_menu_path("<Image>/Filters/Enhance")
        procedure.set_documentation(
            "Take out the blur of a moving camera or subject",
            "A neural network makes the selected layers sharper. It runs in a process of "
            "vs-deblur, which must be installed.",
            None,  # no page of GIMP's manual is about it
        )
        procedure.set_attribution("The vs-deblur authors", "The vs-deblur authors", "2026")
        models = Gimp.Choice.new()
        for i, (value, label) in enumerate(settings().get("models") or [["auto", "Automatic"]]):
            models.add(value, i, label, "")
        flags = GObject.ParamFlags.READWRITE
        procedure.add_choice_argument(
            "model", "_Model", "The network that deblurs", models, "auto", flags
        )
        procedure.add_double_argument(
            "strength", "S_trength (%)", "How much of the change to apply", 0.0, 1.0, 1.0, flags
        )
        procedure.add_boolean_argument(
            "new-layer",
            "As _new layer",
            "Put the result above the layer instead of into it",
            True,
            flags,
        )
        return procedure


def run(
    procedure: Any, run_mode: Any, image: Any, drawables: list[Any], config: Any, _data: Any
) -> Any:
    """What GIMP calls."""
    worker: Worker | None = None
    try:
        if run_mode == Gimp.RunMode.INTERACTIVE:
            # What the user can choose comes later, and what cannot be done at all before.
            check(drawables, new_layer=True)
            agreed, worker = ask_user(procedure, config, drawables)
            if not agreed:
                return procedure.new_return_values(Gimp.PDBStatusType.CANCEL, GLib.Error())
        options = Options.of(config)
        check(drawables, options.new_layer)
        if options.strength == 0:
            leave(image, drawables, options)
        else:
            Gimp.progress_init(TITLE)
            worker = worker or Worker()
            deblur(image, drawables, options, worker, show_progress)
            Gimp.progress_end()
    except Failure as failure:
        return refused(procedure, str(failure))
    except Exception as error:
        log = open_log()
        log.write(traceback.format_exc().encode())
        log.close()
        text = f"{type(error).__name__}: {error}. The log is {log_path()}."
        return refused(procedure, text)
    finally:
        if worker is not None:
            worker.end()
    return procedure.new_return_values(Gimp.PDBStatusType.SUCCESS, GLib.Error())


def refused(procedure: Any, text: str) -> Any:
    """The answer that makes GIMP show a message."""
    error = GLib.Error.new_literal(Gimp.PlugIn.error_quark(), text, 0)
    return procedure.new_return_values(Gimp.PDBStatusType.EXECUTION_ERROR, error)


if __name__ == "__main__":
    Gimp.main(MotionDeblur.__gtype__, sys.argv)
