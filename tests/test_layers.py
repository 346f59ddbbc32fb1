"""Imports point one way: each room may use those named for it and no others, whatever a function or a type checker imports included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GROUND = {"clock", "compiled", "memory", "started"}
"""Single files that know nobody, for everybody."""
NATIVE = {"_pieces"}
"""The same in C."""
GUESTS = {"control", "testing"}
"""Who may ask for the built-in guest's image (avmm_guests)."""
ROOMS = {
    "cpu": set(),
    "devices": set(),
    "hypervisor": {"cpu", "devices"},
    "hypervisor.hyperv": {"cpu", "devices", "hypervisor"},
    "platform": {"devices"},
    "interpose": {"devices", "platform"},
    "host": {"devices", "hypervisor"},
    "vmbus": {"devices", "hypervisor", "hypervisor.hyperv"},
    "storage": {"devices", "vmbus"},
    "debug": {"cpu", "hypervisor"},
    "boot": {"cpu", "devices"},
    "control": {"cpu", "devices", "hypervisor", "hypervisor.hyperv", "platform", "interpose", "host", "vmbus", "storage", "debug", "boot"},
    "testing": {"cpu", "devices", "hypervisor", "control"},
}  # fmt: skip


def modules(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The modules that a file imports, with their lines: ``from avmm import clock`` is avmm.clock."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            names = [f"avmm.{name.name}" for name in node.names] if node.module == "avmm" else [node.module or ""]
            yield from ((node.lineno, name) for name in names)


def room(module: str) -> str:
    """The room of a module of ``avmm``."""
    parts = module.split(".")[1:]
    return "hypervisor.hyperv" if parts[:2] == ["hypervisor", "hyperv"] else parts[0]


def of(path: Path) -> str:
    return room(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_each_folder_has_a_place() -> None:
    assert {of(path) for path in modules("avmm")} == {*ROOMS, *GROUND, "__init__"}


@pytest.mark.parametrize("name", [*sorted(GROUND), *ROOMS])
def test_a_room_imports_what_it_may(name: str) -> None:
    allowed = {name, *NATIVE, *((GROUND | ROOMS[name]) if name in ROOMS else ())}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules("avmm") if of(path) == name
        for line, module in imported(path)
        if module.split(".")[0] in {"avmm_console", "console", "guests", "tests"}
        or (module == "avmm_guests" and name not in GUESTS)
        or (module.startswith("avmm.") and room(module) not in allowed)
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_rooms_have_an_order() -> None:
    """No two of them need each other."""
    placed: set[str] = set()
    while len(placed) < len(ROOMS):
        ready = {name for name, needs in ROOMS.items() if name not in placed and needs <= placed}
        assert ready, f"a circle among {sorted(set(ROOMS) - placed)}"
        placed |= ready


def test_protocol_machines_do_no_io() -> None:
    """Wire formats and sequences are fed and answer: none of them knows an event loop, a socket or the host's time."""
    machines = [
        path for path in modules("avmm") if path.stem in {"wire", "packets", "stub", "sequence", "establish", "sense", "video_wire"}
    ]
    assert len(machines) > 8
    wrong = [f"{path.relative_to(ROOT)}:{line} imports {module}" for path in machines for line, module in imported(path)
             if module.split(".")[0] in {"asyncio", "socket", "time", "threading", "select"}]  # fmt: skip
    assert not wrong, "\n".join(wrong)
