"""Rows of a measurement: a CSV that grows as they come, goals, a page in Markdown, a plot."""

from __future__ import annotations

import csv
import hashlib
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.paths import COMPILE, EAGER, OURS, OURS_ALL

ROOT = Path(__file__).parents[2]
SAME = ("device", "torch", "sources", "settings")
"""What rows have in common that belong together."""
KEY = ("kind", "subject", "path", "size", "dtype")
"""What tells them apart."""
FIELDS = (
    *KEY,
    *("ms_p20", "ms_p50", "ms_p80", "repeats", "fps", "tflops", "gbps"),
    *("of_matmul", "of_copy", "times_eager"),
    *("error_rms", "error_max", "plain_rms", "plain_max", "verdict"),
    *("launched", "seconds", "note"),
    *SAME,
    *("capability", "cuda", "state", "commit", "run"),
)
Row = dict[str, str]


def sources_hash() -> str:
    """Ten digits of the SHA-256 of all that is measured and measures: of no commit yet, perhaps."""
    digest = hashlib.sha256()
    folders = ("kernels", "models", "vs_deblur", "benchmarks")
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def commit() -> str:
    """The commit that is checked out, and whether files differ from it; empty outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def folder_name(device: str) -> str:
    """A device's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def written(value: Any) -> str:
    """A number with four digits that count, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Results:
    """The rows in a folder.

    Args:
        folder: for ``kernels.csv``, ``kernels.md`` and ``kernels.png``; made if missing.
        common: what goes into every row. The names in :data:`SAME` and "run" say which rows of the
            file belong to this measurement.
        resume: rows of earlier runs belong to it, too.
    """

    def __init__(self, folder: Path, common: Mapping[str, str], *, resume: bool = False) -> None:
        self.folder, self.common, self.resume = folder, dict(common), resume
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "kernels.csv"
        self._rows: list[Row] = []
        self.load()

    def load(self) -> None:
        """Read what is there (again). A file with other columns is put aside."""
        self._rows = []
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            # A run that was cut off may leave half a row.
            rows = [r for r in reader if None not in r.values() and None not in r]
            if tuple(reader.fieldnames or ()) != FIELDS:
                rows = []
                number = 1
                while (aside := self.folder / f"kernels.{number}.csv").exists():
                    number += 1
                self.path.rename(aside)
                print(f"{self.path} has other columns: now {aside.name}", flush=True)
        wanted = SAME if self.resume else (*SAME, "run")
        self._rows = [r for r in rows if all(r[n] == self.common[n] for n in wanted)]

    def add(self, **values: Any) -> None:
        """Take a row: into the file at once, and printed."""
        row = {name: written(values.get(name, self.common.get(name, ""))) for name in FIELDS}
        is_new = not self.path.exists()
        if not is_new:  # after half a row, a new line
            with self.path.open("rb+") as file:
                file.seek(0, 2)
                if file.tell() and not self._ends(file):
                    file.write(b"\r\n")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self._rows.append(row)
        shown = [row[n] for n in (*KEY, "ms_p50", "fps", "tflops", "gbps", "verdict", "note")]
        print("  ".join(v for v in shown if v), flush=True)

    @staticmethod
    def _ends(file: Any) -> bool:
        file.seek(-1, 2)
        return bool(file.read(1) == b"\n")

    @property
    def rows(self) -> list[Row]:
        """The rows of this measurement; of several with one key the last."""
        return list({tuple(r[n] for n in KEY): r for r in self._rows}.values())

    def find(self, **values: str) -> Row | None:
        """A row with these values."""
        wanted = values.items()
        return next((r for r in self.rows if all(r[k] == v for k, v in wanted)), None)

    def has(self, **values: str) -> bool:
        """Whether there is such a row, and it did not fail."""
        row = self.find(**values)
        return row is not None and row["verdict"] not in ("failed", "FAILED", "not run")


# ------------------------------------------------------------------------------------------ goals


@dataclass(frozen=True)
class Goal:
    """What was to be reached.

    Attributes:
        name: what.
        wanted: how much, in words.
        found: what was measured.
        reached: None where it could not be measured.
    """

    name: str
    wanted: str
    found: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "reached", False: "MISSED", None: "not measured"}[self.reached]


def number(row: Row | None, name: str) -> float | None:
    """A number of a row that is right; None without one."""
    if row is None or row["verdict"] not in ("right", "") or not row[name]:
        return None
    return float(row[name])


def fastest(rows: Iterable[Row]) -> Row | None:
    """The fastest row that is right."""
    timed = [(t, i, r) for i, r in enumerate(rows) if (t := number(r, "ms_p50")) is not None]
    return min(timed)[2] if timed else None


def best_times(rows: Iterable[Row]) -> tuple[float, Row] | None:
    """The row that is the most times as fast as torch eager of its own group, and how many."""
    found = [(t, i, r) for i, r in enumerate(rows) if (t := number(r, "times_eager")) is not None]
    return (max(found)[0], max(found)[2]) if found else None


def goals(results: Results) -> list[Goal]:
    """All goals, with what was measured."""
    return [*_blend(results), *_blocks(results), *_networks(results), *_rate(results)]


def _blend(results: Results) -> list[Goal]:
    row = results.find(kind="kernel", subject="dtb 64", path="kernel", size="640x360", dtype="fp16")
    times, share = number(row, "times_eager"), number(row, "of_copy")
    return [
        Goal(
            "DTB at 1280x720, against torch eager",
            "3 times",
            "" if times is None else f"{times:.2f} times",
            None if times is None else times >= 3,
        ),
        Goal(
            "DTB at 1280x720, share of the copy's bandwidth",
            "70 %",
            "" if share is None else f"{share:.0%}",
            None if share is None else share >= 0.7,
        ),
    ]


def _blocks(results: Results) -> list[Goal]:
    found = []
    rows = [r for r in results.rows if r["kind"] == "kernel"]
    rows = [r for r in rows if r["subject"].endswith("3x3") or r["subject"].startswith("dtb_conv")]
    for subject, size, dtype in dict.fromkeys((r["subject"], r["size"], r["dtype"]) for r in rows):
        here = [r for r in rows if (r["subject"], r["size"], r["dtype"]) == (subject, size, dtype)]
        ours = fastest(r for r in here if r["path"].startswith("kernel"))
        theirs = fastest(r for r in here if not r["path"].startswith("kernel"))
        mine, best = number(ours, "ms_p50"), number(theirs, "ms_p50")
        text, reached = "", None
        if mine is not None and best is not None and ours and theirs:
            reached = best / mine >= 1.1
            text = f"{best / mine:.2f} times ({ours['path']} against {theirs['path']})"
            text += "" if reached else ": not the default"
        name = f"{subject} {dtype} at {size}, against the best library path"
        found.append(Goal(name, "1.1 times", text, reached))
    return found


def _networks(results: Results) -> list[Goal]:
    found = []
    rows = [r for r in results.rows if r["kind"] == "network" and r["subject"] == "strcnn_dtb"]
    for size in dict.fromkeys(r["size"] for r in rows):
        here = [r for r in rows if r["size"] == size and r["dtype"] == "fp16"]
        mine = best_times(r for r in here if r["path"].startswith("kernels"))
        theirs = best_times(r for r in here if r["path"].startswith(COMPILE))
        name = f"strcnn_dtb fp16 at {size}"
        text = "" if mine is None else f"{mine[0]:.2f} times ({mine[1]['path']})"
        found.append(
            Goal(
                f"{name}, against torch eager channels_last",
                "1.5 times",
                text,
                None if mine is None else mine[0] >= 1.5,
            )
        )
        text, reached = "", None
        if mine is not None and theirs is not None:
            reached = mine[0] > theirs[0]
            text = f"{mine[0] / theirs[0]:.2f} times as fast as {theirs[1]['path']}"
        found.append(Goal(f"{name}, against torch.compile", "faster", text, reached))
    return found


def _rate(results: Results) -> list[Goal]:
    rows = [
        r
        for r in results.rows
        if r["kind"] == "frames" and r["size"] == "1280x720" and r["path"].startswith("kernels")
    ]
    best = fastest(r for r in rows if r["subject"].startswith("strcnn_dtb with conversion"))
    rate = number(best, "fps")
    is_meant = "H100" in results.common["device"]
    text = "" if rate is None else f"{rate:.0f} fps"
    if rate is not None and not is_meant:
        text += "; the goal is for an H100"
    reached = None if rate is None or not is_meant else rate > 400
    return [
        Goal(
            "strcnn_dtb with conversion at 1280x720, on an H100", "more than 400 fps", text, reached
        )
    ]


# ------------------------------------------------------------------------------------------- page

_COLUMNS = {
    "path": "path",
    "dtype": "type",
    "ms_p20": "ms p20",
    "ms_p50": "p50",
    "ms_p80": "p80",
    "fps": "fps",
    "tflops": "TFLOP/s",
    "of_matmul": "of matmul",
    "gbps": "GB/s",
    "of_copy": "of copy",
    "times_eager": "times eager",
    "error_rms": "error rms",
    "error_max": "max",
    "verdict": "verdict",
    "note": "note",
}


_HOW = """\
Times are those between two events on the device, in ms, after the L2 cache was overwritten; the
rows of a table were run in turn. Kernels are timed as graphs of several calls on inputs of their
own. GB/s and TFLOP/s count what must be moved and computed, not what a path does. Errors are
relative to the largest value, against float32; a path is right if they are at most twice those of
torch eager at the same precision."""


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
    """Rows as a table in Markdown; columns that are empty everywhere are left out."""
    used = [c for c in columns if any(r[c] for r in rows)]
    lines = ["| " + " | ".join(columns[c] for c in used) + " |", "|---" * len(used) + "|"]
    for row in rows:
        cells = [_percent(row[c]) if c.startswith("of_") else row[c] for c in used]
        lines.append("| " + " | ".join(c.replace("|", "/") for c in cells) + " |")
    return lines


def _percent(text: str) -> str:
    return f"{float(text):.0%}" if text else ""


def page(results: Results, left_out: Sequence[str]) -> str:
    """The whole measurement in Markdown."""
    common = results.common
    what = (
        f"torch {common['torch']}, CUDA {common['cuda']}, compute capability "
        f"{common['capability']}, settings {common['settings']}, commit "
        f"{common['commit'] or '?'}, sources {common['sources']}. "
        "Made by `python -m benchmarks.kernels`."
    )
    lines = [
        f"# Kernels on {common['device']}",
        "",
        what,
        "",
        _HOW,
    ]
    if common["state"]:
        lines += ["", f"At the start (driver, clocks, power, temperature): {common['state']}."]
    lines += ["", "## Goals", "", "| goal | wanted | found | |", "|---|---|---|---|"]
    lines += [f"| {g.name} | {g.wanted} | {g.found} | {g.verdict} |" for g in goals(results)]
    peaks = [r for r in results.rows if r["kind"] == "peak"]
    if peaks:
        lines += ["", "## Measured peaks", ""]
        lines += table(peaks, {"subject": "what", **_COLUMNS})
    for kind, title in (("network", "Networks"), ("frames", "Frames"), ("kernel", "Kernels")):
        rows = [r for r in results.rows if r["kind"] == kind]
        for subject, size in dict.fromkeys((r["subject"], r["size"]) for r in rows):
            lines += ["", f"## {title}: {subject} at {size}", ""]
            lines += table(
                [r for r in rows if (r["subject"], r["size"]) == (subject, size)], _COLUMNS
            )
    checks = [r for r in results.rows if r["kind"] == "check"]
    if checks:
        lines += ["", "## Checks", ""]
        lines += table(checks, {"subject": "check", "verdict": "", "note": "found"})
    if left_out:
        lines += ["", "## Left out", "", *(f"- {line}" for line in left_out)]
    return "\n".join(lines) + "\n"


def plot(results: Results, path: Path) -> str | None:
    """Milliseconds of each path, a panel for each network and size.

    Returns:
        why there is none; None if it was drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: matplotlib is not installed"
    rows = [
        r
        for r in results.rows
        if r["kind"] in ("network", "kernel", "frames") and number(r, "ms_p50") is not None
    ]
    panels = list(dict.fromkeys((r["subject"], r["size"]) for r in rows))
    if not panels:
        return "no plot: no times"
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (subject, size) in zip(grid.flat, panels, strict=False):
        here = [r for r in rows if (r["subject"], r["size"]) == (subject, size)]
        middle = [float(r["ms_p50"]) for r in here]
        low = [m - float(r["ms_p20"] or m) for m, r in zip(middle, here, strict=True)]
        high = [float(r["ms_p80"] or m) - m for m, r in zip(middle, here, strict=True)]
        colours = [_colour(r["path"]) for r in here]
        names = [f"{r['path']} {r['dtype']}" for r in here]
        places = list(range(len(here)))
        bounds = [[max(v, 0.0) for v in side] for side in (low, high)]
        axes.barh(places, middle, xerr=bounds, color=colours, ecolor="grey")
        axes.set_yticks(places, names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_title(f"{subject} at {size}", fontsize=9)
        axes.set_xlabel("ms, p50 (p20 to p80)", fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(results.common["device"])
    figure.savefig(path, dpi=110)
    return None


def _colour(path: str) -> str:
    if path.startswith(("kernel", OURS, OURS_ALL)):
        return "tab:green"
    if path.startswith(EAGER):
        return "tab:orange"
    return "tab:blue"


def write_report(results: Results, left_out: Sequence[str]) -> None:
    """The page and the plot, from what is in the file; and the goals on the terminal."""
    (results.folder / "kernels.md").write_text(page(results, left_out), encoding="utf-8")
    why = plot(results, results.folder / "kernels.png")
    if why:
        print(why)
    print("goals:")
    for goal in goals(results):
        print(f"  {goal.verdict}: {goal.name}: {goal.found or '-'} (wanted: {goal.wanted})")
    print(f"written to {results.folder}", flush=True)
