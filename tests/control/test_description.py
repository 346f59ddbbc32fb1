"""machine.toml: what it describes, and that every mistake is one sentence with the file, the line and the reason."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.control.config import Disk, VmConfig
from avmm.control.description import _VM_KEYS, DescriptionError, load, parse
from avmm.control.toml_lines import find_lines

FULL = """\
[host]
structure = "host"
metrics_port = 0
threads = 2
runtime = "run"

[vm.linux]
memory = "96M"
kernel = "kernel"
initrd = "initrd"
append = "console=ttyS0"
disks = [
  "disk.img",
  { path = "other.img", mode = "ro" },
]
weight = 200
cap = 0.5
qmp = "linux.sock"
placement.pit = "service"

[vm."try"]
clock = "virtual"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("kernel", "initrd", "disk.img", "other.img"):
        (tmp_path / name).write_bytes(bytes(512))
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "machine.toml"
    path.write_text(text)
    return path


def test_full(folder: Path) -> None:
    described = load(write(folder, FULL))
    assert described.host.metrics_port == 0
    assert described.host.threads == 2
    assert described.host.structure == "host"
    assert described.host.runtime == folder / "run"
    linux, small = described.vms
    assert linux == VmConfig(
        name="linux", memory="96M", kernel=folder / "kernel", initrd=folder / "initrd", append="console=ttyS0", clock="real",
        disks=(Disk(folder / "disk.img"), Disk(folder / "other.img", "ro")), weight=200, cap=0.5, placement={"pit": "service"},
    )  # fmt: skip
    assert described.sockets == {"linux": folder / "linux.sock"}
    assert small.clock == "virtual"
    assert [(Path(str(disk.path)).name, disk.mode) for disk in small.disks] == [("avmm-guest.img", "overlay")]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[vm.a]\nmemory = \n", 2, "Invalid value"),
        ("[vm.a\n", 1, "Expected ']'"),
        ("[vm.a]\n[vm.a]\n", 2, "Cannot declare"),
        ('[vm.a]\nappend = "\n', 2, "Illegal character"),
        ('[vm.a]\n\n\nappend = """', 4, "Unterminated string"),
        ("", 1, "there is no machine: write [vm.NAME]"),
        ("[host]\n", 1, "there is no machine"),
        ("[vm.a]\n[hosts]\n", 2, "'hosts' is not known here (did you mean 'host'?)"),
        ("vm = 3\n", 1, "each machine is a table"),
        ("[vm]\na = 3\n", 1, "each machine is a table"),
        ("# x\n[vm.'a b']\n", 2, "'a b' is no name"),
        ("[vm.a]\nmemroy = 3\n", 2, "there is no key 'memroy' (did you mean 'memory'?)"),
        ('[vm.a]\n\nmemory = "12X"\n', 3, "cannot read '12X' as a size"),
        ("[vm.a]\nmemory = true\n", 2, "memory is a size such as 64M, not true"),
        ('[vm.a]\nmemory = "1K"\n', 2, "too little"),
        ("[vm.a]\nweight = 'x'\n", 2, "weight is a whole number, not 'x'"),
        ("[vm.a]\nweight = 0\n", 2, "0 is no weight"),
        ("[vm.a]\nweight = 1.5\n", 2, "weight is a whole number"),
        ("[vm.a]\nseed = 1\ncap = 2\n", 3, "2 is no cap"),
        ("[vm.a]\nclock = 'slow'\n", 2, "clock is real or virtual, not 'slow'"),
        ("[vm.a]\ndisks = ['nope.img']\n", 2, "there is no file"),
        ("[vm.a]\ndisks = [\n 'disk.img',\n 'nope.img']\n", 4, "there is no file"),
        ("[vm.a]\ndisks = [\n 'disk.img', {path = 'disk.img',\\\n", 3, ""),
        ("[vm.a]\ndisks = [\n 'disk.img',\n {path = 'disk.img', mode = 'w'}]\n", 4, "mode is rw, ro or overlay"),
        ("[vm.a]\ndisks = [\n 'disk.img',\n 3]\n", 4, "a disk is a path or a table"),
        ("[vm.a]\ndisks = ['disk.img','disk.img','disk.img','disk.img','disk.img']\n", 2, "four drives"),
        ("[vm.a]\nkernel = '.'\n", 2, "is a directory"),
        ("[vm.a]\nseed = 1\ninitrd = 'initrd'\n", 3, "an initrd needs a kernel"),
        ("[vm.a]\nseed = 1\nappend = 'x'\n", 3, "needs a kernel"),
        ("[vm.a]\n[vm.a.placement]\npit = 'moon'\n", 3, "pit can be placed in hypervisor, service or kernel, not 'moon'"),
        ("[vm.a]\nboot = 'x'\n", 2, "letters"),
        ("[host]\nmetrics_port = 70000\n[vm.a]\n", 2, "up to 65535"),
        ("[host]\n\nthreads = 0\n[vm.a]\n", 3, "from 1 to 64, not 0"),
        ("[host]\nthreads = true\n[vm.a]\n", 2, "threads is a whole number"),
        ("[host]\nstructure = 'x'\n[vm.a]\n", 2, "structure is hybrid or host, not 'x'"),
        ("[host]\nport = 1\n[vm.a]\n", 2, "there is no key 'port'"),
        ("[vm.a]\nslice_us = 0\n", 2, "above 0"),
        ("[vm.a]\ndevices = [\n1]\n", 3, "a device is the name of an entry point"),
    ],
)
def test_mistakes(folder: Path, text: str, line: int, reason: str) -> None:
    path = write(folder, text)
    with pytest.raises(DescriptionError) as caught:
        load(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}, line {line}: ")
    assert reason in sentence
    assert "\n" not in sentence


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="cannot read .*No such file"):
        load(tmp_path / "machine.toml")
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"[vm.a]\n# \xff\n")
    with pytest.raises(DescriptionError, match="line 2: this is not UTF-8"):
        load(path)


