"""Compiling, keeping and choosing kernels: what happens around a launch."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.shim import Shim
from vs_deblur.cli.doctor import check_kernels
from vs_deblur.engine import Deblurrer
from vs_deblur.errors import DeviceError, UsageError
from vs_deblur_kernels import _compile, dispatch, dtb, reference, resblock
from vs_deblur_kernels._compile import Kernel, KernelError, cached_cubin
from vs_deblur_kernels.dispatch import launching_by

KERNEL = dtb.kernel(torch.float16, torch.float16)

needs_compiler = pytest.mark.skipif(dispatch.missing() is not None, reason="SKIPPED: NO CuPy")


# ----------------------------------------------------------------------------------------- cache


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """Kernels that were really compiled."""
    found: list[Kernel] = []

    def count(kernel: Kernel, architecture: str) -> tuple[bytes, str]:
        found.append(kernel)
        return f"{kernel.options} for {architecture}".encode(), ""

    monkeypatch.setattr(_compile, "compile_cubin", count)
    monkeypatch.setattr(_compile, "compiler_version", lambda: (13, 2))
    return found


def test_a_kernel_is_compiled_once(tmp_path: Path, recorded: list[Kernel]) -> None:
    first = cached_cubin(KERNEL, "sm_80", tmp_path / "cache")
    assert cached_cubin(KERNEL, "sm_80", tmp_path / "cache") == first
    assert len(recorded) == 1
    if os.name == "posix":
        assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_what_a_cubin_depends_on(
    tmp_path: Path, recorded: list[Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Architecture, options, text, headers and compiler."""
    cached_cubin(KERNEL, "sm_80", tmp_path)
    cached_cubin(KERNEL, "sm_86", tmp_path)
    cached_cubin(dtb.kernel(torch.bfloat16, torch.float16), "sm_80", tmp_path)
    monkeypatch.setattr(_compile, "compiler_version", lambda: (13, 3))
    cached_cubin(KERNEL, "sm_80", tmp_path)
    monkeypatch.setattr(_compile, "HERE", tmp_path / "sources")
    shutil.copytree(Path(_compile.__file__).parent, tmp_path / "sources")
    for name in ("dtb.cu", "device.cuh"):
        with (tmp_path / "sources" / name).open("a") as file:
            file.write("// changed\n")
        cached_cubin(KERNEL, "sm_80", tmp_path)
    assert len(recorded) == 6
    assert len(list(tmp_path.glob("*.cubin"))) == 6


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "swapped", "zeros"])
def test_a_damaged_file_is_compiled_again(
    tmp_path: Path, recorded: list[Kernel], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = cached_cubin(KERNEL, "sm_80", tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    damaged = {
        "cut": content[:-5],
        "emptied": b"",
        "flipped": content[:-1] + bytes((content[-1] ^ 1,)),
        "swapped": b"x" * 99,
        "zeros": bytes(len(content)),
    }
    path.write_bytes(damaged[damage])
    for _ in range(2):
        assert cached_cubin(KERNEL, "sm_80", tmp_path) == first
    assert len(recorded) == 2
    assert path.read_bytes() == content
    assert warnings_of(caplog) == [f"a compiled kernel is damaged and compiled again ({path})"]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.usefixtures("unsaid")
@pytest.mark.skipif(os.name != "posix", reason="owners and modes of files")
@pytest.mark.parametrize("whose", ["writable by others", "of somebody else"])
def test_a_cache_where_others_may_write_is_not_used(
    tmp_path: Path,
    recorded: list[Kernel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    whose: str,
) -> None:
    """What they put there would run on the device."""
    first = cached_cubin(KERNEL, "sm_80", tmp_path)
    (path,) = tmp_path.iterdir()
    planted = b"planted"
    path.write_bytes(hashlib.sha256(planted).digest() + planted)
    if whose == "of somebody else":
        monkeypatch.setattr(_compile, "_owners", lambda: (os.geteuid() + 1,))
    else:
        tmp_path.chmod(0o777)
    assert cached_cubin(KERNEL, "sm_80", tmp_path) == first
    assert len(recorded) == 2
    assert path.read_bytes().endswith(planted)
    (said,) = warnings_of(caplog)
    assert (
        f"cannot be kept, each start compiles them anew: somebody else may write to {tmp_path}"
        in said
    )


@pytest.fixture(params=["a file", "read-only", "full"])
def bad_folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder that nothing can be kept in, and what the system says of it."""
    if request.param == "a file":
        (tmp_path / "file").write_text("not a folder")
        return tmp_path / "file" / "cache", "Not a directory"
    if request.param == "read-only":
        return request.getfixturevalue("read_only_disk") / "cache", "Read-only file system"
    disk = request.getfixturevalue("small_disk")
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return disk / "cache", "No space left on device"


@pytest.mark.usefixtures("unsaid")
def test_a_cache_that_cannot_be_written_costs_time_and_a_warning(
    bad_folder: tuple[Path, str], recorded: list[Kernel], caplog: pytest.LogCaptureFixture
) -> None:
    folder, reason = bad_folder
    first = cached_cubin(KERNEL, "sm_80", folder)
    assert cached_cubin(KERNEL, "sm_80", folder) == first
    assert len(recorded) == 2
    (said,) = warnings_of(caplog)
    assert "compiled kernels cannot be kept, each start compiles them anew" in said
    assert f"{reason} ({folder}); set VS_DEBLUR_CACHE to a folder of your own" in said
    assert not folder.is_dir() or list(folder.iterdir()) == []


@pytest.fixture
def unsaid() -> Iterator[None]:
    """Nothing was said of the cache yet."""
    _compile._not_kept.cache_clear()
    yield
    _compile._not_kept.cache_clear()


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="asks for Linux's place")
def test_without_a_home_folder_nothing_is_kept() -> None:
    """A user without an entry and an environment: as `docker run --user 4711` has it."""
    code = (
        "import pwd, torch\n"
        "def nobody(uid): raise KeyError('uid not found')\n"
        "pwd.getpwuid = nobody\n"
        "from vs_deblur_kernels import _compile, dtb\n"
        "_compile.compile_cubin = lambda *_: (b'cubin', '')\n"
        "_compile.compiler_version = lambda: (13, 2)\n"
        "kernel = dtb.kernel(torch.float16, torch.float16)\n"
        "for _ in range(2): assert _compile.cached_cubin(kernel, 'sm_80') == b'cubin'\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be kept") == 1
    assert "there is no home folder; set VS_DEBLUR_CACHE" in done.stderr


@needs_compiler
def test_processes_share_the_cache(tmp_path: Path) -> None:
    """Four that begin at once all get the kernel, and nothing else is left behind."""
    code = (
        "import hashlib, torch\n"
        "from vs_deblur_kernels import dtb\n"
        "from vs_deblur_kernels._compile import cached_cubin\n"
        "cubin = cached_cubin(dtb.kernel(torch.float16, torch.float16), 'sm_80')\n"
        "print(hashlib.sha256(cubin).hexdigest())\n"
    )
    environment = {**os.environ, "VS_DEBLUR_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = {p.communicate(timeout=110)[0] for p in running}
    assert all(p.returncode == 0 for p in running)
    assert len(said) == 1
    (kept,) = (tmp_path / "kernels").iterdir()
    assert kept.read_bytes()[32:].startswith(b"\x7fELF")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"VS_DEBLUR_CACHE": "/there"}, "/there/kernels"),
        ("linux", {"XDG_CACHE_HOME": "/there"}, "/there/vs-deblur/kernels"),
        ("linux", {}, "/home/me/.cache/vs-deblur/kernels"),
        ("darwin", {}, "/home/me/Library/Caches/vs-deblur/kernels"),
        ("win32", {"LOCALAPPDATA": "/there"}, "/there/vs-deblur/Cache/kernels"),
    ],
)
def test_where_kernels_are_kept(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("VS_DEBLUR_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert _compile.cache_folder() == Path(expected)


@needs_compiler
@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 7), "sm_87"),
        ((9, 0), "sm_90"),
        ((12, 0), "sm_120"),
    ],
)
def test_the_architecture_is_the_devices_own(capability: tuple[int, int], expected: str) -> None:
    assert _compile.architecture_for(KERNEL, capability) == expected


@needs_compiler
def test_an_architecture_that_the_compiler_does_not_know() -> None:
    """A newer one of the same generation runs what an older one runs; others are refused."""
    assert _compile.architecture_for(KERNEL, (8, 99)) == "sm_89"
    with pytest.raises(KernelError, match=r"compute capability 5\.2"):
        _compile.architecture_for(KERNEL, (5, 2))


# ---------------------------------------------------------------------------------------- choice


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has proved itself yet."""
    for module in (dtb, resblock):
        monkeypatch.setattr(module.operation, "found", {})


def example(**options: Any) -> list[torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    tensors = [torch.randn((1, 8, 5, 6), generator=numbers) for _ in range(3)]
    return [*(t.requires_grad_(options.get("grad", False)) for t in tensors), torch.tensor(0.3)]


@pytest.fixture
def shim(compiled: Path, fresh: None) -> Iterator[Shim]:
    with launching_by(found := Shim(compiled)):
        yield found


@pytest.mark.parametrize("mode", ["", "auto", "cupy"])
def test_a_kernel_proves_itself_once(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("VS_DEBLUR_KERNELS", mode)
    for _ in range(3):
        torch.testing.assert_close(dtb.blend(*example()), reference.blend(*example()))
    assert len(shim.launches) == 1 + 3


def test_reference(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "reference")
    assert torch.equal(dtb.blend(*example()), reference.blend(*example()))
    assert not shim.launches


WRONG = [("w > 1.f ? 1.f : w;", "w > 0.5f ? 0.5f : w;")]


@pytest.mark.usefixtures("fresh")
def test_a_kernel_that_is_wrong_is_left_out(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one warning; torch computes."""
    monkeypatch.delenv("VS_DEBLUR_KERNELS", raising=False)
    with launching_by(Shim(compiled, changes=WRONG)), caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(dtb.blend(*example()), reference.blend(*example()))
    (record,) = caplog.records
    assert "the kernel dtb is left out, torch computes instead: dtb differs" in record.message


@pytest.mark.usefixtures("fresh")
def test_a_kernel_that_is_wrong_is_an_error_by_name(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "cupy")
    with launching_by(Shim(compiled, changes=WRONG)):
        for _ in range(2):
            with pytest.raises(KernelError, match="dtb differs from its reference by"):
                dtb.blend(*example())


def test_derivatives_come_from_the_reference(shim: Shim) -> None:
    a, h, previous, beta = example(grad=True)
    dtb.blend(a, h, previous, beta).sum().backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None
    assert not shim.launches
    with torch.no_grad():
        dtb.blend(a, h, previous, beta)
    assert shim.launches


class Failing(Shim):
    """Cannot compile the form that it is asked for after the check."""

    def launch(self, kernel: Kernel, *rest: Any) -> None:
        if self.launches:
            raise KernelError("no room for it")
        super().launch(kernel, *rest)


@pytest.mark.usefixtures("fresh")
def test_a_launch_that_fails_later(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reference takes over, with one warning; by name it is an error."""
    monkeypatch.delenv("VS_DEBLUR_KERNELS", raising=False)
    with launching_by(Failing(compiled)):
        for _ in range(3):
            assert torch.equal(dtb.blend(*example()), reference.blend(*example()))
    (record,) = caplog.records
    assert record.message.endswith("torch computes instead: no room for it")
    monkeypatch.setattr(dtb.operation, "found", {})
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "cupy")
    with launching_by(Failing(compiled)), pytest.raises(KernelError, match="no room"):
        dtb.blend(*example())


@pytest.mark.usefixtures("fresh")
def test_a_check_that_fails_in_another_way(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a driver raises, the kernel has not proved itself."""

    def fail(*_: Any) -> None:
        raise TypeError("not a stream\nand more")

    monkeypatch.delenv("VS_DEBLUR_KERNELS", raising=False)
    monkeypatch.setattr(dtb.operation, "check", fail)
    with launching_by(shim := Shim(compiled)):
        for _ in range(2):
            assert torch.equal(dtb.blend(*example()), reference.blend(*example()))
    assert not shim.launches
    (record,) = caplog.records
    assert record.message.endswith("TypeError: not a stream")


@pytest.mark.usefixtures("fresh")
def test_a_check_that_runs_out_of_memory_is_tried_again(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(dtb.operation, "check", fail)
    with launching_by(Shim(compiled)), pytest.raises(torch.OutOfMemoryError):
        dtb.blend(*example())
    assert not dtb.operation.found


@needs_compiler
def test_streams_of_every_torch() -> None:
    """torch's own streams follow CUDA's protocol from 2.10 on; ours always."""
    from cupy.cuda import Stream

    assert Stream.from_external(_compile.TorchStream(4711)).ptr == 4711


# ------------------------------------------------------------------------------ what may be missing


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dispatch.missing.cache_clear()
    yield
    dispatch.missing.cache_clear()


@pytest.mark.usefixtures("no_cupy", "fresh")
def test_without_cupy_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody asked for it by name: not a word."""
    monkeypatch.delenv("VS_DEBLUR_KERNELS", raising=False)
    wrong = dtb.operation.wrong(torch.device("cuda"), torch.float16)
    assert wrong == "CuPy is not installed (pip install vs-deblur[cuda])"
    assert not caplog.records


@pytest.mark.usefixtures("no_cupy")
def test_without_cupy_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "cupy")
    with pytest.raises(KernelError, match="CuPy is not installed"):
        dispatch.require(torch.device("cuda"))


@needs_compiler
def test_cupy_for_another_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    dispatch.missing.cache_clear()
    try:
        assert dispatch.missing() == (
            "CuPy is for CUDA 13, torch for 12 (pip install vs-deblur[cuda12])"
        )
    finally:
        dispatch.missing.cache_clear()


def test_kernels_by_name_need_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "cupy")
    with pytest.raises(DeviceError, match="kernels run on CUDA devices only") as caught:
        Deblurrer(device="cpu")
    assert caught.value.exit_code == 6


def test_a_wrong_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "fast")
    with pytest.raises(UsageError, match="must be one of auto, reference, cupy, not fast"):
        Deblurrer(device="cpu")


# ---------------------------------------------------------------------------------------- doctor


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """The doctor takes this machine for one with a GPU; kernels are launched by a stand-in."""
    monkeypatch.setattr("vs_deblur.engine.choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(dispatch, "missing", lambda: None)


def doctor() -> dict[str, tuple[str, str]]:
    return {c.name: (c.status, c.detail) for c in check_kernels()}


@pytest.mark.usefixtures("gpu")
def test_the_doctor_names_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in dispatch.OPERATIONS:
        operation = importlib.import_module(f"vs_deblur_kernels.{name}").operation
        monkeypatch.setattr(operation, "found", {})
        monkeypatch.setattr(operation, "check", lambda *_: None)
    monkeypatch.setattr(dtb.operation, "check", fail)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.delenv("VS_DEBLUR_KERNELS", raising=False)
    fine = ("ok", "right on a small input")
    assert doctor() == {
        "kernel dtb": ("warn", "left out: dtb differs"),
        "kernel dtb_conv": ("ok", f"{fine[1]}; used with VS_DEBLUR_KERNELS=cupy only"),
        "kernel planes": fine,
        "kernel resblock": ("ok", f"{fine[1]}; used with VS_DEBLUR_KERNELS=cupy only"),
        "kernel resblock5": fine,
        "kernel skip": fine,
    }
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert "kernel dtb_conv" not in doctor()


def fail(*_: Any) -> None:
    raise KernelError("dtb differs")


@pytest.mark.usefixtures("gpu")
def test_the_doctor_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "reference")
    assert doctor() == {"kernels": ("ok", "not used: VS_DEBLUR_KERNELS=reference")}
    monkeypatch.delenv("VS_DEBLUR_KERNELS")
    monkeypatch.setattr(dispatch, "missing", lambda: "CuPy is not installed")
    status, text = doctor()["kernels"]
    assert status == "warn"
    assert text.endswith("torch computes instead: CuPy is not installed")


def test_the_doctor_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vs_deblur.engine.choose_device", lambda name: torch.device("cpu"))
    assert doctor() == {"kernels": ("ok", "not used: no CUDA device")}


def test_every_operation_is_named() -> None:
    """Where the doctor, the benchmark and the docs look for them."""
    import pkgutil

    import vs_deblur_kernels

    modules = (m.name for m in pkgutil.iter_modules(vs_deblur_kernels.__path__))
    found = {
        n
        for n in modules
        if hasattr(importlib.import_module(f"vs_deblur_kernels.{n}"), "operation")
    }
    assert found == set(dispatch.OPERATIONS)
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in found)


@pytest.mark.usefixtures("fresh")
def test_a_device_that_a_kernel_is_not_for(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name too, others compute: it is asked for where it is to be had."""
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "cupy")
    x = torch.zeros((1, 32, 4, 4)).half()
    parts = [torch.zeros((32, 32, 3, 3)).half(), torch.zeros(32).half()] * 2
    with launching_by(shim := Shim(compiled, capability=(7, 5))):
        assert resblock.fused(x, *parts) is None
    assert not shim.launches


def test_what_is_told_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VS_DEBLUR_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "missing", lambda: None)
    assert dispatch.summary() == "with kernels"
    monkeypatch.setattr(dispatch, "missing", lambda: "CuPy is not installed")
    assert dispatch.summary() == "no kernels: CuPy is not installed"
    monkeypatch.setenv("VS_DEBLUR_KERNELS", "reference")
    assert dispatch.summary() == "no kernels: VS_DEBLUR_KERNELS=reference"
