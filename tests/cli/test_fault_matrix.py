"""Faults that no single module answers for, caused in processes of the command line.

What is broken (an allocator, a device, a kernel, a home folder) is broken in the process itself,
before its command begins.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.cli.clips import clip, make_video, planes_of, split
from tests.cli.conftest import StartRun
from tests.cli.processes import LIMIT, Result, children, eventually
from tests.disks import disk
from tests.hostile import Hostile, save_hostile
from tests.pictures import jpeg, pillow, png, waves
from tests.test_photo_faults import animation, bombs
from vs_deblur import journal
from vs_deblur.engine import memory_budget
from vs_deblur.hosts import y4m
from vs_deblur_kernels import dispatch
from vs_deblur_models.registry import build_network

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forks, looks into /proc and sets limits"
)

CPU = ("--device", "cpu", "--precision", "fp32")


def refusal(result: Result, code: int) -> str:
    """The one line of an error; nothing was put out."""
    assert (result.code, result.out) == (code, b""), result.err
    (line,) = result.errors
    assert line.startswith("vs-deblur: error: ")
    assert "Traceback" not in result.err
    return line


# ----------------------------------------------------------------------------- memory


def large_frame(path: Path, width: int, height: int) -> y4m.Header:
    """A clip of one frame of blocks of noise."""
    header = y4m.Header(width, height, "420", (25, 1), "p", (1, 1))
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(y4m.write_header(header) + y4m.FRAME)
        for h, w in header.plane_shapes:
            blocks = rng.integers(20, 220, (-(-h // 8), -(-w // 8)), np.uint8)
            file.write(blocks.repeat(8, 0)[:h].repeat(8, 1)[:, :w].tobytes())
    return header


def part_of(
    stream: bytes, header: y4m.Header, top: int, left: int, side: int
) -> list[NDArray[np.uint8]]:
    """A square of each plane of the first frame; even numbers."""
    (frame,) = split(stream)[1]
    found = []
    for plane, scale in zip(planes_of(frame, header), (1, 2, 2), strict=True):
        rows = slice(top // scale, (top + side) // scale)
        found.append(plane[rows, left // scale : (left + side) // scale])
    return found


# The command itself, which says how large its tiles are.
TELL_TILES = """
import sys
from vs_deblur.engine import Deblurrer
honest = Deblurrer._step_in_tiles

def step(self, x, state, tile, progress):
    print("tiles of", tile, file=sys.stderr)
    return honest(self, x, state, tile, progress)

Deblurrer._step_in_tiles = step
from vs_deblur.cli import main
main()
"""


@pytest.mark.timeout(600)
def test_a_frame_of_8k_is_tiled_within_the_memory_budget(
    run: StartRun, small_weights: Path, tmp_path: Path
) -> None:
    """By itself; and where tiles meet, it is what the same place by itself gives."""
    source, target = tmp_path / "in.y4m", tmp_path / "out.y4m"
    header = large_frame(source, 7680, 4320)
    command = [sys.executable, "-c", TELL_TILES, "serve", str(source), "-o", str(target)]
    process = subprocess.Popen(
        [*command, *CPU, "--model", str(small_weights), "--quiet"],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert process.stderr is not None
    limit = threading.Timer(8 * LIMIT, process.kill)
    limit.start()
    with process.stderr:
        said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    limit.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    tile = int(said.partition("tiles of ")[2].split()[0])
    assert 1000 < tile < 7680
    # Beyond the budget there are the frames themselves: window, result and change in float32.
    pixels = header.width * header.height
    assert used.ru_maxrss << 10 < memory_budget(torch.device("cpu")) + 60 * pixels

    # A place where tiles meet, with more around it than the network sees.
    side, margin = 768, 192
    top = min(tile, header.height // 2) // 16 * 16 - side // 2
    left = tile - side // 2
    square = y4m.Header(side, side, "420", (25, 1), "p", (1, 1))
    planes = part_of(source.read_bytes(), header, top, left, side)
    data = y4m.write_header(square) + y4m.FRAME + b"".join(p.tobytes() for p in planes)
    alone = run("serve", "-", *CPU, "--model", small_weights).finish(data)
    assert alone.code == 0, alone.err
    inner = side - 2 * margin
    expected = part_of(alone.out, square, margin, margin, inner)
    found = part_of(target.read_bytes(), header, top + margin, left + margin, inner)
    before = part_of(source.read_bytes(), header, top + margin, left + margin, inner)
    for a, b, c in zip(expected, found, before, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1  # rounding
        assert np.abs(a.astype(int) - c).mean() > 1


SIDE = 400  # larger than a tile and what the small network sees around it
# A step of more than so many pixels fails, from one of them on.
FAILING_STEP = """
import sys, torch
from vs_deblur_models.strcnn import StrcnnDtbLite
honest, large = StrcnnDtbLite.step, []

