"""A user's script passes mypy strict, and misspelt options do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy reads the user's script")

# VapourSynth ships annotations without a py.typed marker; numpy and torch only cost time here.
CONFIG = """
[mypy]
strict = true
[mypy-vapoursynth.*]
follow_untyped_imports = true
[mypy-numpy.*,torch.*]
follow_imports = skip
"""
SCRIPT = """
from typing import assert_type

import vapoursynth as vs

from vs_deblur import deblur


def sharpen(clip: vs.VideoNode) -> vs.VideoNode:
    sharp = deblur(clip, model="auto", strength=0.8, segment=32, warmup=4, scene_threshold=0.1)
    assert_type(sharp, vs.VideoNode)
    return deblur(sharp, device="cpu", precision="fp32", tile=None{extra})
"""


def _mypy(folder: Path, extra: str) -> subprocess.CompletedProcess[str]:
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "user.py").write_text(SCRIPT.format(extra=extra))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_script_passes_mypy_strict(tmp_path: Path) -> None:
    done = _mypy(tmp_path, "")
    assert done.returncode == 0, done.stdout
    done = _mypy(tmp_path, ", strengh=1.0")
    assert done.returncode == 1
    assert 'Unexpected keyword argument "strengh"' in done.stdout
