"""Call a command of the command line inside this process."""

from __future__ import annotations

from dataclasses import dataclass

import click
from click.testing import CliRunner

from vs_deblur.errors import exit_code


@dataclass(frozen=True)
class Result:
    """What a command did.

    Attributes:
        code: the exit code that the command line would have ended with.
        out, err: what it printed.
        error: what it raised.
    """

    code: int
    out: str
    err: str
    error: BaseException | None


def invoke(command: click.Command, *args: object) -> Result:
    """Call a command; usage errors of click have code 2, as on the command line."""
    result = CliRunner().invoke(command, [str(a) for a in args], standalone_mode=False)
    code = result.return_value if isinstance(result.return_value, int) else 0
    if result.exception is not None:
        usage = isinstance(result.exception, click.UsageError)
        code = 2 if usage else exit_code(result.exception)
    return Result(code, result.stdout, result.stderr, result.exception)