def step(self, window, state):
    if window.shape[-1] * window.shape[-2] > {limit}:
        large.append(window.shape)
        if len(large) > {after}:
            sys.stderr.write("refused\\n")
            raise {error}
    return honest(self, window, state)

StrcnnDtbLite.step = step
"""
OUT_OF_MEMORY = "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 1.00 GiB')"


def failing(limit: int = 390 * 390, after: int = 0, error: str = OUT_OF_MEMORY) -> str:
    return FAILING_STEP.format(limit=limit, after=after, error=error)


@pytest.mark.parametrize("after", [0, 2])
def test_out_of_memory_halves_the_tile_and_the_frame_is_computed_again(
    run: StartRun, small_weights: Path, after: int
) -> None:
    """At the first frame and in the middle of a run."""
    data = clip(4, SIDE, SIDE)
    command = ("serve", "-", *CPU, "--model", small_weights, "--quiet")
    whole = run(*command).finish(data)
    starved = run(*command, before=failing(after=after)).finish(data)
    assert starved.code == 0, starved.err
    assert starved.err.count("refused") == 1
    assert starved.err.count("vs-deblur: warning: out of memory: going on with tiles of 208") == 1
    header = y4m.parse_header(split(data)[0])
    frames = zip(split(whole.out)[1], split(starved.out)[1], strict=True)
    for n, (a, b) in enumerate(frames):
        assert (a == b) or n >= after
        for p, q in zip(planes_of(a, header), planes_of(b, header), strict=True):
            assert np.abs(p.astype(int) - q).max() <= 1


@pytest.mark.parametrize(
    ("error", "code", "message", "refused"),
    [
        (OUT_OF_MEMORY, 6, "out of memory even with tiles of 64 pixels (cpu)", 4),
        (
            "RuntimeError('CUDA error: an illegal memory access was encountered')",
            6,
            "the device failed: CUDA error: an illegal memory access was encountered (cpu); start",
            1,
        ),
        (
            "RuntimeError('CUDA error: unspecified launch failure')",
            6,
            "the device failed: CUDA error: unspecified launch failure (cpu); start again",
            1,
        ),
        ("RuntimeError('mat1 and mat2 differ')", 1, "the computation failed: mat1 and mat2", 1),
    ],
)
def test_when_the_device_fails_the_frames_before_are_whole(
    run: StartRun, small_weights: Path, error: str, code: int, message: str, refused: int
) -> None:
    """Nothing is tried again on a device that is lost."""
    data = clip(5, SIDE, SIDE)
    command = ("serve", "-", *CPU, "--model", small_weights, "--quiet")
    whole = run(*command).finish(data)
    failed = run(*command, before=failing(10_000, 3, error)).finish(data)
    assert failed.code == code
    (line,) = failed.errors
    assert message in line
    assert failed.err.count("refused") == refused
    assert len(split(failed.out)[1]) == 3
    assert whole.out.startswith(failed.out)


def test_video_keeps_what_was_done_when_the_device_fails(
    run: StartRun, small_weights: Path, tmp_path: Path
) -> None:
    make_video(tmp_path / "in.mkv", clip(30))
    options = ("--lossless", "--segment", 8, "--warmup", 2, "--chunk", 8, "--model", small_weights)
    lost = failing(1000, 20, "RuntimeError('CUDA error: unspecified launch failure')")
    target = tmp_path / "out.mkv"
    failed = run("video", tmp_path / "in.mkv", target, *CPU, *options, before=lost).finish()
    assert "the device failed" in refusal(failed, 6)
    assert "out.mkv.part keeps what is done: add --resume to go on with it" in failed.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv", "out.mkv.part"]
    found = journal.read(tmp_path / "out.mkv.part")
    assert found is not None
    assert len(found.chunks) == 2
    again = run("video", tmp_path / "in.mkv", target, *CPU, *options, "--resume").finish()
    assert again.code == 0, again.err
    assert "going on after 16 frames" in again.err
    whole = tmp_path / "whole.mkv"
    assert run("video", tmp_path / "in.mkv", whole, *CPU, *options).finish().code == 0
    assert target.read_bytes() == whole.read_bytes()


# No more memory than there is now, and so many MiB.
LITTLE_MEMORY = """
import resource
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + ({} << 20), resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("room", [100, 250, 330, 400])
def test_a_system_without_memory_left_ends_it_in_order(run: StartRun, room: int) -> None:
    """A real limit: it is tiles, or an error that says so. Which of them is the machine's."""
    data = clip(2, 1280, 720)
    process = run("serve", "-", *CPU, "--quiet", before=LITTLE_MEMORY.format(room))
    result = process.finish(data)
    frames = len(split(result.out)[1]) if result.out else 0
    if result.code:
        (line,) = result.errors
        assert result.code == 6, line
        assert "out of memory" in line
        assert frames < 2
    else:
        assert frames == 2


