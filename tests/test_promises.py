"""Every promise of docs/promises.md is named by a test, in its name or in its docstring: I1-I10, H1-H13, M1-M11."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "promises.md"
LAST = {"I": 10, "H": 13, "M": 11}
PROMISES = [f"{letter}{number}" for letter, last in LAST.items() for number in range(1, last + 1)]
RANGE = re.compile(r"\b([IHM])(\d+)(?:-\1(\d+))?\b")
ROW = re.compile(r"^\| ([IHM]\d+) \| (.+) \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def numbers(text: str) -> set[str]:
    """The promises that a text names; H1-H3 names three."""
    return {f"{found[1]}{n}" for found in RANGE.finditer(text) for n in range(int(found[2]), int(found[3] or found[2]) + 1)} & set(PROMISES)


def named() -> dict[str, set[str]]:
    """What each test of the repository names, by ``file::test``."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                words = " ".join(part.upper() for part in node.name.split("_"))
                found[f"{path.relative_to(ROOT)}::{node.name}"] = numbers(words) | numbers(ast.get_docstring(node) or "")
    return found


def test_the_page_lists_each_promise_once() -> None:
    assert [row[1] for row in ROW.finditer(PAGE.read_text())] == PROMISES


def test_each_promise_is_named_by_the_tests_listed_for_it() -> None:
    names = named()
    for promise, _, tests in ROW.findall(PAGE.read_text()):
        listed = ["::".join(found) for found in TEST.findall(tests)]
        assert listed, f"{promise}: list a test"
        for test in listed:
            assert promise in names.get(test, set()), f"{test}, listed for {promise}, is not there or does not name it"


def test_every_test_that_the_page_lists_is_there() -> None:
    names = named()
    assert [test for test in map("::".join, TEST.findall(PAGE.read_text())) if test not in names] == []


@pytest.mark.parametrize(("text", "expected"), [("H1-H3, H13.", {"H1", "H2", "H3", "H13"}), ("I11, M0, MI1", set()), ("TEST I4 M2 AN", {"I4", "M2"})])
def test_reading_numbers(text: str, expected: set[str]) -> None:
    assert numbers(text) == expected
