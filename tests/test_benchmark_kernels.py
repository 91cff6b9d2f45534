"""``benchmarks.kernels`` on the CPU: all but the calls of CUDA, which a stand-in takes.

The stand-in for the device launches kernels by ``tests/shim``, tells times that the tests choose,
and runs again what a graph would replay.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.gpu import checks, measure, paths, problems, results, xla
from benchmarks.gpu.device import Captured, CudaDevice, Run
from benchmarks.gpu.measure import Options, Session
from benchmarks.gpu.results import Goal, Results
from tests.shim import Shim
from vs_deblur_kernels import dtb, resblock, resblock5, skip
from vs_deblur_kernels._compile import Backend, Kernel
from vs_deblur_kernels.dispatch import launcher, launching_by
from vs_deblur_models.registry import build_network

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="SKIPPED: NO g++")

HALF, BRAIN = torch.float16, torch.bfloat16
TINY = Options(
    "tiny",
    main=(16, 16),
    others=((8, 12),),
    widths=(32,),
    halves=(HALF,),
    rounds=1,
    seconds=0.0,
    copies=2,
    matmul=(8, 16),
    copy_bytes=(64, 128),
    frames=2,
    checked=((1, 1, 1), (1, 17, 15)),
    large=None,
)


def copy_into(old: Any, new: Any) -> None:
    if isinstance(old, Tensor):
        old.copy_(new)
    else:
        for a, b in zip(old, new, strict=True):
            copy_into(a, b)


class StandIn:
    """A :class:`benchmarks.gpu.device.Device` without a device."""

    name = "Stand-in 9000"
    device = torch.device("cpu")
    capability = (8, 0)

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0
        self.seen: set[Run] = set()

    def state(self) -> str:
        return "1.0, cold"

    def backend(self) -> Backend:
        return launcher(self.device)

    def compile_kernel(self, kernel: Kernel) -> None:
        pass

    def clock(self) -> float:
        self.now += 0.125
        return self.now

    def synchronize(self) -> None:
        pass

    def milliseconds(self, run: Run) -> float:
        if run not in self.seen:  # once will do
            run()
            self.seen.add(run)
        self.calls += 1
        return 1.0 + self.calls % 7

    def capture(self, run: Run) -> Captured:
        result = run()
        return Captured(lambda: copy_into(result, run()), result)

    def side_stream(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    stray_stream = side_stream

    def busy(self) -> None:
        pass

    def compile(self, function: Callable[..., Any], mode: str) -> Callable[..., Any]:
        return function

    def free(self) -> None:
        pass


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shim")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations need not prove themselves in all widths: that is tests/test_kernels.py."""
    for module in (dtb, skip, resblock, resblock5):
        monkeypatch.setattr(module.operation, "check", lambda *_: None)
        monkeypatch.setattr(module.operation, "found", {})


def alone(group: kernels.Group, session: Session, seconds: float) -> None:
    """In this process: the stand-in cannot be had in another."""
    group.measure(session)


class Faulty(Shim):
    """A shim that changes one kernel only."""

    source = "dtb"

    def text(self, kernel: Kernel) -> str:
        return super().text(kernel) if kernel.source == self.source else kernel.text


def measured(
    folder: Path, shim: Shim, monkeypatch: pytest.MonkeyPatch, *argv: str
) -> tuple[int, Results, StandIn]:
    """A run on the stand-in. The emulation finds what the shim has compiled."""
    arguments = kernels.parse(["-o", str(folder), "--no-sanitizer", "--minutes", "999", *argv])
    device = StandIn()
    kept = contextlib.nullcontext(str(shim.folder))
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda: kept)
    with launching_by(shim):
        session = kernels.start(device, TINY, arguments)
        code = kernels.run(session, arguments, alone)
    return code, session.results, device


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "kernels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------- a whole run


def lively() -> Any:
    return paths.lively(build_network("strcnn_dtb"))


