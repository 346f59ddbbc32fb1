"""The manual's code blocks run as they are written, and its links lead somewhere.

A comment right before a fenced block says what is done with it; a page's blocks share a folder and are done in order:

``<!-- run -->``          run it (python, sh) and expect exit status 0; ``<!-- run: 1 -->`` expects 1
``<!-- prints -->``       each line of it was printed by the block run last; ``...`` stands for anything
``<!-- file: NAME -->``   write it there
``<!-- not run: WHY -->`` leave it: what it needs is not here

Every python and sh block of the manual and of README.md has such a comment.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import avmm
import avmm.testing

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "guests" / "README.md"]
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>[\w{}-]*)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
COMMANDS = {"python": [sys.executable, "-W", "ignore::DeprecationWarning:unicorn"], "sh": ["bash", "-euo", "pipefail"]}
PATIENCE = 240


class Block(NamedTuple):
    """A fenced block and what is to be done with it."""

    mark: str
    argument: str
    language: str
    body: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        mark, _, argument = (match["mark"] or "").partition(":")
        found.append(Block(mark.strip(), argument.strip(), match["language"], match["body"], text.count("\n", 0, match.start()) + 1))
    return found


@pytest.fixture
def sockets() -> Iterator[str]:
    """A folder for sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="avmm-") as folder:
        yield folder


def run(block: Block, folder: Path, sockets: str) -> tuple[int, str]:
    """Run a block as somebody would who has avmm installed; return its exit status and what it printed."""
    script = folder / f"block-{block.line}.{block.language}"
    script.write_text(block.body)
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": paths, "XDG_RUNTIME_DIR": sockets, "AVMM_EXAMPLES": str(ROOT / "examples"), "COLUMNS": "120"}
    environment.pop("PYTEST_ADDOPTS", None)
    running = subprocess.Popen(
        [*COMMANDS[block.language], str(script)],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = running.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # with what it left in the background
        output, _ = running.communicate()
        pytest.fail(f"line {block.line} did not end:\n{output}")
    return running.returncode, output


def assert_printed(lines: str, output: str, where: str) -> None:
    """Each line, in this order, with ... for anything."""
    at = 0
    for line in filter(None, map(str.strip, lines.splitlines())):
        pattern = ".*".join(re.escape(part.strip()) for part in line.split("..."))
        match = re.compile(pattern).search(output, at)
        assert match, f"{where}: {line!r} was not printed, or not in this order, but\n{output}"
        at = match.end()


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.mark == "run" for b in blocks(page))], ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path, sockets: str) -> None:
    output = ""
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.mark == "file":
            (tmp_path / block.argument).write_text(block.body)
        elif block.mark == "run":
            status, output = run(block, tmp_path, sockets)
            assert status == int(block.argument or 0), f"{where}: exit status {status}\n{output}"
        elif block.mark == "prints":
            assert_printed(block.body, output, where)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_each_block_has_its_mark(page: Path) -> None:
    outside = BLOCK.sub("", page.read_text())
    loose = re.search(r"^(?: {4}|\t)(?:avmm|python|pytest|make|pip) .*", outside, re.M)
    assert not loose, f"{page.name}: {loose and loose[0]!r} is in no fenced block, where a test would run it"
    for block in blocks(page):
        assert block.mark in ("", "run", "prints", "file", "not run"), f"{page.name}, line {block.line}: {block.mark!r} is no mark"
        assert block.mark or block.language not in COMMANDS, f"{page.name}, line {block.line}: say what is done with this block"
        assert block.mark != "not run" or block.argument, f"{page.name}, line {block.line}: say why this block is not run"
        assert block.mark != "run" or block.language in COMMANDS, f"{page.name}, line {block.line}: cannot run {block.language!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_each_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([\w/.-]+)$", "\n".join(b.body for b in blocks(ROOT / "docs" / "index.md") if b.language == "{toctree}"), re.M))
    assert listed == {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}


def test_the_reference_has_everything_that_is_exported() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    described = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", reference, re.M))
    assert {f"avmm.{name}" for name in avmm.__all__} <= described
    assert {getattr(avmm, name, None) for name in avmm.testing.__all__} == {getattr(avmm.testing, name) for name in avmm.testing.__all__}
    for path in described - {"avmm.testing.plugin"}:
        module, _, name = path.rpartition(".")
        thing = getattr(as_written(module), name)
        assert thing.__doc__, path
        for member, value in vars(thing).items() if isinstance(thing, type) else ():
            function = getattr(value, "fget", value)
            assert member.startswith("_") or not isinstance(function, types.FunctionType) or documented(thing, member), f"{path}.{member} says nothing"


def as_written(name: str) -> types.ModuleType:
    """Return a module, of a compiled one what its source says: docs/conf.py imports that too, as compiled code has no docstrings."""
    module = importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name.replace('.', '/')}.py")
    if str(module.__file__).endswith(".py") or spec is None or spec.loader is None:
        return module
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(thing: type, member: str) -> bool:
    """Whether a method, or what it overrides, has a docstring."""
    return any(inspect.getdoc(vars(base)[member]) for base in thing.__mro__ if member in vars(base))
