"""The CUDA kernels on a device: are they right, how fast are they, and what else is as fast.

One run on a machine with a CUDA GPU; nothing needs to be installed but torch, CuPy and what
vs_deblur itself needs (matplotlib for the plot, JAX for its row, g++ and ``compute-sanitizer`` for
two of the checks: what is missing is said and left out)::

    uv run python -m benchmarks.kernels
    PYTHONPATH=.:models:kernels python -m benchmarks.kernels -o results   # without installing

1. Checks: every kernel, type and width at ragged sizes by the error rule (at most twice the error
   of plain torch against float64), the same bits again on poisoned memory, order on side streams,
   CUDA graphs replayed with other inputs, the emulation of ``tests/shim`` against the device, and
   the tools of ``compute-sanitizer``.
2. Peaks of this device: matrix products and copies.
3. Networks, kernels and frames, each against torch eager, cuDNN's epilogues, torch.compile (in a
   process of its own, which may take too long or die) and JAX/XLA; every path is checked against
   float32 first, and one that is wrong is marked and wins nothing.
4. Goals, passed or missed.

Rows go into ``kernels.csv`` as they come, a page and a plot beside it when all is done:
``benchmarks/results/<device>/`` or ``-o``. ``--resume`` leaves out what the file has for this
device, torch and state of the sources. ``--minutes`` bounds the run (20, in which all should fit on
an H100; 8 do without autotuning): groups are run in the order of importance (``--list``), and those
that would not fit any more are left out. ``--only network,dtb`` takes the groups with these words
in their names; ``--quick`` times less often.

Exit codes: 0; 1 if a check failed (times are taken all the same, unless ``--stop``); 2 wrong
arguments; 6 no CUDA device.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import checks, measure, paths, problems
from benchmarks.gpu.device import CudaDevice, Device
from benchmarks.gpu.measure import QUICK, Options, Session, text
from benchmarks.gpu.results import ROOT, Results, commit, folder_name, sources_hash, write_report
from vs_deblur_kernels.dispatch import missing

NO_DEVICE = 6
Spawn = Callable[["Group", Session, float], None]


@dataclass(frozen=True)
class Group:
    """Rows that are measured together.

    Attributes:
        name: of the group.
        seconds: that it takes on an H100, about.
        measure: does it.
        is_alone: whether it runs in a process of its own, as what may hang or die does.
    """

    name: str
    seconds: float
    measure: Callable[[Session], None]
    is_alone: bool = False


def groups(options: Options) -> list[Group]:
    """All groups, the most important first."""
    main, half = options.main, options.halves[0]
    halves = options.halves
    rest = (*paths.PEERS[1:2], *paths.KERNELS[:2])
    all_paths = {t: (*paths.PEERS, *paths.KERNELS) if t == half else rest for t in halves}
    few = {half: (*paths.PEERS[:2], *paths.KERNELS[:2])}
    strcnn = partial(measure.network, subject="strcnn_dtb")
    anchored = partial(strcnn, anchors=paths.ANCHORS)
    found = [
        Group(f"network {text(main)}", 30, partial(strcnn, size=main, wanted=all_paths)),
        Group(f"kernel dtb skip {text(main)}", 25, partial(measure.blend_and_skip, size=main)),
        Group(f"kernel dtb_conv {text(main)}", 12, partial(measure.convolved_blend, size=main)),
        Group(
            f"kernel resblock 64 {text(main)}", 12, partial(measure.blocks, size=main, widths=(64,))
        ),
        Group(f"kernel planes {text(main)}", 8, partial(measure.planes, size=main)),
        Group(f"frames converted {text(main)}", 10, partial(measure.converted, size=main)),
        Group(
            f"compile {text(main)}",
            75,
            partial(anchored, size=main, wanted={half: paths.COMPILED}),
            is_alone=True,
        ),
    ]
    for size in options.others:
        found += [
            Group(f"network {text(size)}", 20, partial(strcnn, size=size, wanted=all_paths)),
        ]
    found.append(
        Group(f"frames end to end {text(main)}", 12, partial(measure.end_to_end, size=main))
    )
    widths = tuple(w for w in options.widths if w != 64)
    found += [
        Group(
            f"kernel resblock others {text(main)}",
            25,
            partial(measure.blocks, size=main, widths=widths),
        ),
        Group(f"kernel resblock 5x5 {text(main)}", 6, partial(measure.large_blocks, size=main)),
    ]
    for size in options.others:
        found += [
            Group(f"kernel dtb skip {text(size)}", 10, partial(measure.blend_and_skip, size=size)),
            Group(f"frames converted {text(size)}", 8, partial(measure.converted, size=size)),
        ]
    found += [
        Group(f"jax {text(main)}", 60, partial(measure.in_jax, size=main), is_alone=True),
        Group(
            f"network lite {text(main)}",
            12,
            partial(measure.network, subject="strcnn_dtb_lite", size=main, wanted=few),
        ),
        Group(
            f"network dmphn {text(main)}",
            15,
            partial(measure.network, subject="dmphn", size=main, wanted=few),
        ),
    ]
    for size in options.others:
        found.append(
            Group(
                f"compile {text(size)}",
                50,
                partial(anchored, size=size, wanted={half: paths.COMPILED[:1]}),
                is_alone=True,
            )
        )
    for size in (main, *options.others):
        found.append(
            Group(
                f"autotune {text(size)}",
                110,
                partial(anchored, size=size, wanted={half: paths.AUTOTUNED}),
                is_alone=True,
            )
        )
    return found


# ----------------------------------------------------------------------------------------- checks


def check(session: Session, arguments: argparse.Namespace) -> bool:
    """Run all checks. Returns whether none failed."""
    device, results, options = session.device, session.results, session.options
    if results.has(kind="check", subject="all checks"):
        row = results.find(kind="check", subject="all checks")
        print("checks: passed before", row["run"] if row else "", flush=True)
        return True
    if (why := missing()) is not None:
        print(f"no kernel can be compiled: {why}", flush=True)
    todo = problems.every_problem(device.backend(), device.device, options.widths, options.halves)
    command = None
    if not arguments.no_sanitizer:
        command = [sys.executable, "-m", "benchmarks.kernels", "--launch-small"]
    failed = 0
    outcomes = checks.run_checks(
        device, todo, options.checked, large=options.large, sanitizer=command
    )
    for outcome in outcomes:
        is_fault = outcome.passed is False
        results.add(
            kind="check", subject=outcome.name, verdict=outcome.verdict, note=outcome.detail
        )
        failed += is_fault
        if is_fault:
            session.wrong |= {p.kind for p in todo if p.title in outcome.name}
    verdict = "FAILED" if failed else "passed"
    results.add(kind="check", subject="all checks", verdict=verdict, note=f"{failed} failed")
    return not failed


# ---------------------------------------------------------------------------------------- the run


def spawn(arguments: argparse.Namespace, group: Group, session: Session, seconds: float) -> None:
    """Run a group in a process of its own, ended after this many seconds."""
    command = [sys.executable, "-m", "benchmarks.kernels", "--group", group.name]
    command += ["-o", str(session.results.folder), "--run", session.results.common["run"]]
    command += ["--quick"] if arguments.quick else []
    command += ["--resume"] if arguments.resume else []
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
        if code:
            print(f"{group.name}: its process ended with {code}", flush=True)
    except subprocess.TimeoutExpired:
        print(f"{group.name}: not done in {seconds:.0f} s, ended", flush=True)
    finally:
        if process.poll() is None:  # and what it started: compilers
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    session.results.load()


def is_alive(device: Device) -> bool:
    """Whether the device still answers: after a bad access it does not, in this process."""
    try:
        device.synchronize()
        torch.zeros(1, device=device.device).cpu()
    except Exception as error:
        print(f"the device is lost: {checks.first_line(error)}", flush=True)
        return False
    return True


def run(session: Session, arguments: argparse.Namespace, alone: Spawn) -> int:
    """Checks, peaks, groups, report. Returns the exit code."""
    device, results = session.device, session.results
    begin, left_out, code = device.clock(), [], 0
    budget = arguments.minutes * 60
    try:
        if not arguments.skip_checks:
            passed = check(session, arguments)
            code = 0 if passed else 1
            took = device.clock() - begin
            print(f"checks: {'passed' if passed else 'FAILED'} in {took:.0f} s", flush=True)
            if not is_alive(device) or (code and arguments.stop):
                return 1
        measure.peaks(session)
        for group in selected(groups(session.options), arguments.only):
            left = budget - (device.clock() - begin)
            seconds = group.seconds * pace(arguments)
            if seconds > left:
                left_out.append(f"{group.name}: takes about {seconds:.0f} s, {left:.0f} s left")
                print(f"left out: {left_out[-1]}", flush=True)
                continue
            print(f"-- {group.name} ({left:.0f} s left)", flush=True)
            try:
                if group.is_alone:
                    device.free()
                    alone(group, session, min(left + 10, 2.5 * group.seconds))
                else:
                    group.measure(session)
            except Exception as error:
                left_out.append(f"{group.name}: {checks.first_line(error)}")
                print(f"failed: {left_out[-1]}", flush=True)
            device_is_there = is_alive(device)
            if not device_is_there:
                left_out.append("all that would have come after: the device was lost")
                code = 1
                break
    finally:
        write_report(results, left_out)
        print(f"{device.clock() - begin:.0f} s in all", flush=True)
    return code


def pace(arguments: argparse.Namespace) -> float:
    """By what the times of groups are to be multiplied."""
    return 0.6 if arguments.quick else 1.0


def selected(all_: Sequence[Group], only: str | None) -> list[Group]:
    """The groups that have one of the words (comma-separated) in their names."""
    words = [w.strip() for w in (only or "").split(",") if w.strip()]
    return [g for g in all_ if not words or any(w in g.name for w in words)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = "folder for the results (default: benchmarks/results/DEVICE)"
    parser.add_argument("-o", "--output", type=Path, help=folder)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and sizes")
    parser.add_argument("--only", help="groups with one of these words, comma-separated")
    parser.add_argument("--minutes", type=float, default=20.0, help="time for all (default: 20)")
    parser.add_argument("--resume", action="store_true", help="leave out rows that are there")
    parser.add_argument("--skip-checks", action="store_true", help="measure without checking")
    parser.add_argument("--no-sanitizer", action="store_true", help="no compute-sanitizer")
    parser.add_argument("--stop", action="store_true", help="end where a check failed")
    parser.add_argument("--list", action="store_true", help="list the groups and end")
    for hidden in ("--group", "--run"):  # how it calls itself
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--launch-small", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.minutes > 0:
        parser.error(f"--minutes must be more than 0, not {arguments.minutes:g}")
    return arguments


def start(device: Device, options: Options, arguments: argparse.Namespace) -> Session:
    """A session with its results; each row says what it was measured on."""
    folder = arguments.output or ROOT / "benchmarks" / "results" / folder_name(device.name)
    common = {
        "device": device.name,
        "torch": torch.__version__,
        "sources": sources_hash(),
        "settings": options.label,
        "capability": ".".join(map(str, device.capability)),
        "cuda": str(torch.version.cuda or ""),
        "state": device.state(),
        "commit": commit(),
        "run": arguments.run or time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    return Session(device, Results(folder, common, resume=arguments.resume), options)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; see the module's text."""
    arguments = parse(argv)
    options = QUICK if arguments.quick else Options()
    if not arguments.group and not selected(groups(options), arguments.only):
        wrong = f"--only {arguments.only}: no group has such a word in its name (--list)"
        print(f"benchmarks.kernels: {wrong}", file=sys.stderr)
        return 2
    if arguments.list:
        total = 0.0
        for group in selected(groups(options), arguments.only):
            where = ", in a process of its own" if group.is_alone else ""
            total += group.seconds * pace(arguments)
            print(f"{group.name}: about {group.seconds * pace(arguments):.0f} s{where}")
        print(f"all: about {total / 60:.0f} minutes on an H100, and some for the checks before")
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing is said in one line
        is_there = torch.cuda.is_available()
    if not is_there:
        print("benchmarks.kernels: no CUDA device here", file=sys.stderr)
        return NO_DEVICE
    device = CudaDevice()
    if arguments.launch_small:
        checks.take_on_trust(device.device)
        all_ = problems.every_problem(
            device.backend(), device.device, options.widths, options.halves[:1]
        )
        checks.launch_small(device, all_)
        return 0
    session = start(device, options, arguments)
    if arguments.group:
        next(g for g in groups(options) if g.name == arguments.group).measure(session)
        return 0
    print(
        f"{device.name}, compute capability {session.results.common['capability']}, "
        f"torch {torch.__version__}; {device.state()}",
        flush=True,
    )
    return run(session, arguments, partial(spawn, arguments))


if __name__ == "__main__":
    sys.exit(main())
