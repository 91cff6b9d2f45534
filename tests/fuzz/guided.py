"""Fuzzing led by coverage, for as long as one likes: ``python -m tests.fuzz.guided -h``.

Needs Atheris (libFuzzer for Python; wheels for Linux), which is no dependency of the project::

    uv venv --python 3.12 /tmp/atheris && uv pip install --python /tmp/atheris/bin/python atheris
    site=$(uv run python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    PYTHONPATH=.:models:kernels:$site /tmp/atheris/bin/python -m tests.fuzz.guided /tmp/corpus

Each target runs in a process of its own. An input that breaks one is made smaller and kept as
``<corpus>/<target>.crash``; it belongs into ``test_found.py``, with its repair into the product.
Ends with 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

#: Modules that are watched: ours, and those that take strangers' bytes apart in Python.
WATCHED = ["vs_deblur", "vs_deblur_models", "PIL", "tifffile", "zipfile", "pickletools", "json"]
LONGEST = 20  # seconds for one input, after which it counts as a hang
LARGEST = 16384  # bytes of an input


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=WATCHED):
        from tests.fuzz.targets import TARGETS, check
    target = TARGETS[name]
    seal = target.seal

    def one(data: bytes) -> None:
        check(target, data)

    def mutate(data: bytes, largest: int, seed: int) -> bytes:
        changed = bytes(atheris.Mutate(data, largest))
        return seal(changed)[:largest] if seal is not None and seed % 4 else changed

    if seal is None:
        atheris.Setup([sys.argv[0], *options], one)
    else:
        atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    atheris.Fuzz()


def shrink(name: str, crash: Path) -> None:
    """Leave out of an input whatever it breaks its target without, in the same way."""
    from tests.fuzz.targets import TARGETS, check

    def broken(data: bytes) -> type[BaseException] | None:
        try:
            check(TARGETS[name], data)
        except Exception as error:
            return type(error)
        return None

    data = crash.read_bytes()
    how, size = broken(data), len(data) // 2
    while how is not None and size:
        at = 0
        while at < len(data):
            less = data[:at] + data[at + size :]
            if broken(less) is how:
                data = less
                crash.write_bytes(data)
            else:
                at += size
        size //= 2


def prepare(name: str, folder: Path) -> list[str]:
    """Write the valid inputs and the tokens of a target; libFuzzer's options for them."""
    from tests.fuzz.targets import TARGETS

    target, corpus = TARGETS[name], folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(target.seeds()):
        (corpus / f"seed{i}").write_bytes(seed)
    longest = max(LARGEST, 2 * max(map(len, target.seeds())))
    options = [str(corpus), f"-max_len={longest}"]
    if target.tokens:
        words = folder / f"{name}.dict"
        quoted = ("".join(f"\\x{byte:02x}" for byte in token) for token in target.tokens)
        words.write_text("".join(f'"{word}"\n' for word in quoted))
        options.append(f"-dict={words}")
    return options


def run(name: str, folder: Path, seconds: int) -> tuple[int, str]:
    """Fuzz one target in a process of its own.

    Returns:
        the number of inputs that were tried, and what was found: "" for nothing.
    """
    crash = folder / f"{name}.crash"
    command = [sys.executable, "-m", "tests.fuzz.guided", "--one", name]
    limits = [f"-timeout={LONGEST}", "-rss_limit_mb=4096"]
    done = subprocess.run(
        [
            *command,
            *prepare(name, folder),
            *limits,
            f"-max_total_time={seconds}",
            f"-exact_artifact_path={crash}",
            "-print_final_stats=1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + 600,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    counts = re.findall(r"stat::number_of_executed_units:\s*(\d+)", said)
    counts = counts or re.findall(r"^#(\d+)\s", said, re.MULTILINE)
    tried = int(counts[-1]) if counts else 0
    if not done.returncode:
        return tried, ""
    named = r"\s*(\w+\.)*\w*(Error|Finding)\b|SUMMARY: |Fatal Python error"
    lines = [line for line in said.splitlines() if re.match(named, line)]
    why = "; ".join(lines[-2:]) if lines else "; ".join(said.splitlines()[-3:])
    if crash.exists():
        # It may hang or kill the process that looks at it; then it stays as it is.
        with contextlib.suppress(subprocess.TimeoutExpired):
            shrink = [*command[:-2], "--shrink", name, str(crash)]
            subprocess.run(shrink, capture_output=True, timeout=300, check=False)
        why += f" ({crash})"
    return tried, why[:1000]


def main() -> int:
    """Fuzz what is asked for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tests.fuzz.guided", description="Fuzzing led by coverage"
    )
    parser.add_argument("corpus", type=Path, help="folder of inputs, kept for the next run")
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=300, help="for each target")
    wanted = parser.parse_intermixed_args()
    from tests.fuzz.targets import TARGETS

    if unknown := set(wanted.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(unknown)}; known: {', '.join(TARGETS)}")
    found = 0
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vs-deblur-fuzz-", dir=place) as folder:
        # libFuzzer ends a process without Python's clearing up: it is done here.
        os.environ["TMPDIR"] = folder
        for name in wanted.targets or TARGETS:
            tried, why = run(name, wanted.corpus, wanted.seconds)
            found += bool(why)
            print(f"{name}: {tried:,} inputs, {why or 'nothing found'}", flush=True)
    return int(bool(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        fuzz(sys.argv[2], sys.argv[3:])
    if sys.argv[1:2] == ["--shrink"]:
        shrink(sys.argv[2], Path(sys.argv[3]))
        sys.exit()
    sys.exit(main())
