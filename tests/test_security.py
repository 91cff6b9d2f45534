"""What SECURITY.md promises: read from the sources, and watched while the commands run."""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.bridging import BYE, HELLO, job
from tests.conftest import ROOT
from tests.films import Film
from tests.hostile import Eval, Hostile, save_hostile
from tests.pictures import jpeg, png, samples, segment, tiff, waves
from vs_deblur.bridge import pack

# ---------------------------------------------------------------------------- the sources

#: Modules that make connections, or run what they read.
_NEVER_IMPORTED = (
    "socket socketserver http urllib ftplib smtplib telnetlib xmlrpc asyncio requests httpx "
    "aiohttp webbrowser pickle cPickle dill cloudpickle joblib marshal shelve code codeop "
    "yaml"
)
NEVER_IMPORTED = frozenset(_NEVER_IMPORTED.split())
_NEVER_CALLED = (
    "eval exec compile __import__ os.system os.popen os.startfile subprocess.getoutput "
    "subprocess.getstatusoutput tempfile.mktemp os.execv os.execve os.execvp os.execl os.fork "
    "os.spawnl os.spawnv torch.hub.load torch.jit.load torch.package.PackageImporter"
)
NEVER_CALLED = frozenset(_NEVER_CALLED.split())
STARTS = frozenset(
    f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")
)
#: A script for VapourSynth is a program, which the user names to be run.
ALLOWED = {("vs_deblur/hosts/vpy.py", "compile"), ("vs_deblur/hosts/vpy.py", "exec")}


def offences(source: str) -> Iterator[tuple[str, int]]:
    """What a source text does that none of ours may, and its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from ((n, node.lineno) for n in names if n.partition(".")[0] in NEVER_IMPORTED)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in NEVER_CALLED:
                yield called, node.lineno
            if options.get("shell", "False") != "False":
                yield "shell", node.lineno
            if called in STARTS and node.args and not isinstance(node.args[0], ast.List | ast.Name):
                yield "a command that is no list", node.lineno
            if called == "torch.load" and options.get("weights_only") != "True":
                yield called, node.lineno
            if options.get("allow_pickle", "False") != "False":
                yield "allow_pickle", node.lineno


def sources() -> Iterator[tuple[str, Path]]:
    """Every source of ours by its place in the checkout; of the packages wherever they are."""
    for name in ("vs_deblur", "vs_deblur_models", "vs_deblur_kernels"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        folder = Path(found.origin).parent
        for path in sorted(folder.rglob("*.py")):
            yield f"{name}/{path.relative_to(folder).as_posix()}", path
    for name in ("gimp_plugin", "training", "examples", "benchmarks"):
        for path in sorted((ROOT / name).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path


def test_no_source_runs_what_it_reads_or_uses_a_shell_or_a_network() -> None:
    seen = list(sources())
    assert len(seen) > 60
    found = [
        (place, what, line)
        for place, path in seen
        for what, line in offences(path.read_text(encoding="utf-8"))
        if (place, what) not in ALLOWED
    ]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from urllib import request",
        "import http.server",
        "eval(x)",
        "os.system('ls')",
        "subprocess.run(['ls'], shell=True)",
        "subprocess.run('ls')",
        "subprocess.Popen(f'ls {x}')",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "tempfile.mktemp()",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(offences(source))


# ---------------------------------------------------------------------------- while it runs

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="watches folders by inotify"
)
_OPENED = 0x20 | 0x1 | 0x100  # IN_OPEN, IN_ACCESS, IN_CREATE


class Watch:
    """Tells which files of a folder are opened, by whomever: C code and other processes as well."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK)
        watching = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _OPENED)
        assert self._fd >= 0
        assert watching >= 0

    def opened(self) -> set[str]:
        """Names of files that were opened or made; closes the watch."""
        found, data = set(), b""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            pass
        finally:
            os.close(self._fd)
        while data:
            (length,) = struct.unpack_from("I", data, 12)
            found.add(os.fsdecode(data[16 : 16 + length].rstrip(b"\0")))
            data = data[16 + length :]
        return found - {""}