def test_a_frame_that_memory_cannot_hold_is_refused_with_its_size(run: StartRun) -> None:
    data = b"YUV4MPEG2 W32768 H32768 C444p16 F25:1\nFRAME\n" + bytes(1000)
    result = run("serve", "-", "--strength", 0, before=LITTLE_MEMORY.format(1000)).finish(data)
    assert result.code == 3
    what = "a frame of 6,442,450,944 bytes does not fit into memory (stdin)"
    assert result.errors == [f"vs-deblur: error: {what}"]
    assert result.out.count(b"FRAME") == 0


# ----------------------------------------------------------------------------- devices, kernels

NO_GPU = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "no CUDA device here; use --device cpu"), ("cuda:3", "no CUDA device 3; use")],
)
def test_a_device_that_is_not_there(
    run: StartRun, tmp_path: Path, device: str, message: str
) -> None:
    for options in ((), ("-o", tmp_path / "a.y4m")):
        process = run("serve", "-", "--device", device, *options, before=NO_GPU)
        assert message in refusal(process.finish(clip(3)), 6)
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_auto_is_the_processor_and_says_so(run: StartRun) -> None:
    auto = run("serve", "-", before=NO_GPU).finish(clip(3))
    assert auto.code == 0
    assert " on cpu (" in auto.err
    assert auto.out == run("serve", "-", "--device", "cpu", before=NO_GPU).finish(clip(3)).out


BY_NAME = "import os; os.environ['VS_DEBLUR_KERNELS'] = 'cupy'\n"
# Takes the machine for one with a GPU, as far as the choice of kernels goes.
A_GPU = """
import torch
from vs_deblur import engine
engine.choose_device = lambda name: torch.device("cuda", 0)
"""


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("", "kernels run on CUDA devices only (cpu)"),
        (
            A_GPU + "import sys; sys.modules['cupy'] = None\n",
            "CuPy is not installed (pip install vs-deblur[cuda",
        ),
        (A_GPU + "torch.version.cuda = '12.6'\n", "CuPy is for CUDA 13, torch for 12"),
    ],
)
def test_kernels_by_name_that_are_not_to_be_had(run: StartRun, before: str, message: str) -> None:
    if "12.6" in before and dispatch.missing() is not None:
        pytest.skip("SKIPPED: NO CuPy")
    device = () if before else ("--device", "cpu")
    process = run("serve", "-", "--precision", "fp32", *device, before=BY_NAME + before)
    line = refusal(process.finish(clip(3)), 6)
    assert message in line
    assert line.endswith("unset VS_DEBLUR_KERNELS, or set it to reference to do without kernels")


