"""The machine that a measurement was taken on, by what matters for speed."""

from __future__ import annotations

import csv
import os
import platform
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


class Table:
    """Rows of one measurement: printed as they come, kept for the file.

    Args:
        device: that is measured; the machine is named in every row.
    """

    def __init__(self, device: str) -> None:
        self.machine = describe_machine(device)
        self.rows: list[dict[str, Any]] = []
        print(self.machine)

    def add(self, **row: Any) -> None:
        """Take and print a row."""
        self.rows.append({**row, "machine": self.machine})
        print("  ".join(f"{value}" for value in row.values()), flush=True)

    def write(self, path: Path | None) -> None:
        """Write all rows as CSV, if a file was asked for; its folder is made if missing."""
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
