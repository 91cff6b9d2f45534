"""What is fuzzed: every parser of ours that reads bytes of strangers, as a function of bytes.

One list, :data:`TARGETS`, for the tests (``test_fuzz.py``) and for the coverage-guided runs
(``guided.py``). What must hold of any bytes is in :func:`check`.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

from tests.bounded import bounded
from tests.bridging import BYE, HELLO, NoEngine, echo, feed, job
from tests.invoke import invoke
from tests.pictures import PROFILE, XMP, exif, pillow, samples, waves
from tests.small import SMALL_LITE
from vs_deblur import journal, sequences, weights, wholeness
from vs_deblur.bridge import Message, pack, unpack
from vs_deblur.convert import convert
from vs_deblur.errors import DeblurError, InputError, ProtocolError, UsageError, WeightsError
from vs_deblur.hosts import y4m
from vs_deblur.hosts.worker import Worker, _text
from vs_deblur.photofile import Picture, read, write
from vs_deblur.photofile.metadata import upright
from vs_deblur.photofile.picture import Format, Metadata
from vs_deblur.photofile.png import SIGNATURE
from vs_deblur_models.registry import build_network, save_network

LONGEST = 2000
"""Characters of an error, most of them a path."""
MOST_PIXELS = 250_000


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        run: give it bytes; raises errors of ours only.
        seeds: valid inputs.
        tokens: byte strings that mean something to it.
        seal: mends checksums and lengths, so that what is changed behind them is looked at.
        may_be_large: whether an honest input may say that more memory is needed than there is,
            which is then an error of ours.
        raises: the errors that an input may end in.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    tokens: tuple[bytes, ...] = ()
    seal: Callable[[bytes], bytes] | None = None
    may_be_large: bool = False
    raises: tuple[type[DeblurError], ...] = (InputError,)


class Finding(AssertionError):
    """An input that does what none may do."""


def check(target: Target, data: bytes) -> None:
    """Whether bytes end in success, or in an error of ours of one clear line, in bounded memory.

    Raises:
        Finding: the error is not one clear line, or nobody thought of it.
        Exception: any other is a finding as well.
    """
    try:
        with bounded():
            target.run(data)
    except DeblurError as error:
        text = str(error)
        if not text.isprintable() or not 0 < len(text) <= LONGEST:
            raise Finding(f"not one clear line: {text[:2000]!r}") from error
        if error.hint == "-v shows the traceback":
            raise Finding(f"unforeseen: {text}") from error
        if not isinstance(error, target.raises):
            raise Finding(f"{type(error).__name__}, which is not for bad input: {text}") from error
        if "fit into memory" in text and not target.may_be_large:
            raise Finding(f"not refused before memory is taken: {text}") from error


@cache
def folder() -> Path:
    """A folder for this process, in memory if it can be."""
    named, memory = "TMPDIR" in os.environ, Path("/dev/shm")
    where = memory if not named and os.access(memory, os.W_OK) else None
    holder = tempfile.TemporaryDirectory(prefix="vs-deblur-fuzz-", dir=where)
    atexit.register(holder.cleanup)
    return Path(holder.name)


def _written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


# ---------------------------------------------------------------------------- y4m


def _y4m_header(data: bytes) -> None:
    header = y4m.parse_header(data.partition(b"\n")[0])
    again = y4m.parse_header(y4m.write_header(header))
    assert again == header, "what was written reads otherwise"
    _ = header.frame_bytes, header.length, header.frame_rate, header.sample_aspect_ratio
    header.pixel_format()


def _y4m_stream(data: bytes) -> None:
    reader = y4m.Y4mReader(io.BufferedReader(io.BytesIO(data)), "stream")
    info = reader.info()
    frames = list(reader.frames(len(data) % 3))
    size = sum(p.nbytes for planes in frames for p in planes)
    assert size <= len(data), "samples from nowhere"
    y4m.write_header(y4m.header_for(info, len(frames)))


def _y4m_headers() -> list[bytes]:
    return [
        b"YUV4MPEG2 C420 W640 H480 F30000:1001 Ip A0:0 XLENGTH=120\n",
        b"YUV4MPEG2 W5 H3 F25:1 It A1:1 C444p10 XYSCSS=444P10 XCOLORRANGE=FULL\n",
        b"YUV4MPEG2 W5 H3 I? XYSCSS=420MPEG2\n",
        b"YUV4MPEG2 Cmono16 W1 H1\n",
    ]


def _y4m_streams() -> list[bytes]:
    frame = b"FRAME\n" + bytes(range(15))
    grey = b"YUV4MPEG2 Cmono W5 H3 F25:1 Ip XLENGTH=3\n" + 3 * frame
    deep = b"YUV4MPEG2 C420p10 W2 H2 F0:0\n" + 2 * (b"FRAME Ixyz\n" + bytes(12))
    return [grey, deep, b"YUV4MPEG2 W3 H3\nFRAME\n" + bytes(17)]


_Y4M = tuple(
    b"YUV4MPEG2 |W5|H3|F25:1|F0:0|Ip|It|I?|A1:1|C420|C420jpeg|C420mpeg2|C420paldv|C411|C422|C440"
    b"|C444|C420p10|C444p16|Cmono|Cmono12|C420p8|XLENGTH=|XYSCSS=|XCOLORRANGE=FULL|FRAME\n|FRAME "
    b"|W32768 H32768 ".split(b"|")
)

# ---------------------------------------------------------------------------- the GIMP bridge


def _bridge_frame(data: bytes) -> None:
    file = io.BytesIO(data)

    def take(count: int) -> bytearray:
        found = file.read(count)
        if len(found) < count:
            raise ProtocolError("the stream ends")
        return bytearray(found)

    message = unpack(take)
    again = io.BytesIO(b"".join(map(bytes, pack("x", message.payload, **_without_type(message)))))
    unpack(lambda count: bytearray(again.read(count)))


def _without_type(message: Message) -> dict[str, Any]:
    return {k: v for k, v in message.fields.items() if k not in ("type", "kind", "payload")}


class _Faults(logging.Handler):
    """What the worker answers with "the worker failed": a fault of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(record.exc_info[1])


