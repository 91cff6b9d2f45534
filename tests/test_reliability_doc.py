"""The tables of docs/reliability.md name tests that exist, for every fault and every error."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_api import EXIT_CODES
from vs_deblur.errors import DeblurError

DOC = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = 56
LINK = re.compile(r"\[([\w/]+\.py)::(\w+)\]\(([^)]*)\)")


@cache
def functions(path: Path) -> set[str]:
    """Names of the functions at the top of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def rows(heading: str) -> list[list[str]]:
    """Cells of each row of the table below a heading."""
    part = DOC.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[2:]]


def check_tests(cell: str) -> None:
    """A cell has links to tests, and nothing else."""
    links = LINK.findall(cell)
    assert links, cell
    assert cell.count("](") == len(links), cell
    for link in links:
        check(*link)


def check(path: str, name: str, target: str) -> None:
    """There is such a test, and it is run."""
    assert target == f"../tests/{path}", f"the link of {path}::{name} leads to {target}"
    assert name in functions(ROOT / "tests" / path), f"{path} has no {name}"
    if not name.startswith("test_"):
        # Checks of the filter run in processes of their own, by name.
        runner = ROOT / "tests" / "vapoursynth" / "test_filter.py"
        assert path == "vapoursynth/checks.py"
        assert re.search(rf'[",]{name}[",]', runner.read_text(encoding="utf-8")), name


def test_every_fault_has_a_row_with_tests() -> None:
    found = rows("Faults")
    assert [row[0] for row in found] == [str(n) for n in range(1, FAULTS + 1)]
    for number, fault, outcome, tests in found:
        assert fault, number
        assert outcome, number
        check_tests(tests)


def test_every_link_to_a_test_is_right() -> None:
    links = LINK.findall(DOC)
    assert len(links) == DOC.count("](../tests/")
    for link in links:
        check(*link)


@pytest.mark.parametrize("kind", EXIT_CODES, ids=lambda kind: kind.__name__)
def test_every_class_of_errors_has_a_row_with_its_code_and_a_test(kind: type[DeblurError]) -> None:
    (row,) = (row for row in rows("Exit codes") if f"`{kind.__name__}`" in row[1])
    assert str(EXIT_CODES[kind]) in row[0].split(", ")
    check_tests(row[3])


def test_codes_are_those_of_the_classes() -> None:
    said = {int(code) for row in rows("Exit codes") for code in row[0].split(", ")}
    assert said == {0, 129, 143, *EXIT_CODES.values()}