# The kernels by g++ on the processor (tests/shim); what is wrong is wrong with one of them.
BY_SHIM = """
from pathlib import Path
from tests.shim import Shim
from vs_deblur_kernels import dispatch
from vs_deblur_models.registry import build_network
from vs_deblur_kernels._compile import KernelError

class Faulty(Shim):
    def text(self, kernel):
        text = super().text(kernel)
        return text.replace("{old}", "{new}") if kernel.source == "dtb" else text

    def launch(self, kernel, *rest):
        if kernel.source == "dtb" and len(self.launches) > {most}:
            raise KernelError("too many resources requested for launch")
        super().launch(kernel, *rest)

dispatch._stand_in = Faulty(Path({folder!r}))
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"most": 3}, "too many resources requested for launch"),
        (
            {"old": "w > 1.f ? 1.f : w;", "new": "w > 0.5f ? 0.5f : w;"},
            "dtb differs from its reference by ",
        ),
    ],
)
def test_a_kernel_that_is_wrong_or_fails_is_left_out(
    run: StartRun, compiled: Path, fault: dict[str, object], message: str
) -> None:
    """Every frame is there and right, and there is one warning."""
    none = {"old": "none", "new": "none", "most": 10**9}
    before = BY_SHIM.format(**none | {"folder": str(compiled)} | fault)
    data = clip(6)
    plain = run("serve", "-", *CPU, "--quiet").finish(data)
    result = run("serve", "-", *CPU, "--quiet", before=before).finish(data)
    assert result.code == 0, result.err
    warnings = [line for line in result.err.splitlines() if "kernel" in line]
    assert len(warnings) == 1
    assert "warning: the kernel dtb is left out, torch computes instead: " in warnings[0]
    assert message in warnings[0]
    header = y4m.parse_header(split(data)[0])
    for a, b in zip(split(plain.out)[1], split(result.out)[1], strict=True):
        for p, q in zip(planes_of(a, header), planes_of(b, header), strict=True):
            assert np.abs(p.astype(int) - q).max() <= 1


# ----------------------------------------------------------------------------- weights


def spoilt(small: Path, path: Path, how: str) -> Path:
    """A copy of a weights file with a fault."""
    content = small.read_bytes()
    if how == "hostile":
        save_hostile(Hostile(path.with_name("mark")), path, "zip")
    elif how in ("nan", "missing", "misshapen"):
        state = load_file(str(small))
        if how == "nan":
            state["down1.weight"].view(-1)[3] = torch.nan
        elif how == "missing":
            del state["up1.bias"]
        else:
            state["output.bias"] = torch.zeros(47)
        save_file(state, path)
    elif how == "another network":
        save_file(load_file(str(small)), path, metadata={"network": "srn"})
    elif how != "absent":
        path.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "page": b"<!DOCTYPE html><html>404</html>",
                "junk appended": content + b"junk",
            }[how]
        )
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("absent", "no such weights file"),
        ("truncated", "not a whole safetensors file"),
        ("page", "it is a web page, not weights"),
        ("junk appended", "not a whole safetensors file"),
        ("nan", "tensor down1.weight has values that are NaN or infinite"),
        ("missing", "missing: up1.bias"),
        ("misshapen", "misshapen: output.bias is (47,), not (48,)"),
        ("another network", "these look like weights of strcnn_dtb_lite, not of srn"),
        ("hostile", "nothing in a pickle is ever run; `vs-deblur models convert` reads"),
    ],
)
def test_weights_that_are_no_good(
    run: StartRun, small_weights: Path, tmp_path: Path, how: str, message: str
) -> None:
    suffix = ".pth" if how == "hostile" else ".safetensors"
    model = spoilt(small_weights, tmp_path / f"x{suffix}", how)
    before = sorted(tmp_path.iterdir())
    for options in ((), ("-o", tmp_path / "a.y4m")):
        result = run("serve", "-", "--model", model, *options).finish(clip(3))
        line = refusal(result, 5)
        assert message in line
        assert str(model) in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("model", ["mscnn", "srn", "dmphn", "strcnn"])
def test_networks_without_weights_name_those_that_have_some(run: StartRun, model: str) -> None:
    line = refusal(run("serve", "-", "--model", model).finish(clip(3)), 5)
    assert f"no trained weights for {model} are shipped; shipped: strcnn_dtb_lite" in line
    assert ("`vs-deblur models convert`" in line) == (model != "strcnn")


def test_a_flipped_bit_of_shipped_weights(run: StartRun, tmp_path: Path) -> None:
    from vs_deblur.weights import shipped, weights_folder

    card = next(c for c in shipped().values() if c.kind == "video" and c.default)
    for path in weights_folder().glob("*.json"):
        shutil.copy(path, tmp_path)
    content = bytearray(card.path.read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / card.path.name).write_bytes(content)
    elsewhere = (
        "from pathlib import Path; from vs_deblur import weights\n"
        f"weights.weights_folder = lambda: Path({str(tmp_path)!r})\n"
        "weights.shipped.cache_clear()\n"
    )
    line = refusal(run("serve", "-", before=elsewhere).finish(clip(3)), 5)
    assert f"sha256 differs: expected {card.sha256}, got " in line
    assert line.endswith("the file is damaged; reinstall vs-deblur")


CONVERT = ("models", "convert")


@pytest.fixture
def state_dict(small_weights: Path, tmp_path: Path) -> Path:
    """A checkpoint that can be converted."""
    path = tmp_path / "source" / "x.pth"
    path.parent.mkdir()
    torch.save(load_file(str(small_weights)), path)
    return path


KILLED = """
import os, signal
from pathlib import Path
from vs_deblur import weights
from vs_deblur.cli._output import OutputFile

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half(path, data):
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
    kill()
