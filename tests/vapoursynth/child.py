"""Runs checks in a process of their own: ``python -m tests.vapoursynth.child NAME,… JSON``."""

from __future__ import annotations

import json
import sys
import warnings


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="CUDA initialization", category=UserWarning)
    from tests.vapoursynth import checks

    names, arguments = sys.argv[1:]
    for name in names.split(","):
        print(name, "...", file=sys.stderr)
        getattr(checks, name)(**json.loads(arguments))
    print("done")


if __name__ == "__main__":
    main()
