"""What all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import disk

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it skip without it.

    ``VS_DEBLUR_SHARED`` names another folder.
    """
    folder = Path(os.environ.get("VS_DEBLUR_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"NO REAL DATA: {folder}/data is not there; set VS_DEBLUR_SHARED to it")
    return folder


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small light network as a file; tests that change the file work on a copy."""
    from tests.small import save_small

    return save_small(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the kernels that g++ makes for ``tests.shim.Shim`` are kept for the whole run."""
    if shutil.which("g++") is None:
        pytest.skip("SKIPPED: NO g++")
    return tmp_path_factory.mktemp("shim")


def pytest_configure() -> None:
    # Programs started in the background inherit that Ctrl-C and hang-ups are ignored, and hand it
    # on to the processes that the tests send these signals to.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # torch warns once, at import, on machines without a usable NVIDIA driver.
    warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)


@pytest.fixture(scope="session")
def vspipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """The wheel's vspipe, and the environment that it needs.

    It works only after ``vapoursynth config`` has written a file that names the Python to embed.
    """
    folder = Path(sys.executable).parent
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("config"))}
    subprocess.run(
        [str(folder / "vapoursynth"), "config"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return [str(folder / "vspipe")], environment


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    with disk(place, 256 << 10) as found:
        yield found


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that cannot be written to, whoever asks."""
    place = tmp_path / "read-only"
    place.mkdir()
    with disk(place, read_only=True) as found:
        yield found
