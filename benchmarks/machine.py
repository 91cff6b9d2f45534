"""The machine that a measurement was taken on, by what matters for speed."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def processor_flags() -> list[str]:
    """Those of the instruction sets above that the processor has (Linux only)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    found = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return [f for f in FLAGS if f in found.split()]


def describe_machine(device: str) -> str:
    """One line: device, instruction sets, threads, torch."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    flags = " ".join(processor_flags()) or "no known instruction sets"
    return (
        f"{platform.machine()} ({flags}), {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of equal keys as CSV, folders made where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