"""


@pytest.mark.parametrize(
    "moment",
    [
        "Path.write_bytes = half",
        "weights.load = kill  # it is written, but not proved to be good",
        "OutputFile.commit = kill  # it lacks its name only",
    ],
)
def test_a_conversion_that_is_killed_leaves_nothing_of_that_name(
    run: StartRun, state_dict: Path, tmp_path: Path, moment: str
) -> None:
    target = tmp_path / "x.safetensors"
    assert run(*CONVERT, state_dict, "-o", target, before=KILLED + moment).finish().code == -9
    assert not target.exists()
    left = [p.name for p in tmp_path.iterdir() if p.is_file()]
    assert len(left) == 1
    assert left[0].endswith(".part")
    again = run(*CONVERT, state_dict, "-o", target).finish()
    assert again.code == 0, again.err
    assert run("serve", "-", *CPU, "--model", target).finish(clip(2)).code == 0


def test_a_conversion_onto_a_full_disk(run: StartRun, state_dict: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with disk(tmp_path / "disk", 16 << 10) as place:
        result = run(*CONVERT, state_dict, "-o", place / "x.safetensors").finish()
        assert "cannot write: No space left on device" in refusal(result, 4)
        assert list(place.iterdir()) == []


# ----------------------------------------------------------------------------- places


NO_MODELS = """
from vs_deblur import engine, weights

def load(*_):
    raise AssertionError("a model was loaded")