def audited(
    folder: Path, commands: list[list[str]], requests: bytes = b""
) -> tuple[str, list[str], set[str]]:
    """Run commands in a process that tells on itself.

    Returns:
        what it printed; what it did that must not be; the names in ``given/outside`` that were
        opened.
    """
    for name in ("home", "out", "temporary"):
        (folder / name).mkdir(exist_ok=True)
    log, wanted = folder / "log", folder / "wanted.json"
    log.unlink(missing_ok=True)
    writable = [str(folder / n) for n in ("home", "out", "temporary")]
    wanted.write_text(json.dumps({"commands": commands, "log": str(log), "writable": writable}))
    watch = Watch(folder / "given" / "outside")
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }
    output = folder / "said"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.audited", str(wanted)],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder / "given",
        )
        assert process.stdin is not None
        try:
            process.stdin.write(requests)
            process.stdin.flush()  # and not closed: that would end a worker at once
            process.wait(timeout=240)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
    said = output.read_text(errors="replace")
    return said, log.read_text().splitlines(), watch.opened()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``given/outside``, of good files that those in ``given`` are to name."""
    outside = tmp_path / "given" / "outside"
    outside.mkdir(parents=True)
    Film(frames=3).write(outside / "bait.mkv")
    (outside / "bait.png").write_bytes(samples()["png"])
    torch.save({"a": torch.ones(3)}, outside / "bait.pt")
    return tmp_path


def pictures(given: Path, bait: Path) -> None:
    """Pictures with paths wherever there is room for one."""
    names = f"{bait} outside/{bait.name} file://{bait} @{bait} |cat {bait}".encode()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><!DOCTYPE x [<!ENTITY y SYSTEM "%b">]>' % names
    xmp += b'<a xlink:href="%b"/>&y;</x:xmpmeta>' % names
    text = (b"tEXt", b"Source\0" + names)
    (given / "a.png").write_bytes(
        png(waves(9, 9, 3), text, (b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp))
    )
    xap = b"http://ns.adobe.com/xap/1.0/\0"
    (given / "b.jpg").write_bytes(
        jpeg(waves(9, 9, 3), segment(0xFE, names), segment(0xE1, xap + xmp))
    )
    tags = [(n, 2, len(names) + 1, names + b"\0", True) for n in (269, 270, 285, 305, 315, 333)]
    (given / "c.tif").write_bytes(tiff(waves(9, 9, 3), photometric="rgb", extratags=tags))
    link = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{bait}"/></svg>'
    (given / "d.png").write_text(link)
    (given / "e.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + names)
    (given / "f.png").write_text(f"push graphic-context\nimage over 0,0 0,0 '{bait}'\n")


def test_photos_lead_nowhere(folder: Path) -> None:
    given = folder / "given"
    pictures(given, folder / "given" / "outside" / "bait.png")
    for name in ("blur", "sharp"):
        (given / "pair" / name).mkdir(parents=True)
        (given / "pair" / name / "1.png").write_bytes((given / "e.png").read_bytes())
    said, done, opened = audited(
        folder,
        [
            ["photo", ".", "-o", f"{folder}/out/"],
            ["photo", "c.tif", "-o", f"{folder}/out/c.jpg"],
            ["measure", "pair"],
        ],
    )
    assert not done
    assert not opened
    assert "exit 3: photo ." in said  # three are none
    assert {p.name for p in (folder / "out").iterdir()} == {"a.png", "b.jpg", "c.tif", "c.jpg"}
    assert "exit 3: measure" in said


def test_videos_lead_nowhere(folder: Path) -> None:
    given, bait = folder / "given", folder / "given" / "outside" / "bait.mkv"
    (given / "a.mkv").write_text("ffconcat version 1.0\nfile outside/bait.mkv\n")
    (given / "b.m3u8").write_text(f"#EXTM3U\n#EXTINF:9,\n{bait}\n#EXT-X-ENDLIST\n")
    (given / "c.m3u8").write_text("#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/\n#EXT-X-ENDLIST\n")
    (given / "d.sdp").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )
    (given / "e.mkv").write_text("ffconcat version 1.0\nfile subfile,,start,0,end,0,,:" + str(bait))
    (given / "f.mpd").write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="video/webm"><Representation id="1" bandwidth="1">'
        f"<BaseURL>{bait}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    title = (("title", f"file://{bait}"), ("source", str(bait)))
    Film(frames=3, metadata=title).write(given / "g.mkv")
    stream = f"YUV4MPEG2 Cmono W5 H3 F25:1 X{bait} XCOLORRANGE={bait} XLENGTH=1\nFRAME {bait}\n"
    (given / "h.y4m").write_bytes(stream.encode() + bytes(15))
    through = ["--strength", "0"]
    names = [p.name for p in sorted(given.iterdir()) if p.is_file()]
    said, done, opened = audited(
        folder,
        [["video", n, f"{folder}/out/{n}.mkv", *through] for n in names if n != "h.y4m"]
        + [["serve", n, "-o", f"{folder}/out/{n}.y4m", *through] for n in names],
    )
    assert not done
    assert not opened
    for name in names:
        good = name in ("g.mkv", "h.y4m")
        assert f"exit {0 if good else 3}: serve {name}" in said
        assert f"exit {0 if good else 3}: video {name}" in said or name == "h.y4m"


def test_weights_lead_nowhere(folder: Path) -> None:
    given, outside = folder / "given", folder / "given" / "outside"
    for name, hostile, way in (
        ("a.pt", Hostile(outside / "made"), "zip"),
        ("b.pt", Eval(outside / "made"), "legacy"),
        ("c.pt", Hostile(outside / "made"), 2),
        ("encoder_lv1.pkl", Eval(outside / "made"), 4),
    ):
        save_hostile(hostile, given / name, way)
    (given / "dmphn").mkdir()
    for part in ("encoder_lv1", "decoder_lv1", "encoder_lv2", "decoder_lv2"):
        save_hostile(Hostile(outside / "made"), given / "dmphn" / f"{part}.pkl", "zip")
    paths = {"network": "outside/bait.pt", "provenance": json.dumps(str(outside / "bait.pt"))}
    save_file({"outside/bait.pt": torch.ones(3)}, given / "d.safetensors", metadata=paths)
    (given / "photo.png").write_bytes(samples()["png"])
    commands = [
        *(
            ["models", "convert", n, "-o", f"{folder}/out/{n}.safetensors"]
            for n in ("a.pt", "b.pt", "c.pt", "encoder_lv1.pkl", "dmphn", "d.safetensors")
        ),
        *(["models", "info", n] for n in ("a.pt", "d.safetensors")),
        *(
            ["photo", "photo.png", "-o", f"{folder}/out/p.png", "--model", n]
            for n in ("a.pt", "b.pt", "d.safetensors")
        ),
    ]
    said, done, opened = audited(folder, commands)
    assert not done
    assert not opened
    for command in commands:
        assert f"exit 5: {' '.join(command)}" in said


def test_the_worker_of_gimp_leads_nowhere(folder: Path) -> None:
    bait = str(folder / "given" / "outside" / "bait.pt")
    paths: dict[str, Any] = {"file": bait, "path": bait, "log": bait, "version": f"|cat {bait}"}
    requests = (
        HELLO
        + b"".join(pack("load", model="auto", device="cpu", **paths))
        + job(waves(8, 8, 3), device="cpu", **paths)
        + b"".join(pack("load", model="auto", device=bait, precision=bait))
        + BYE
    )
    said, done, opened = audited(folder, [["gimp", "worker"]], requests)
    assert not done
    assert not opened
    assert said.count('"type": "done"') == 1
    assert '"code": 2' in said


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.system('true')", "os.system"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import socket; socket.socket().bind(('127.0.0.1', 0))", "socket.bind"),
        ("import pickle; pickle.loads(b'cos\\nsystem\\n.')", "pickle.find_class"),
        ("open('elsewhere', 'w').close()", "writes elsewhere"),
        ("open('outside/bait.png').close()", "bait.png"),
        ("import av; av.open('outside/bait.mkv').close()", "bait.mkv"),
        ("import os; os.mkdir('outside/made')", "made"),
    ],
)
def test_the_watch_sees(folder: Path, code: str, told: str) -> None:
    _, done, opened = audited(folder, [[code]])
    assert any(line.startswith(told) for line in done) or told in opened