# Not the light network and DMPHN: the same code, and slow by the shim.
GROUPS = "network 16x16,dtb,64 16,planes,compile 16,others,5x5,jax,autotune 16"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, compiled: Path) -> tuple[Path, int, Results]:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        for module in (dtb, skip, resblock, resblock5):
            patch.setattr(module.operation, "check", lambda *_: None)
            patch.setattr(module.operation, "found", {})
        patch.setattr(problems, "FLOATS", (HALF, BRAIN))  # float32: fewer things to compile
        code, found, _ = measured(folder, Shim(compiled), patch, "--only", GROUPS, "--run", "1")
    return folder, code, found


def test_all_is_right(whole: tuple[Path, int, Results]) -> None:
    _, code, found = whole
    assert code == 0
    verdicts = {r["subject"]: r["verdict"] for r in found.rows if r["kind"] == "check"}
    assert verdicts.pop("all checks") == "passed"
    # Nothing has streams here, and the sanitizer is for CUDA.
    assert verdicts.pop("the check of order can fail") == "not run"
    assert verdicts.pop("compute-sanitizer") == "not run"
    assert set(verdicts.values()) == {"passed"}
    for name in ("dtb 64 fp16", "graph of skip 64 fp16", "emulation of resblock 32 fp16"):
        assert name in verdicts
    assert {r["verdict"] for r in found.rows if r["kind"] in ("network", "kernel", "frames")} == {
        "right"
    }


def test_rows(whole: tuple[Path, int, Results]) -> None:
    folder, _, found = whole
    assert rows_of(folder) == found.rows
    networks = [r for r in found.rows if r["kind"] == "network"]
    made = (*paths.PEERS, *paths.KERNELS, *paths.COMPILED, *paths.AUTOTUNED)
    labels = [p.label(graph) for p in made for graph in p.graphs]
    assert [r["path"] for r in networks] == labels
    eager = next(r for r in networks if r["path"] == paths.EAGER)
    flops = lively().spec.flops_per_pixel
    for row in networks[:11]:  # of one group
        took, first = float(row["ms_p50"]), float(eager["ms_p50"])
        assert float(row["times_eager"]) == pytest.approx(first / took, rel=1e-3)
        assert float(row["fps"]) == pytest.approx(1e3 / took, rel=1e-3)
        assert float(row["tflops"]) == pytest.approx(flops * 256 / took / 1e9, rel=1e-3)
    launched = {r["path"]: r["launched"] for r in networks}
    assert launched["torch eager NCHW"] == ""
    assert launched["kernels (auto)"] == "skip, dtb"
    assert launched["kernels (cupy)"] == "resblock, dtb"
    blend = found.find(kind="kernel", subject="dtb 64", path="kernel")
    assert blend is not None
    assert blend["size"] == "8x8"
    # Three tensors in, one out; beta is two bytes more.
    moved = 4 * 64 * 8 * 8 * 2 + 2
    assert float(blend["gbps"]) == pytest.approx(moved / float(blend["ms_p50"]) / 1e6, rel=1e-3)
    peak = found.find(kind="peak", subject="copy")
    assert peak is not None
    share = float(blend["gbps"]) / float(peak["gbps"])
    assert float(blend["of_copy"]) == pytest.approx(share, rel=1e-2)


def test_page_and_plot(whole: tuple[Path, int, Results]) -> None:
    pytest.importorskip("matplotlib", reason="SKIPPED: NO matplotlib")
    folder, _, _ = whole
    text = (folder / "kernels.md").read_text()
    assert text.startswith("# Kernels on Stand-in 9000\n")
    for title in ("## Goals", "## Measured peaks", "## Networks: strcnn_dtb at 16x16", "## Checks"):
        assert f"{title}\n" in text
    assert "| torch eager channels_last, graph | fp16 |" in text
    assert (folder / "kernels.png").read_bytes().startswith(b"\x89PNG")


