"""The public API is frozen in api.json, and so are the exceptions and what an import may load.

After a wanted change: ``python -m tests.test_api > tests/api.json``.
"""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import vs_deblur
from tests.invoke import invoke
from vs_deblur import errors
from vs_deblur.errors import DeblurError, ReaderClosed, Stopped, exit_code

FROZEN = Path(__file__).with_name("api.json")

# What `import vs_deblur` may load besides the standard library.
MAY_LOAD = frozenset(("vs_deblur", "vs_deblur._version", "vs_deblur.errors"))

EXIT_CODES: dict[type[DeblurError], int] = {
    errors.DeblurError: 1,
    errors.EngineError: 1,
    errors.UsageError: 2,
    errors.InputError: 3,
    errors.ProtocolError: 3,
    errors.OutputError: 4,
    errors.WeightsError: 5,
    errors.DeviceError: 6,
    errors.OutOfMemoryError: 6,
    errors.Stopped: 130,
    errors.ReaderClosed: 141,
}


def _signature(function: Any) -> str:
    return str(inspect.signature(function))


def describe(thing: Any) -> Any:
    """What users can rely on: signatures of functions, and of a class's public members."""
    if not inspect.isclass(thing):
        return _signature(thing) if callable(thing) else type(thing).__name__
    if issubclass(thing, Exception):
        bases = [b.__name__ for b in thing.__mro__[1:] if b not in (object, BaseException)]
        return {"bases": bases, "exit_code": getattr(thing, "exit_code", None)}
    members = {"__init__": _signature(thing.__init__)}
    for name, member in vars(thing).items():
        if not name.startswith("_"):
            members[name] = _signature(member) if callable(member) else type(member).__name__
    return members


def surface() -> dict[str, Any]:
    """The public API as it is now."""
    return {name: describe(getattr(vs_deblur, name)) for name in sorted(vs_deblur.__all__)}


def test_the_public_api_is_frozen() -> None:
    assert surface() == json.loads(FROZEN.read_text(encoding="utf-8"))


def test_dir_shows_the_public_names() -> None:
    assert set(vs_deblur.__all__) <= set(dir(vs_deblur))


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'enhance'"):
        _ = vs_deblur.enhance


def loaded_by(statement: str) -> set[str]:
    """Modules that are not of the standard library and that a statement loads."""
    code = f"""
import sys
before = set(sys.modules)
{statement}
print("\\n".join(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    names = done.stdout.split()
    return {n for n in names if n.split(".")[0] not in sys.stdlib_module_names}


def test_import_loads_nothing_but_names_and_errors() -> None:
    assert loaded_by("import vs_deblur") <= MAY_LOAD


def test_the_engine_does_not_load_vapoursynth() -> None:
    tops = {n.split(".")[0] for n in loaded_by("from vs_deblur import Deblurrer")}
    assert "torch" in tops
    assert not tops & {"vapoursynth", "av", "click", "PIL"}


# -------------------------------------------------------------------------------------- exceptions


def every_class(base: type[DeblurError] = DeblurError) -> set[type[DeblurError]]:
    """A class of ours and all below it, test modules' own ones left out."""
    below = {c for c in base.__subclasses__() if c.__module__.startswith("vs_deblur")}
    return {base}.union(*map(every_class, below))


def test_every_exception_class_is_in_the_table() -> None:
    # Wherever one may be defined: import all of ours first.
    import pkgutil

    for package in (vs_deblur,):
        for module in pkgutil.walk_packages(package.__path__, "vs_deblur."):
            if not module.name.endswith("__main__"):
                __import__(module.name)
    assert every_class() == set(EXIT_CODES)


def example(kind: type[DeblurError]) -> DeblurError:
    if issubclass(kind, ReaderClosed):
        return kind(7)
    if issubclass(kind, Stopped):
        return kind(2, 7)
    return kind("what is wrong", "where", "what to do")


CLASSES = sorted(EXIT_CODES, key=lambda c: c.__name__)


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_codes(kind: type[DeblurError]) -> None:
    assert kind.exit_code == exit_code(example(kind)) == EXIT_CODES[kind]


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_codes_on_the_command_line(kind: type[DeblurError]) -> None:
    """Raised in a command, in a process of its own."""
    code = f"""
import click, tests.test_api as t
from vs_deblur import errors
from vs_deblur.cli._common import run

@click.group()
def group(): pass

@group.command()
def fail(): raise t.example(errors.{kind.__name__})

run(group, ["fail"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=FROZEN.parents[1],
    )
    assert done.returncode == EXIT_CODES[kind]
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    if issubclass(kind, ReaderClosed):
        assert done.stderr == ""
    elif issubclass(kind, Stopped):
        assert done.stderr == "vs-deblur: stopped after 7 frames\n"
    else:
        assert done.stderr == "vs-deblur: error: what is wrong (where); what to do\n"


@pytest.mark.parametrize("kind", CLASSES)
def test_the_tree_in_the_docstring(kind: type[DeblurError]) -> None:
    lines = [x for x in (errors.__doc__ or "").splitlines() if kind.__name__ in x.split("(")[0]]
    tree = [x for x in lines if x.strip(" │├└─").startswith(kind.__name__)]
    assert tree
    assert str(EXIT_CODES[kind]) in tree[0].split()


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_survive_pickling(kind: type[DeblurError]) -> None:
    error = example(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert exit_code(again) == exit_code(error)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [("UsageError", ValueError), ("InputError", ValueError), ("OutputError", OSError)],
)
def test_errors_are_builtin_ones_too(kind: str, builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="what is wrong"):
        raise example(getattr(errors, kind))


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("what",), "what"),
        (("what", "where"), "what (where)"),
        (("what", None, "hint"), "what; hint"),
        (("two\nlines", "where", "hint"), "two lines (where); hint"),
    ],
)
def test_a_message_is_one_line(args: tuple[str, ...], text: str) -> None:
    for kind in CLASSES:
        if not issubclass(kind, Stopped):
            assert str(kind(*args)) == text


def test_stopped_carries_the_signal() -> None:
    assert exit_code(Stopped(15, 3)) == 143
    assert exit_code(ReaderClosed()) == 141
    assert exit_code(RuntimeError("a stranger's")) == 1


def test_invoke_has_the_codes_of_the_command_line() -> None:
    @click.command()
    @click.argument("kind")
    def fail(kind: str) -> None:
        raise example(getattr(errors, kind))

    for kind in CLASSES:
        assert invoke(fail, kind.__name__).code == EXIT_CODES[kind]
    assert invoke(fail).code == 2


if __name__ == "__main__":
    print(json.dumps(surface(), indent=1))