def _no_engine(_: Worker, fields: dict[str, Any]) -> Any:
    """Fields are looked at, a path among them as well, but nothing is loaded."""
    model, _device, _precision = (_text(fields, n) for n in ("model", "device", "precision"))
    weights.locate(model, "photo")
    return NoEngine()


def _gimp_worker(data: bytes) -> None:
    faults = _Faults()
    logger = logging.getLogger("vs_deblur.hosts.worker")
    logger.addHandler(faults)
    propagate, logger.propagate = logger.propagate, False
    try:
        with mock.patch.object(Worker, "_engine", _no_engine):
            found = feed(data, echo)
    except ProtocolError as error:
        raise Finding(f"an answer that is none: {error}") from error
    finally:
        logger.removeHandler(faults)
        logger.propagate = propagate
    if faults.found:
        raise faults.found[0]
    kinds = {"hello", "loaded", "progress", "rows", "done", "error"}
    assert set(found.kinds) <= kinds, "an answer of no known kind"
    for answer in found.answers:
        if answer.kind == "error":
            text = answer.fields["message"]
            if not text.isprintable() or not 0 < len(text) <= LONGEST:
                raise Finding(f"not one clear line: {text[:2000]!r}")


def _gimp_requests(data: bytes) -> None:
    """Lines of JSON, a tab and the payload, each made a frame with the right lengths."""
    stream = b""
    for line in data.split(b"\n"):
        text, _, payload = line.partition(b"\t")
        stream += struct.pack("<4sIQ", b"VSDB", len(text), len(payload)) + text + payload
    _gimp_worker(stream)


def _gimp_streams() -> list[bytes]:
    load = b"".join(pack("load", model="auto", device="cpu", precision="auto"))
    return [
        HELLO + load + BYE,
        HELLO + job(waves(6, 5, 3)) + BYE,
        job(waves(3, 4, 2, np.float32), strength=0.5, box=[1, 1, 2, 2]) + HELLO,
    ]