def test_resume_leaves_out_what_is_there(
    whole: tuple[Path, int, Results],
    tmp_path: Path,
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    before = rows_of(folder)
    gone = [r for r in before if r["path"] == "torch eager NCHW" and r["kind"] == "network"]
    kept = [r for r in before if r not in gone]
    assert len(gone) == 1
    with (folder / "kernels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, results.FIELDS)
        writer.writeheader()
        writer.writerows(kept)
        file.write("network,strcnn_dtb,torch ea")  # cut off
    argv = ("--only", GROUPS, "--resume", "--run", "2")
    code, found, _ = measured(folder, Shim(compiled), monkeypatch, *argv)
    assert code == 0
    new = [r for r in rows_of(folder) if r["run"] == "2"]
    assert [r["path"] for r in new] == ["torch eager NCHW"]
    assert len(found.rows) == len(before)


def test_rows_of_another_device_are_not_ours(
    whole: tuple[Path, int, Results], tmp_path: Path
) -> None:
    shutil.copytree(whole[0], tmp_path / "copy")
    common = dict(whole[2].common)
    assert Results(tmp_path / "copy", common, resume=True).rows
    assert not Results(tmp_path / "copy", common | {"run": "2"}).rows
    for name in results.SAME:
        assert not Results(tmp_path / "copy", common | {name: "other"}, resume=True).rows


def test_a_file_with_other_columns_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "kernels.csv").write_text("a,b\n1,2\n")
    common = dict.fromkeys((*results.SAME, "run"), "x")
    found = Results(tmp_path, common)
    found.add(kind="peak", subject="copy", gbps=3.0)
    assert (tmp_path / "kernels.1.csv").read_text() == "a,b\n1,2\n"
    assert [r["gbps"] for r in rows_of(tmp_path)] == ["3"]


# ---------------------------------------------------------------------------- what must not pass


def test_a_wrong_kernel_fails_the_checks(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code says so, rows with that kernel are marked, others are not."""

    def few(*_: object) -> list[problems.Problem]:
        return [problems.blending(64, HALF), problems.skipping(64, HALF)]

    monkeypatch.setattr(problems, "every_problem", few)
    shim = Faulty(compiled, 0, [("w = w > 1.f ? 1.f : w;", "")])
    code, found, _ = measured(tmp_path, shim, monkeypatch, "--only", "dtb skip 16")
    assert code == 1
    verdicts = {r["subject"]: r["verdict"] for r in found.rows if r["kind"] == "check"}
    assert verdicts["dtb 64 fp16"] == "FAILED"
    assert verdicts["emulation of dtb 64 fp16"] == "FAILED"
    assert verdicts["skip 64 fp16"] == "passed"
    assert verdicts["all checks"] == "FAILED"
    rows = {r["subject"]: r for r in found.rows if r["kind"] == "kernel" and r["path"] == "kernel"}
    assert rows["dtb 64"]["verdict"] == "wrong"
    assert rows["skip 64"]["verdict"] == "right"
    # Checked again when resumed.
    code, _, _ = measured(tmp_path, shim, monkeypatch, "--only", "nothing", "--resume")
    assert code == 1


def test_the_blend_with_its_convolution(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that it is for, beside what it replaces."""
    shim = Shim(compiled, capability=(9, 0), most_shared=227 << 10)
    problem = problems.blended_convolving(HALF)
    cpu = torch.device("cpu")
    assert problem.title in [p.title for p in problems.every_problem(shim, cpu, (), (HALF,))]
    monkeypatch.setattr(problems, "every_problem", lambda *_: [problem])
    code, found, _ = measured(tmp_path, shim, monkeypatch, "--only", "dtb_conv")
    assert code == 0
    checked = {r["subject"]: r["verdict"] for r in found.rows if r["kind"] == "check"}
    assert checked["dtb_conv 64 fp16"] == checked["own check of dtb_conv fp16"] == "passed"
    rows = {r["path"]: r for r in found.rows if r["kind"] == "kernel"}
    assert {"the library and the kernel dtb", paths.EAGER, paths.COMPILE, "kernel"} <= rows.keys()
    assert {r["verdict"] for r in rows.values()} == {"right"}
    assert rows["kernel"]["subject"] == "dtb_conv 64"
    text = (tmp_path / "kernels.md").read_text()
    assert "dtb_conv 64 fp16 at 8x8, against the best library path" in text


def test_stop_where_a_check_failed(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "every_problem", lambda *_: [problems.blending(64, HALF)])
    shim = Faulty(compiled, 0, [("w = w > 1.f ? 1.f : w;", "")])
    code, found, _ = measured(tmp_path, shim, monkeypatch, "--stop")
    assert code == 1
    assert {r["kind"] for r in found.rows} == {"check"}
    assert (tmp_path / "kernels.md").exists()


class Late(StandIn):
    """Whose graphs replay what they were recorded with, and whose side stream is out of order."""

    def capture(self, run: Run) -> Captured:
        result = run()
        return Captured(lambda: None, result)

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        put = Tensor.copy_
        with pytest.MonkeyPatch.context() as patch:  # what is copied has not arrived yet
            patch.setattr(Tensor, "copy_", lambda self, *_: self)
            yield
        assert Tensor.copy_ is put


@pytest.mark.parametrize("check", [checks.graph_replay, checks.stream_order])
def test_order_and_graphs_are_checked(check: Callable[..., Any], compiled: Path) -> None:
    size = () if check is checks.graph_replay else ((1, 5, 7),)
    problem = problems.blending(64, HALF)
    with launching_by(Shim(compiled)):
        assert check(StandIn(), problem, *size).passed
        assert not check(Late(), problem, *size).passed


def test_a_launch_out_of_order_would_be_seen(compiled: Path) -> None:
    class Device(StandIn):
        """Copies before the stray launch arrive late."""

        def busy(self) -> None:
            self.patch = pytest.MonkeyPatch()
            self.patch.setattr(Tensor, "copy_", lambda self, *_: self)

        def stray_stream(self) -> contextlib.AbstractContextManager[None]:
            self.patch.undo()
            return contextlib.nullcontext()

    with launching_by(Shim(compiled)):
        outcome = checks.stray_is_seen(Device(), problems.blending(64, HALF), (1, 5, 7))
    assert outcome.passed


def test_memory_that_is_not_written_is_seen(compiled: Path) -> None:
    shim = Faulty(compiled, 0, [("if (rest < count) out[rest]", "if (false) out[rest]")])
    with launching_by(shim):
        outcome = checks.error_rule(StandIn(), problems.blending(5, HALF), [(1, 3, 3)])
    assert not outcome.passed


def test_what_raises_has_failed() -> None:
    def check() -> checks.Outcome:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    outcome = checks.guarded("a check", check)
    assert outcome.verdict == "FAILED"
    assert outcome.detail == "RuntimeError: CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
def test_kernels_of_both_types(compiled: Path, dtype: torch.dtype) -> None:
    with launching_by(Shim(compiled)):
        for problem in (problems.blending(64, dtype), problems.residual(32, dtype)):
            outcome = checks.error_rule(StandIn(), problem, [(1, 3, 5)])
            assert outcome.passed, outcome.detail


# ------------------------------------------------------------------------------------- sanitizer


def test_the_sanitizers_words() -> None:
    done = f"7 problems: {checks.LAUNCHED}\n"
    clean = f"{done}========= ERROR SUMMARY: 0 errors\n"
    assert checks.read_sanitizer("memcheck", 0, clean).passed
    races = "========= RACECHECK SUMMARY: {0} hazards displayed ({0} errors, 0 warnings)\n"
    assert checks.read_sanitizer("racecheck", 0, done + races.format(0)).passed
    assert checks.read_sanitizer("racecheck", 86, done + races.format(2)).passed is False
    fault = "========= Invalid __global__ read of size 16 bytes\n=========     at dtb+0x70\n"
    # The program itself may die of what was found.
    found = checks.read_sanitizer("memcheck", 1, fault + "========= ERROR SUMMARY: 3 errors\n")
    assert found.passed is False
    assert "at dtb+0x70" in found.detail
    refused = "========= Error: Device not supported\n========= ERROR SUMMARY: 1 error\n"
    assert checks.read_sanitizer("memcheck", 1, refused).passed is None
    assert checks.read_sanitizer("memcheck", 0, "").passed is None
    assert checks.read_sanitizer("memcheck", 1, "ModuleNotFoundError: cupy").passed is None
    # Without the program's last word, nothing was proved.
    assert checks.read_sanitizer("memcheck", 0, "========= ERROR SUMMARY: 0 errors").passed is None


def test_the_sanitizer_is_found_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text(
        """#!/bin/sh
        case "$2" in
            memcheck) "$9" "${10}"; echo "========= ERROR SUMMARY: 0 errors";;
            racecheck) echo "========= RACECHECK SUMMARY: 1 hazard displayed"; exit 86;;
            synccheck) sleep 600 & wait;;
        esac"""
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", partial(which_in, shutil.which))
    found = checks.find_sanitizer()
    assert found == str(program)
    running = checks.start_sanitizer(found, ["/bin/echo", checks.LAUNCHED])
    outcomes = {o.name.split()[1]: o for o in checks.finish_sanitizer(running, 1.0)}
    assert outcomes["memcheck"].passed, outcomes["memcheck"].detail
    assert outcomes["racecheck"].passed is False
    assert outcomes["synccheck"].passed is None
    assert all(process.poll() is not None for process, _ in running.running.values())


def which_in(which: Callable[..., str | None], name: str, path: str | None = None) -> str | None:
    """Nothing is on the path."""
    return None if path is None else which(name, path=path)


def test_what_the_sanitizer_watches(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shim = Shim(compiled)
    todo = [
        problems.blending(64, HALF),
        problems.skipping(64, HALF),
        problems.composed(64, 3, HALF),
    ]
    with launching_by(shim):
        checks.launch_small(StandIn(), todo)
    assert [k.source for k in shim.launches] == ["dtb", "skip"]
    assert checks.LAUNCHED in capsys.readouterr().out


# ----------------------------------------------------------------------------------------- paths


def test_the_gate_tells_wrong_paths(compiled: Path) -> None:
    """One that is off, one that gives NaN, one that raises."""
    made = lively()
    clip = paths.Clip(StandIn(), made, (4, 6), HALF)
    step = clip.step

    def changed(path: paths.Path) -> paths.Step:
        def run(window: Tensor, state: Any) -> Any:
            if path.name == "raises":
                raise RuntimeError("no engine")
            sharp, following = step(path)(window, state)
            return sharp * {"off": 1.05, "nan": torch.nan}.get(path.name, 1.0), following

        return run

    clip.step = changed  # type: ignore[method-assign]
    rows = [clip.prepare(paths.Path(n, graphs=(False,)))[0] for n in ("fine", "off", "nan")]
    assert [r.verdict for r in rows] == ["right", "wrong", "wrong"]
    failed = clip.prepare(paths.Path("raises"))
    assert [(r.verdict, r.label) for r in failed] == [
        ("failed", "raises"),
        ("failed", "raises, graph"),
    ]
    assert failed[0].note == "RuntimeError: no engine"


def test_state_goes_from_frame_to_frame() -> None:
    """A path that forgets it is wrong in the second frame."""
    made = lively()
    clip = paths.Clip(StandIn(), made, (4, 6), HALF)
    window, state = clip.buffers(True)
    path = paths.Path(paths.EAGER)
    clip.cast(True)
    with path.settings():
        step = clip.step(path)
        right = clip.errors(lambda: step(window, state), window, state)
        first = tuple(s.clone() for s in state)
        forgetful = clip.errors(lambda: step(window, first), window, state)
    assert right == clip.plain
    assert forgetful[0] > 2 * right[0]


def test_paths_leave_no_settings_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VS_DEBLUR_KERNELS", raising=False)
    flags = torch.backends.cudnn
    before = (flags.benchmark, flags.deterministic, torch.is_inference_mode_enabled())
    with paths.Path("a", "cupy").settings():
        assert flags.benchmark
        assert torch.is_inference_mode_enabled()
    assert (flags.benchmark, flags.deterministic, torch.is_inference_mode_enabled()) == before
    assert "VS_DEBLUR_KERNELS" not in os.environ


def test_torch_can_trace_the_step(compiled: Path) -> None:
    """In one piece, and without kernels: what ``torch.compile`` is measured on."""
    made = lively()
    clip = paths.Clip(StandIn(), made, (8, 8), HALF)
    window, state = clip.buffers(True)
    shim = Shim(compiled)
    with launching_by(shim), torch.no_grad():
        step = clip.step(paths.Path("a"))
        traced = torch.compile(step, backend="eager", fullgraph=True, dynamic=False)
        found, following = traced(window, state)
        assert not shim.launches
        expected, after = step(window, state)
        assert shim.launches
    assert found.shape == expected.shape
    assert len(following) == len(after)


def test_jax_computes_the_same() -> None:
    pytest.importorskip("jax", reason="SKIPPED: NO JAX")
    made = lively()
    for dtype in (HALF, BRAIN):
        clip = paths.Clip(StandIn(), made, (8, 12), dtype)
        row = paths.Prepared("jax", paths.Path("jax"), False, plain=clip.plain)
        row.error = measure._jax_errors(clip, xla.strcnn_step(made, dtype), dtype)
        assert paths.is_within(row, dtype)


# ------------------------------------------------------------------------------------- interleave


def test_rows_are_timed_in_turn() -> None:
    order: list[str] = []

    class Device(StandIn):
        def milliseconds(self, run: Run) -> float:
            run()
            return float(len(order))

    timed = [measure.Timed(partial(order.append, n), contextlib.nullcontext) for n in "abc"]
    measure.interleave(Device(), timed, rounds=4, seconds=0.0)
    assert "".join(order) == "abcbcacababcbcacab"
    assert timed[0].times == [8.0, 10.0, 15.0, 17.0]  # without the first two rounds


def test_a_row_that_breaks_does_not_end_the_others() -> None:
    calls: list[int] = []

    def breaks() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("too hot")

    timed = [measure.Timed(breaks, contextlib.nullcontext)]
    timed.append(measure.Timed(lambda: None, contextlib.nullcontext))

    class Device(StandIn):
        def milliseconds(self, run: Run) -> float:
            run()
            return 1.0

    measure.interleave(Device(), timed, rounds=5, seconds=0.0)
    assert timed[0].note == "RuntimeError: too hot"
    assert len(calls) == 4
    assert len(timed[1].times) == 5


def test_time_is_up_after_enough_rounds() -> None:
    timed = [measure.Timed(lambda: None, contextlib.nullcontext)]
    measure.interleave(StandIn(), timed, rounds=100, seconds=0.0)
    assert len(timed[0].times) == measure.LEAST


# ------------------------------------------------------------------------------------------ goals


def judged(folder: Path, device: str = "NVIDIA H100 80GB HBM3", **changes: Any) -> dict[str, Goal]:
    """The goals of a made-up measurement in which all are reached, but for changes."""
    common = dict.fromkeys((*results.SAME, "run"), "x") | {"device": device}
    found = Results(folder, common)
    numbers = {
        "dtb": {"ms_p50": 0.05, "times_eager": 4.0, "of_copy": 0.8},
        "resblock": {"ms_p50": 0.1},
        "library": {"ms_p50": 0.2},
        "ours": {"ms_p50": 1.0, "times_eager": 2.0},
        "compiled": {"ms_p50": 1.5, "times_eager": 1.4},
        "frames": {"ms_p50": 1.0, "fps": 1000.0},
    }
    at = {"size": "640x360", "dtype": "fp16", "verdict": "right"}
    whole = {**at, "size": "1280x720"}
    keys: dict[str, dict[str, Any]] = {
        "dtb": {"kind": "kernel", "subject": "dtb 64", "path": "kernel", **at},
        "resblock": {"kind": "kernel", "subject": "resblock 64 3x3", "path": "kernel", **at},
        "library": {"kind": "kernel", "subject": "resblock 64 3x3", "path": paths.EAGER, **at},
        "ours": {"kind": "network", "subject": "strcnn_dtb", "path": paths.OURS, **whole},
        "compiled": {"kind": "network", "subject": "strcnn_dtb", "path": paths.COMPILE, **whole},
        "frames": {"kind": "frames", "subject": measure.CONVERTED, "path": paths.OURS, **whole},
    }
    for name, key in keys.items():
        change = changes.get(name, {})
        if change is not None:
            found.add(**key | numbers[name] | change)
    names = ["times", "bandwidth", "block", "eager", "compile", "rate"]
    return dict(zip(names, results.goals(found), strict=True))


def test_goals_that_are_reached(tmp_path: Path) -> None:
    goals = judged(tmp_path)
    assert all(g.reached for g in goals.values()), goals
    assert goals["block"].found == f"2.00 times (kernel against {paths.EAGER})"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("times", {"dtb": {"times_eager": 2.9}}),
        ("bandwidth", {"dtb": {"of_copy": 0.69}}),
        ("block", {"resblock": {"ms_p50": 0.19}}),
        ("eager", {"ours": {"times_eager": 1.49}}),
        ("compile", {"compiled": {"times_eager": 2.1}}),
        ("rate", {"frames": {"fps": 399.0}}),
    ],
)
def test_goals_that_are_missed(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    goals = judged(tmp_path, **change)
    assert [n for n, g in goals.items() if not g.reached] == [name]
    assert goals[name].verdict == "MISSED"
    assert ("not the default" in goals[name].found) == (name == "block")


def test_what_is_wrong_wins_nothing(tmp_path: Path) -> None:
    wrong = {"verdict": "wrong"}
    goals = judged(tmp_path / "1", compiled=wrong | {"times_eager": 9.0}, library=wrong)
    assert goals["compile"].verdict == goals["block"].verdict == "not measured"
    goals = judged(tmp_path / "2", dtb=wrong, ours=wrong, frames=None)
    verdicts = {n: g.verdict for n, g in goals.items() if n != "block"}
    assert set(verdicts.values()) == {"not measured"}


def test_the_rate_is_a_goal_for_one_device(tmp_path: Path) -> None:
    goal = judged(tmp_path, device="NVIDIA L4")["rate"]
    assert goal.reached is None
    assert goal.found == "1000 fps; the goal is for an H100"


# ---------------------------------------------------------------------------------------- the run


def without_work(monkeypatch: pytest.MonkeyPatch, groups: list[kernels.Group]) -> None:
    monkeypatch.setattr(kernels, "groups", lambda options: groups)
    monkeypatch.setattr(measure, "peaks", lambda session: None)


def test_what_does_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most important first; a short one may still fit where a long one does not."""
    done: list[str] = []
    all_ = [
        kernels.Group(name, seconds, lambda session, name=name: done.append(name))  # type: ignore[misc]
        for name, seconds in (("a", 30.0), ("b", 100.0), ("c", 20.0))
    ]
    without_work(monkeypatch, all_)
    arguments = kernels.parse(["-o", str(tmp_path), "--skip-checks", "--minutes", "1"])
    session = kernels.start(StandIn(), TINY, arguments)
    assert kernels.run(session, arguments, alone) == 0
    assert done == ["a", "c"]
    assert "- b: takes about 100 s, " in (tmp_path / "kernels.md").read_text()


def test_a_lost_device_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Device(StandIn):
        lost = False

        def synchronize(self) -> None:
            if self.lost:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def lose(session: Session) -> None:
        device.lost = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def never(session: Session) -> None:
        raise AssertionError

    device = Device()
    without_work(monkeypatch, [kernels.Group("a", 1, lose), kernels.Group("b", 1, never)])
    arguments = kernels.parse(["-o", str(tmp_path), "--skip-checks"])
    assert kernels.run(kernels.start(device, TINY, arguments), arguments, alone) == 1
    text = (tmp_path / "kernels.md").read_text()
    assert "- a: RuntimeError: CUDA error" in text
    assert "- all that would have come after: the device was lost" in text


def test_groups() -> None:
    """Every name once, what may hang alone, and the slowest last."""
    all_ = kernels.groups(Options())
    names = [g.name for g in all_]
    assert len(set(names)) == len(names)
    assert names[0] == "network 1280x720"
    assert names[-3:] == ["autotune 1280x720", "autotune 640x480", "autotune 1920x1080"]
    lonely = {g.name.split()[0] for g in all_ if g.is_alone}
    assert lonely == {"compile", "autotune", "jax"}
    assert [g.name for g in kernels.selected(all_, "jax, 5x5")] == [
        "kernel resblock 5x5 1280x720",
        "jax 1280x720",
    ]


def test_without_a_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.main([]) == 6
    assert capsys.readouterr().err == "benchmarks.kernels: no CUDA device here\n"
    assert kernels.main(["--list", "--only", "nonsense"]) == 2
    assert kernels.main(["--list", "--only", "jax"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "jax 1280x720: about 60 s, in a process of its own"
    assert said[1].startswith("all: about 1 minutes")


def test_calls_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names and arguments are those of torch; what they do, only a device can tell."""
    cuda = create_autospec(torch.cuda, instance=True)
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, L2_cache_size=50 << 20)
    cuda.current_device.return_value = 0
    cuda.get_device_properties.return_value = properties
    cuda.Event.return_value.elapsed_time.return_value = 1.5
    for name in ("Event", "Stream", "CUDAGraph", "graph", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    for name in ("current_device", "get_device_properties", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    scratch = create_autospec(Tensor, instance=True)
    monkeypatch.setattr(torch, "empty", create_autospec(torch.empty, return_value=scratch))
    device = CudaDevice()
    assert (device.name, device.capability) == ("NVIDIA H100", (9, 0))
    order: list[str] = []
    cuda.Event.return_value.record.side_effect = lambda: order.append("event")
    scratch.zero_.side_effect = lambda: order.append("flush")
    cuda.Event.return_value.synchronize.side_effect = lambda: order.append("wait")
    assert device.milliseconds(partial(order.append, "run")) == 1.5
    assert order == ["flush", "event", "run", "event", "wait"]
    runs: list[int] = []
    captured = device.capture(partial(runs.append, 1))
    assert len(runs) == 4
    cuda.graph.assert_called_once_with(cuda.CUDAGraph.return_value)
    captured.replay()
    cuda.CUDAGraph.return_value.replay.assert_called_once_with()
    stream, here = cuda.Stream.return_value, cuda.current_stream.return_value
    stream.wait_stream.assert_called_once_with(here)
    here.wait_stream.assert_called_once_with(stream)
    with device.stray_stream():
        pass
    stream.wait_stream.assert_called_once_with(here)
    device.free()
    cuda.empty_cache.assert_called_once_with()


def test_a_process_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nsleep 600 &\nwait\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    arguments = kernels.parse(["-o", str(tmp_path / "out")])
    session = kernels.start(StandIn(), TINY, arguments)
    group = kernels.Group("slow", 1, measure.peaks)
    kernels.spawn(arguments, group, session, 0.2)
    assert "slow: not done in 0 s, ended" in capsys.readouterr().out
    program.write_text("#!/bin/sh\nexit 9\n")
    kernels.spawn(arguments, group, session, 60)
    assert "slow: its process ended with 9" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ frames


def test_frames_converted_on_the_device(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd sizes are padded; the result is what float32 gives, but for the precision."""
    monkeypatch.setattr(paths, "KERNELS", paths.KERNELS[:1])
    session = kernels.start(StandIn(), TINY, kernels.parse(["-o", str(tmp_path)]))
    with launching_by(Shim(compiled)):
        measure.converted(session, (7, 5))
    rows = session.results.rows
    assert len(rows) == 4
    assert {r["verdict"] for r in rows} == {"right"}
    assert all(float(r["fps"]) > 0 for r in rows)


def test_frames_from_host_to_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vs_deblur.engine.require", lambda device: None)
    arguments = kernels.parse(["-o", str(tmp_path)])
    session = kernels.start(StandIn(), TINY, arguments)
    measure.end_to_end(session, (16, 12))
    rows = session.results.rows
    assert [r["verdict"] for r in rows] == ["right"] * len(rows)
    assert [r["path"] for r in rows][:2] == ["engine, kernels (auto)", "engine, kernels (cupy)"]
    # The stand-in's clock takes an eighth of a second a look.
    assert [r["fps"] for r in rows] == ["8"] * len(rows)
