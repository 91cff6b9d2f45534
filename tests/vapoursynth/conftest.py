"""Checks run in processes of their own, under hard limits: a hang fails, and stalls nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(command: list[str], timeout: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own; at the limit the whole group is killed."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"not done within {timeout:g} s: {command}\n{out}\n{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def isolated() -> Callable[..., None]:
    """Run a function of checks.py in a process of its own."""

    def call(name: str, timeout: float = 120, **arguments: object) -> None:
        command = [sys.executable, "-m", "tests.vapoursynth.child", name, json.dumps(arguments)]
        done = run(command, timeout)
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stdout == "done\n", done.stdout

    return call


Vspipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def vspipe(tmp_path_factory: pytest.TempPathFactory) -> Vspipe:
    """Run vspipe with a configuration of its own."""
    home = str(tmp_path_factory.mktemp("config"))
    python = [sys.executable, "-m", "vapoursynth", "config"]
    assert run(python, 60, XDG_CONFIG_HOME=home).returncode == 0
    spec = importlib.util.find_spec("vapoursynth")
    assert spec is not None
    assert spec.origin is not None
    # The binary itself: the wheel's wrapper starts it as a child and loses exit codes.
    binary = str(Path(spec.origin).with_name("vspipe"))

    def call(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return run([binary, *arguments], timeout, XDG_CONFIG_HOME=home, PYTHONPATH=str(ROOT))

    return call