def _gimp_lines() -> list[bytes]:
    deblur = b'{"type":"deblur","model":"auto","strength":1.0,"width":5,"height":3,"channels":"y",'
    return [
        b'{"type":"hello","protocol":1}\n{"type":"load","model":"auto"}\n{"type":"bye"}',
        deblur
        + b'"sample":"u8","box":[1,0,4,3]}\n{"type":"rows"}\tabcde\n{"type":"rows"}\tabcdefghij',
    ]


_BRIDGE = tuple(
    b'VSDB|"type":|"hello"|"load"|"deblur"|"rows"|"bye"|"protocol":|"model":|"width":|"height":'
    b'|"channels":|"rgba"|"sample":|"f32"|"u16"|"box":|"strength":|524288|NaN|Infinity|null|1e999'
    b"|true|-1|[[[[[[[[|{}|\\ud800|\\u0000".split(b"|")
)

# ---------------------------------------------------------------------------- weights


def _weights_file(data: bytes) -> None:
    """Load a file, and tell all that it says of itself."""
    from vs_deblur.cli.models import command

    path = _written("weights.safetensors", data)
    result = invoke(command, "info", path)
    assert all(line.isprintable() for line in result.out.splitlines()), "a terminal would obey"
    json.loads(invoke(command, "info", path, "--json").out or "null")
    if result.error is not None:
        raise result.error
    weights.load(str(path))


_NUMBERS = b"\x3c" * 4096  # finite as numbers of any type


