from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import pytest

from tests.cli.processes import Run, Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


class StartRun(Protocol):
    def __call__(
        self,
        *arguments: object,
        stdin: int | None = None,
        stdout: int | None = None,
        before: str = "",
    ) -> Run: ...


@pytest.fixture
def run(zygote: Zygote) -> Iterator[StartRun]:
    """Start a process of the command line; it is killed at the end of the test if it still runs."""
    started: list[Run] = []

    def start(
        *arguments: object, stdin: int | None = None, stdout: int | None = None, before: str = ""
    ) -> Run:
        started.append(Run(zygote, arguments, stdin=stdin, stdout=stdout, before=before))
        return started[-1]

    yield start
    for process in started:
        process.__exit__()