def test_lines_of_every_kind() -> None:
    text = '''\
a = 1 # b = 2
b.c = [1,
  2, # x ]
  [3,
   4]]
"d e" = { f = "}", g = [
  "]" ] }
[t]
m = """
x = 1
"""
n = \'\'\'a\'\'\'\'
o = 1979-05-27T07:32:00Z
[[l]]
q = "\\"#"
[[l]]
r = 1
'''
    tomllib.loads(text)
    lines = find_lines(text)
    wanted = {
        ("a",): 1, ("b", "c"): 2, ("b", "c", 0): 2, ("b", "c", 1): 3, ("b", "c", 2): 4, ("b", "c", 2, 1): 5, ("d e",): 6, ("d e", "f"): 6,
        ("d e", "g", 0): 7, ("t",): 8, ("t", "m"): 9, ("t", "n"): 12, ("t", "o"): 13, ("l", 0): 14, ("l", 0, "q"): 15, ("l", 1, "r"): 17,
    }  # fmt: skip
    assert {path: lines.get(path) for path in wanted} == wanted


_SCALARS = st.one_of(st.integers(), st.booleans(), st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=8))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.lists(_SCALARS, max_size=4), min_size=1, max_size=8))
def test_lines_of_any_document(values: list[list[object]]) -> None:
    def shown(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return str(value) if isinstance(value, int) else '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    text = "".join(f"k{i} = [\n{''.join(f'  {shown(value)},' + chr(10) for value in row)}]\n" for i, row in enumerate(values))
    assert list(tomllib.loads(text).values()) == values
    lines, at = find_lines(text), 1
    for i, row in enumerate(values):
        assert lines[f"k{i}",] == at
        assert [lines[f"k{i}", n] for n in range(len(row))] == [at + 1 + n for n in range(len(row))]
        at += len(row) + 2


def test_every_field_of_a_machine_is_a_key() -> None:
    assert {field.name for field in fields(VmConfig)} - {"name"} == set(_VM_KEYS) - {"qmp"}


def test_an_enlightened_machine_and_one_with_a_physical_disk(tmp_path: Path) -> None:
    text = '[vm.a]\nhyperv = true\nresolution = "800x600"\n\n[vm.b]\nphysical = ["ata0"]\n'
    first, second = parse(text, tmp_path / "m.toml").vms
    assert (first.hyperv, first.resolution, second.hyperv, list(second.physical)) == (True, "800x600", False, ["ata0"])
    with pytest.raises(DescriptionError, match=r"line 2: ata9 cannot be a physical device"):
        parse('[vm.b]\nphysical = ["ata9"]\n', tmp_path / "m.toml")
