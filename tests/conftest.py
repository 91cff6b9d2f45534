"""What all tests share."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

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


def pytest_configure() -> None:
    # torch warns once, at import, on machines without a usable NVIDIA driver.
    warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