def _weights_header(data: bytes) -> None:
    """The JSON of a header; its length and as many numbers as it asks for are put to it."""
    asked = [
        int(n) for n in re.findall(rb"data_offsets[\"\s:]*\[\s*\d+\s*,\s*(\d{1,7})\s*\]", data)
    ]
    numbers = (_NUMBERS * (max(asked, default=0) // len(_NUMBERS) + 1))[: max(asked, default=0)]
    _weights_file(len(data).to_bytes(8, "little") + data + numbers)


@cache
def _small_weights() -> tuple[bytes, ...]:
    found = []
    for name, config in (
        ("strcnn_dtb_lite", SMALL_LITE),
        ("cnn", {"m": 1}),
        ("mscnn", {"scales": 2, "blocks": 1, "channels": 2}),
        ("photo_lite", {"channels": (4, 4), "encoder_blocks": (1, 1), "decoder_blocks": (1,)}),
    ):
        path = folder() / f"{name}.safetensors"
        save_network(build_network(name, config), path, torch.float16)
        found.append(path.read_bytes())
    return tuple(found)


def _weights_files() -> list[bytes]:
    tensors = {"networks.0.0.weight": torch.ones(2, 3, 1, 1)}
    return [_small_weights()[0], save_tensors(tensors, {"network": "mscnn"})]


def _weights_headers() -> list[bytes]:
    found = []
    for data in _small_weights():
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found.append(json.dumps(header, separators=(",", ":")).encode())
    for metadata in ({"pyramid": '"average"'}, {"residual": "true"}):
        tensor = {"dtype": "F32", "shape": [16, 16, 2, 2], "data_offsets": [0, 4096]}
        header = {"__metadata__": metadata, "networks.0.0.weight": tensor}
        found.append(json.dumps(header).encode())
    return found


_WEIGHTS = tuple(
    b'"__metadata__":|"network":|"dtype":"F32"|"dtype":"F16"|"F64"|"BF16"|"I64"|"shape":[0]'
    b'|"shape":[]|"shape":[4294967295,4294967295]|"data_offsets":[0,0]|"data_offsets":[0,4096]'
    b'|"conv1.weight"|"deconv.weight"|"networks.0.0.weight"|"pyramid":|"residual":|"[[[["|"1e999"'
    b'|"encoders.0.0.depthwise.weight"|"down.0.weight"|"head.weight"|"stacks.0.encoders.0.0.weight"'
    b'|"encoder3.conv.weight"|"unblocks3.0.conv1.weight"|"feedback.weight"|"dtb.beta"'.split(b"|")
)


def _manifest(data: bytes) -> None:
    from vs_deblur.cli.models import _lines, details

    place = folder() / "weights"
    place.mkdir(exist_ok=True)
    (place / "manifest.json").write_bytes(data)
    (place / "a.safetensors").write_bytes(_small_weights()[0])
    weights.shipped.cache_clear()
    try:
        with mock.patch.object(weights, "weights_folder", return_value=place):
            cards = weights.shipped()
            beside = all(card.path.parent == place for card in cards.values())
            assert beside, "a path leads out of the folder"
            for name, card in cards.items():
                _ = card.mean_gain
                row, _ = details(name)
                assert all(isinstance(line, str) for line in _lines(row))
            for kind in ("video", "photo"):
                weights.load("auto", kind)
    finally:
        weights.shipped.cache_clear()


def _manifests() -> list[bytes]:
    entry = {
        "name": "a",
        "file": "a.safetensors",
        "network": "strcnn_dtb_lite",
        "sha256": weights.sha256_of(_written("a", _small_weights()[0])),
        "licence": "MIT",
        "training_data": "none",
        "recipe": "a.toml",
        "gain_db": {"x": 1.5},
        "kind": "video",
        "default": True,
    }
    second = entry | {"name": "b", "kind": "photo", "file": "../a.safetensors"}
    return [json.dumps({"models": m}).encode() for m in ([entry], [entry, second], [])]


_MANIFEST = tuple(
    b'"models":|"name":|"file":|"../|"/etc/passwd"|"network":|"sha256":|"gain_db":|"kind":|"photo"'
    b'|"default":true|null|{}|[]|1e999|NaN|""|[[[[[[[[[[|\\u001b|\\ud800'.split(b"|")
)

# ---------------------------------------------------------------------------- checkpoints


def _checkpoint(data: bytes) -> None:
    convert(_written("model.pt", data))


def _checkpoint_pickle(data: bytes) -> None:
    """The pickle of a checkpoint, in a whole archive with two storages."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (
            ("data.pkl", data),
            ("byteorder", b"little"),
            ("data/0", _NUMBERS[:96]),
            ("data/1", _NUMBERS[:12]),
            ("version", b"3\n"),
        ):
            archive.writestr(f"model/{name}", content)
    _checkpoint(stream.getvalue())


def _state() -> dict[str, Any]:
    return {"networks.0.0.weight": torch.ones(2, 3, 2, 2), "b": torch.zeros(6).half()}


def _checkpoints() -> list[bytes]:
    found = []
    for content, zipped in (
        (_state(), True),
        (_state(), False),
        ({"state_dict": {"module." + k: v for k, v in _state().items()}, "epoch": 3}, False),
        ({"body_models.0.body.0.weight": torch.ones(2, 3, 1, 1)}, False),
    ):
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=zipped)
        found.append(stream.getvalue())
    found.append(save_tensors({"a": torch.ones(3)}))
    return found


def _checkpoint_pickles() -> list[bytes]:
    found = []
    for content in (_state(), {"model": {"params_ema": _state()}, "epoch": 3, "x": [1.5, (None,)]}):
        stream = io.BytesIO()
        torch.save(content, stream)
        with zipfile.ZipFile(stream) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            found.append(archive.read(name))
    return found


_PICKLE = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nHalfStorage\n",
    b"ctorch\nBoolStorage\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nSize\n",
    b"ctorch\ndevice\n",
    b"cbuiltins\neval\n",
    b"cos\nsystem\n",
    b"\x93",
    b"R",
    b"Q",
    b"b",
    b"\x81",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00",
    b"\x8a\x05\x00\x00\x00\x00\x40",
    b"X\xff\xff\xff\xff",
    b"B\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"h\x01",
    b"K\x00",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x01\x02",
)

# ---------------------------------------------------------------------------- photos

_FORMATS: tuple[Format, ...] = ("png", "jpeg", "tiff", "webp")


def _photo(data: bytes) -> None:
    picture = read(_written("photo", data), MOST_PIXELS)
    channels = picture.colours + (picture.alpha is not None) + picture.extras
    assert picture.samples.ndim == 3
    assert picture.samples.shape[2] == channels, "channels are miscounted"
    _write_and_read(picture, _FORMATS[data[-1] % 4])


def _write_and_read(picture: Picture, kind: Format) -> None:
    """What we write we can read."""
    path = folder() / "out"
    try:
        write(picture, path, kind)
    except UsageError:  # the format cannot hold it
        return
    again = read(path, MOST_PIXELS)
    assert again.size == picture.size, "what was written has another size"
    assert again.format == kind, "what was written is of another format"


def _photo_metadata(data: bytes) -> None:
    """EXIF, XMP, image resources, IPTC and ICC, by the first byte, of a picture of 3x2."""
    which, data = data[:1], data[1:]
    n = which[0] if which else 0
    meta = Metadata(**{("exif", "xmp", "photoshop", "iptc", "icc")[n % 5]: data})  # type: ignore[arg-type]
    if n % 5 == 1:
        meta.exif = exif(6)
    alpha = "straight" if n & 64 else None
    samples = waves(2, 3, 4 if alpha else 3)
    picture = Picture(samples, 3, alpha, meta=meta)  # type: ignore[arg-type]
    upright(picture)
    _write_and_read(picture, _FORMATS[n // 8 % 4])


def _seeds_of(*kinds: str) -> Callable[[], list[bytes]]:
    return lambda: [samples()[kind] for kind in kinds]


def _other_seeds() -> list[bytes]:
    Image.init()
    small = waves(6, 5, 3)
    kinds = ("ICO", "PPM", "TGA", "PCX", "JPEG2000", "DDS", "ICNS", "SGI", "QOI", "AVIF")
    known = [kind for kind in kinds if kind in Image.SAVE]
    return [samples()["gif"], samples()["bmp"], *(pillow(kind, small) for kind in known)]


def _metadata_seeds() -> list[bytes]:
    resources = b"8BIM\x04\x04\0\0\0\0\0\x05IPTC!\0" + b"8BIM\x04\x0c\x03abc\0\0\0\x03xyz\0"
    blocks = [exif(6), exif(8, order=">"), exif(1, thumbnail=False), XMP, resources, PROFILE[:300]]
    kinds = (0, 0, 0, 1, 2, 4)
    return [bytes([k + 8 * i]) + b for i, (k, b) in enumerate(zip(kinds, blocks, strict=True))]


def _sealed_png(data: bytes) -> bytes:
    """With the checksums of its chunks, as far as there are chunks."""
    sealed, at = bytearray(data), len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        sealed[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(sealed)


_PNG = (
    *(
        b"IHDR|PLTE|IDAT|IEND|tRNS|acTL|iCCP|eXIf|iTXt|zTXt|tEXt|pHYs|bKGD|cICP|gAMA|cHRM".split(
            b"|"
        )
    ),
    b"XML:com.adobe.xmp\0\0\0\0\0",
)
_JPEG = tuple(b"\xff" + bytes([m]) for m in (*range(0xC0, 0xD0), *range(0xD8, 0xF0), 0xFE, 1, 0))
_JPEG += (
    b"Exif\0\0",
    b"ICC_PROFILE\0\1\1",
    b"Photoshop 3.0\x008BIM",
    b"JFIF\0",
    b"Adobe",
    b"MPF\0",
)
_TIFF = tuple(
    struct.pack("<HHI", tag, kind, count)
    for tag in (254, 256, 257, 258, 259, 262, 273, 274, 277, 279, 284, 317, 322, 338, 339, 700)
    for kind, count in ((3, 1), (4, 1), (16, 1), (3, 65535), (1, 0x7FFFFFFF))
)
_TIFF += (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0")
_WEBP = tuple(b"RIFF|WEBP|VP8 |VP8L|VP8X|ANIM|ANMF|ALPH|ICCP|EXIF|XMP |\x9d\x01\x2a".split(b"|"))
_METADATA = (
    *_TIFF,
    *(b"8BIM|<xmp:Thumbnails>|</xmp:Thumbnails>|<xap:Thumbnails>|tiff:Orientation".split(b"|")),
    *(b'<tiff:Orientation>6<|tiff:ImageWidth="|tiff:ImageLength>|exif:PixelXDimension'.split(b"|")),
)


def _image(data: bytes) -> None:
    path = _written("image.png", data)
    sequences.header(path)
    assert sequences.read_image(path).shape[2] == 3


# ---------------------------------------------------------------------------- files of our own


def _journal(data: bytes) -> None:
    path = _written("out.part", data)
    found = journal.read(path)
    entries = list(journal.packets(path))
    if found is not None:
        assert len(found.order) <= len(entries)
        while found.chunks:
            found.drop_last()


def _journals() -> list[bytes]:
    path = folder() / "seed.part"
    with journal.Journal(path, {"crf": 17}) as book:
        for first in (0, 2):
            for n in range(first, first + 2):
                book.frame(n * 100, 100)
                book.packet(journal.Entry(n, n == first, bytes([n]) * (n + 1)))
            book.end_chunk(2)
    return [path.read_bytes()]


def _sealed_journal(data: bytes) -> bytes:
    """With the checksums of its records, as far as there are records."""
    sealed, at = bytearray(data), len(journal.MAGIC)
    while at + 9 <= len(data):
        kind, size = data[at : at + 1], int.from_bytes(data[at + 1 : at + 5], "little")
        payload = data[at + 9 : at + 9 + size]
        sealed[at + 5 : at + 9] = zlib.crc32(
            payload, zlib.crc32(kind + data[at + 1 : at + 5])
        ).to_bytes(4, "little")
        at += 9 + size
    return bytes(sealed)


def _wholeness(data: bytes) -> None:
    wholeness.is_cut_off(_written("film", data))


def _films() -> list[bytes]:
    boxes = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x01mdat" + (24).to_bytes(8, "big") + bytes(8)
    matroska = b"\x1a\x45\xdf\xa3\x81\0\x18\x53\x80\x67\x01\0\0\0\0\0\0\x04abcd"
    return [boxes, matroska, b"RIFF\x0c\0\0\0AVI \0\0\0\0"]


# ---------------------------------------------------------------------------- all

TARGETS: dict[str, Target] = {
    "y4m_header": Target(_y4m_header, _y4m_headers, _Y4M),
    "y4m_stream": Target(_y4m_stream, _y4m_streams, _Y4M, may_be_large=True),
    "bridge_frame": Target(_bridge_frame, _gimp_streams, _BRIDGE),
    "gimp_worker": Target(_gimp_worker, _gimp_streams, _BRIDGE),
    "gimp_requests": Target(_gimp_requests, _gimp_lines, _BRIDGE),
    "weights_file": Target(_weights_file, _weights_files, _WEIGHTS, raises=(WeightsError,)),
    "weights_header": Target(_weights_header, _weights_headers, _WEIGHTS, raises=(WeightsError,)),
    "manifest": Target(_manifest, _manifests, _MANIFEST, raises=(WeightsError,)),
    "checkpoint": Target(_checkpoint, _checkpoints, _PICKLE, raises=(InputError, WeightsError)),
    "checkpoint_pickle": Target(
        _checkpoint_pickle, _checkpoint_pickles, _PICKLE, raises=(InputError, WeightsError)
    ),
    "photo_png": Target(_photo, _seeds_of("png", "png16", "palette"), _PNG, _sealed_png),
    "photo_jpeg": Target(_photo, _seeds_of("jpeg", "progressive"), _JPEG),
    "photo_tiff": Target(
        _photo, _seeds_of("tiff", "deflate", "tiles", "lzw16", "lzw", "fax"), _TIFF
    ),
    "photo_webp": Target(_photo, _seeds_of("webp", "lossless webp"), _WEBP),
    "photo_other": Target(_photo, _other_seeds),
    "photo_metadata": Target(_photo_metadata, _metadata_seeds, _METADATA),
    "image": Target(_image, _seeds_of("png", "jpeg", "tiff", "bmp")),
    "journal": Target(_journal, _journals, (b"H", b"F", b"P", b"E"), _sealed_journal),
    "wholeness": Target(_wholeness, _films, (b"ftyp", b"moov", b"mdat", b"\0\0\0\x01", b"RIFF")),
}
"""The parsers by name."""
