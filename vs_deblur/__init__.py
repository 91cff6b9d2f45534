"""Motion deblurring for editing hosts.

``import vs_deblur`` loads neither torch nor VapourSynth: names are looked up when first used.

- :func:`deblur`: the VapourSynth filter.
- :class:`Deblurrer`: the engine, for arrays and for hosts of your own.
- the exceptions of :mod:`vs_deblur.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vs_deblur._version import __version__
from vs_deblur.errors import (
    DeblurError,
    DeviceError,
    EngineError,
    InputError,
    OutputError,
    UsageError,
    WeightsError,
)

if TYPE_CHECKING:
    from vs_deblur.engine import Deblurrer
    from vs_deblur.hosts.vapoursynth import deblur

__all__ = [
    "DeblurError",
    "Deblurrer",
    "DeviceError",
    "EngineError",
    "InputError",
    "OutputError",
    "UsageError",
    "WeightsError",
    "__version__",
    "deblur",
]

_LAZY = {"Deblurrer": "vs_deblur.engine", "deblur": "vs_deblur.hosts.vapoursynth"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