engine.load = weights.load = load
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "{clip}", "-o", "{there}/a.y4m"),
        ("video", "{film}", "{there}/a.mkv"),
        ("photo", "{picture}", "-o", "{there}/a.png"),
        ("photo", "{picture}", "-o", "{there}/"),
        ("models", "convert", "{state}", "-o", "{there}/a.safetensors"),
        ("measure", "{picture}", "{picture}", "--html", "{there}/a.html"),
        ("demo", "-o", "{there}/demo"),
    ],
    ids=lambda a: " ".join(a[:1]) + (" folder" if a[-1].endswith("}/") else ""),
)
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(
    run: StartRun,
    read_only_disk: Path,
    state_dict: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    """No model is loaded for it."""
    places = {
        "there": read_only_disk,
        "state": state_dict,
        "clip": tmp_path / "a.y4m",
        "film": tmp_path / "a.mkv",
        "picture": tmp_path / "a.png",
    }
    places["clip"].write_bytes(clip(2))
    make_video(places["film"], clip(2))
    places["picture"].write_bytes(png(waves(40, 40, 3)))
    process = run(*(a.format(**places) for a in arguments), before=NO_MODELS)
    assert "Read-only file system" in refusal(process.finish(), 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ("models",),
        ("models", "--json"),
        ("models", "info", "auto"),
        ("doctor", "--json"),
        ("measure", "{picture}", "{picture}", "--json", *CPU),
        ("--help",),
        ("video", "--help"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_results_that_cannot_be_written_are_an_error(
    run: StartRun, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "a.png").write_bytes(png(waves(40, 40, 3)))
    with Path("/dev/full").open("wb") as full:
        told = (a.format(picture=tmp_path / "a.png") for a in arguments)
        result = run(*told, stdout=full.fileno()).finish()
    assert result.code == 4
    (line,) = result.errors
    assert line.startswith("vs-deblur: error: cannot write: No space left on device")


def test_measure_does_not_write_its_page_over_what_it_measured(
    run: StartRun, tmp_path: Path
) -> None:
    picture = png(waves(40, 40, 3))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture)
    for name in ("a.png", "b.png"):
        files = (tmp_path / "a.png", tmp_path / "b.png", "--html", tmp_path / name)
        line = refusal(run("measure", *files, "--overwrite", before=NO_MODELS).finish(), 2)
        assert "output is the input" in line
        assert (tmp_path / name).read_bytes() == picture


@pytest.mark.parametrize("key", ["residual", "provenance"])
def test_metadata_of_weights_drive_no_terminal(
    run: StartRun, small_weights: Path, tmp_path: Path, key: str
) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\nvs-deblur: error: call +1 900"
    path = tmp_path / "evil.safetensors"
    if key == "residual":
        network = build_network("cnn", {"m": 1})
        metadata = {"network": "cnn", key: json.dumps(evil)}
        save_file(network.state_dict(), path, metadata)
    else:
        words = {"converted_from": evil, evil: [evil, {evil: math.nan}]}
        save_file(load_file(small_weights), path, {key: json.dumps(words)})
    result = run("models", "info", path).finish()
    shown = (result.out.decode() + result.err).splitlines()
    assert all(line.isprintable() for line in shown)
    assert not any(line.startswith("vs-deblur: error: call") for line in shown)
    assert result.code == (5 if key == "residual" else 0)
    as_json = run("models", "info", path, "--json").finish()
    assert as_json.out.isascii()
    assert b": NaN" not in as_json.out
    json.loads(as_json.out)


def test_a_picture_that_does_not_fit_ends_no_batch(
    run: StartRun, small_weights: Path, tmp_path: Path
) -> None:
    """Memory for the second of three is refused; and a network that fails at it."""
    for name, side in (("a", 40), ("b", 160), ("c", 48)):
        (tmp_path / f"{name}.png").write_bytes(png(waves(side, side, 3)))
    for error, code, text in (
        (OUT_OF_MEMORY, 6, "out of memory even with"),
        ("RuntimeError('boom')", 1, "the computation failed: boom"),
    ):
        out = tmp_path / f"out{code}"
        options = ("-o", f"{out}/", "--model", small_weights, *CPU)
        result = run("photo", tmp_path, *options, before=failing(60 * 60, error=error)).finish()
        assert result.code == code
        first, last = result.errors
        assert text in first
        assert str(tmp_path / "b.png") in first
        assert "1 of 3 could not be done" in last
        assert "done: 2 of 3 photos" in result.err
        assert sorted(p.name for p in out.iterdir()) == ["a.png", "c.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_doctor_for_gimp_leaves_no_worker(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """It is the one command that has a child: the worker that GIMP would start."""
    profile = tmp_path / "GIMP" / "3.0"
    profile.mkdir(parents=True)
    command = [sys.executable, "-m", "vs_deblur", "gimp"]
    where = ["--profile", str(profile)]
    subprocess.run([*command, "install", *where], check=True, capture_output=True, timeout=LIMIT)
    with subprocess.Popen(
        [*command, "doctor", *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as doctor:
        assert doctor.stdout is not None
        for line in doctor.stdout:  # until the worker has said hello
            if b"worker" in line:
                break
        started = children(doctor.pid)
        assert len(started) == 1
        doctor.send_signal(number)
        assert doctor.wait(LIMIT) == code
    eventually(lambda: not Path(f"/proc/{started[0]}").exists())


def test_without_a_home_folder(tmp_path: Path) -> None:
    """As `docker run --user 4711` has it: no environment, and no entry for the user."""
    path = tmp_path / "a.y4m"
    path.write_bytes(clip(3))
    code = (
        "import pwd, sys\n"
        "def nobody(uid): raise KeyError('uid not found')\n"
        "pwd.getpwuid = nobody\n"
        "from vs_deblur.cli import main\n"
        "main()\n"
    )
    found = {}
    for arguments in (("serve", str(path), *CPU), ("gimp", "install")):
        command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        found[arguments[0]] = subprocess.run(
            command, env=environment, capture_output=True, timeout=LIMIT, check=False
        )
    assert found["serve"].returncode == 0, found["serve"].stderr
    assert len(split(found["serve"].stdout)[1]) == 3
    assert found["gimp"].returncode == 3
    assert found["gimp"].stderr.decode() == (
        "vs-deblur: error: the user has no home folder; name the profile: --profile\n"
    )


# ----------------------------------------------------------------------------- photos


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bombs()["png"], "60000x60000 pixels, 3,600 million; 250 million are allowed"),
        (jpeg(waves(40, 40, 3))[:-40], "the JPEG file is cut off"),
        (pillow("JPEG", mode="CMYK"), "CMYK pictures are not supported"),
        (animation("GIF"), "an animation of 3 pictures"),
        (b"", "the file is empty"),
    ],
    ids=["bomb", "truncated", "CMYK", "animation", "empty"],
)
def test_pictures_that_are_refused(
    run: StartRun, tmp_path: Path, data: bytes, message: str
) -> None:
    """By name, without the memory that they ask for, and nothing is left."""
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    result = run("photo", path, before=LITTLE_MEMORY.format(1000)).finish()
    line = refusal(result, 3)
    assert message in line
    assert str(path) in line
    assert ("--max-pixels" in line) == ("60000" in message)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]


def test_a_disk_without_room_for_a_picture(run: StartRun, small_disk: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png(noise))
    result = run("photo", tmp_path / "a.png", "--strength", 0, "-o", small_disk / "b.tif").finish()
    assert "No space left on device" in refusal(result, 4)
    assert list(small_disk.iterdir()) == []


# A network that takes a minute for a picture, tile by tile.
SLOW = """
import sys, time
from vs_deblur.engine import Deblurrer

def run(self, x, state, memory, progress):
    sys.stdout.write("at work")
    sys.stdout.flush()
    for n in range(600):
        time.sleep(0.1)
        progress(n + 1, 600)

Deblurrer._run = run
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_no_half_picture(
    run: StartRun, tmp_path: Path, number: int, code: int
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(waves(70, 70, 3)))
    process = run("photo", path, *CPU, before=SLOW)
    assert process.read(7) == b"at work"
    assert children(process.pid) == []
    process.signal(number)
    result = process.finish()
    assert result.code == code
    assert result.err.splitlines()[-1].startswith("vs-deblur: stopped after 0 ")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
