"""Compiled modules are those that are listed, and what their sources say."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from avmm import compiled

LISTED = [line for line in (compiled.ROOT / "compiled.txt").read_text().split("\n") if line and not line.startswith("#")]


def module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def test_all_that_is_listed_is_compiled_or_nothing_is() -> None:
    built = compiled.modules()
    assert list(built) in (LISTED, [])
    for path in LISTED:
        found = importlib.util.find_spec(module(path))
        assert found is not None
        assert found.origin is not None
        assert found.origin.endswith(".so") == (path in built)


@pytest.mark.parametrize("after", [b"x = 2\n", None])
def test_a_source_that_is_not_what_was_compiled_is_refused(tmp_path: Path, after: bytes | None) -> None:
    (tmp_path / "avmm").mkdir()
    source = tmp_path / "avmm/part.py"
    source.write_bytes(b"x = 1\n")
    compiled.check(tmp_path)  # nothing is compiled
    (tmp_path / "avmm/compiled.json").write_text(json.dumps({"avmm/part.py": sha256(b"x = 1\n").hexdigest()}))
    compiled.check(tmp_path)
    if after is None:
        source.unlink()
    else:
        source.write_bytes(after)
    with pytest.raises(compiled.StaleError, match=r"^avmm/part\.py has changed since it was compiled: run `make compiled`"):
        compiled.check(tmp_path)


def test_the_command_line_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "avmm").mkdir()
    for name in ("__init__.py", "compiled.py"):
        (tmp_path / "avmm" / name).write_bytes((compiled.ROOT / "avmm" / name).read_bytes())
    (tmp_path / "avmm/compiled.json").write_text(json.dumps({"avmm/__init__.py": "another"}))
    (tmp_path / "avmm_console").symlink_to(compiled.ROOT / "console")
    ran = subprocess.run([sys.executable, "-m", "avmm_console", "doctor"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    expected = "avmm: avmm/__init__.py has changed since it was compiled: run `make compiled`, or `make interpreted` to do without"
    assert ran.stderr.strip() == expected


def modules_used(path: Path) -> set[Path]:
    """The sources of avmm whose names a source uses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avmm"):
            names = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
            found |= {compiled.ROOT / f"{name.replace('.', '/')}.py" for name in names}
    return {source for source in found if source.exists()}


def test_constants_that_become_part_of_compiled_code_are_compiled_with_it() -> None:
    """mypyc writes a number or text that is ``Final`` where it is used: a change of its module alone would not reach there."""
    listed = [compiled.ROOT / path for path in LISTED]
    for source in set().union(*map(modules_used, listed)) - set(listed):
        for node in ast.parse(source.read_text()).body:
            if isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation) and node.value is not None:
                made = [part for part in ast.walk(node.value) if isinstance(part, ast.Call | ast.Dict | ast.Tuple | ast.Attribute)]
                assert made, f"{source}:{node.lineno}: {ast.unparse(node.target)} is used by compiled code, and not compiled"


def suspensions(tree: ast.AST) -> set[int]:
    """The lines at which code waits or yields, those of functions in it aside."""
    found = set()
    below = list(ast.iter_child_nodes(tree))
    while below:
        node = below.pop()
        if isinstance(node, ast.Await | ast.Yield | ast.YieldFrom | ast.AsyncWith | ast.AsyncFor):
            found.add(node.lineno)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            below += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", LISTED)
def test_compiled_code_does_not_wait_while_it_handles_an_exception(path: str) -> None:
    """What is being handled belongs to the thread in mypyc's coroutines, not to the coroutine: whoever runs meanwhile would see it."""
    for node in ast.walk(ast.parse((compiled.ROOT / path).read_text())):
        if isinstance(node, ast.Try):
            handling = [*node.handlers, ast.Module(node.finalbody, [])]
            assert not set().union(*map(suspensions, handling)), f"{path}:{node.lineno}"
        assert not isinstance(node, ast.AsyncWith), f"{path}:{node.lineno}: its __aexit__ may wait"
