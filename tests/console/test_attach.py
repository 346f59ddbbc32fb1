"""Consoles on machines of another process, in a real terminal: several machines, several consoles, and consoles that end badly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avmm_console.cli import main
from tests.console.conftest import MakeTerminal
from tests.console.terminal import PATIENCE, Terminal

MACHINES = """
[vm.first]
memory = "16M"
hyperv = true

[vm.second]
memory = "16M"
"""


class Up:
    """``avmm up`` with two built-in guests."""

    def __init__(self, folder: Path) -> None:
        (folder / "two.toml").write_text(MACHINES)
        self.folder, self.runtime = folder, folder / "run" / "avmm"
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.runtime.parent)}
        command = [sys.executable, "-m", "avmm_console", "up", "two.toml", "--quiet"]
        self.process = subprocess.Popen(command, cwd=folder, env=environment)
        self.wait((self.runtime / "second.console").exists)

    def wait(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not met():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.03)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A host for the tests that leave its machines as they are."""
    up = Up(tmp_path_factory.mktemp("up"))
    yield up
    up.close()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Up]:
    """A host that may end."""
    up = Up(tmp_path)
    yield up
    if up.process.poll() is None:
        up.close()


@pytest.fixture
def terminal(up: Up, make_terminal: MakeTerminal) -> Terminal:
    return make_terminal(120, 40, up.folder)


@pytest.fixture
def own_terminal(mortal: Up, make_terminal: MakeTerminal) -> Terminal:
    return make_terminal(120, 40, mortal.folder)


def screen(up: Up, vm: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What a machine's screen shows, asked through its QMP socket."""
    capfd.readouterr()
    with pytest.raises(SystemExit):
        main(["ctl", "--socket", str(up.runtime / f"{vm}.qmp"), "screen", vm])
    return capfd.readouterr().out


def test_switch_split_modes_path_and_record(up: Up, terminal: Terminal) -> None:
    terminal.start("--record", "attached.cast", command="attach")
    terminal.wait("ok>")
    text = terminal.wait("disk0:emulated")
    assert "1 first  2 first serial  3 second  4 second serial" in text
    terminal.keys("C-a", "n")
    terminal.wait("second  running")
    terminal.wait("ok>")
    terminal.keys("echo to the second", "Enter")
    terminal.wait(lambda text: text.count("to the second") == 2)
    terminal.keys("C-a", "|")  # the other machine beside it, with the keys
    text = terminal.wait(lambda text: text.count("ok>") >= 3 and "│" in text)
    assert "to the second" in text
    terminal.keys("echo to the first", "Enter")
    text = terminal.wait(lambda text: text.count("to the first") == 2)
    assert text.count("to the second") == 2
    terminal.keys("C-a", "u")
    terminal.wait(lambda text: "to the second" not in text and "to the first" in text)
    terminal.keys("C-a", "d")
    terminal.wait("shunt: passes")
    terminal.keys("mode enlightened", "Enter")
    terminal.wait("mode: enlightened")
    terminal.keys("bench disk", "Enter")
    text = terminal.wait(lambda text: re.search(r"═ [\d,]+ requests/s ═*╣", text) is not None)
    assert "shunt: diverts all" in text
    assert "disk: enlightened" in text
    assert re.search(r"└─* 0 IRP/s ─*> outside ─┐", text)
    terminal.wait("disk0:enlightened")
    terminal.say("uninstall pit")
    terminal.wait("PgUp PgDn scroll")
    terminal.keys("q")
    terminal.wait("pit:service")
    terminal.say("top")
    terminal.wait(lambda text: re.search(r"first +running", text) is not None and re.search(r"second +running", text) is not None)
    terminal.keys("q")
    terminal.keys("C-a", "x")
    text = terminal.wait_restored()
    assert "left first, second" in text
    assert "status 0" in text
    header, *events = map(json.loads, (terminal.folder / "attached.cast").read_text().splitlines())
    assert (header["version"], header["width"]) == (2, 120)
    assert "diverts all" in "".join(data for _, _, data in events)


def test_two_consoles_and_one_is_killed(
    up: Up, terminal: Terminal, make_terminal: MakeTerminal, capfd: pytest.CaptureFixture[str]
) -> None:
    other = make_terminal(folder=up.folder)
    for each in (terminal, other):
        each.start("second", command="attach")
        each.wait("ok>")
    terminal.keys("echo abc")
    other.wait("ok> echo abc")
    other.keys("def", "Enter")
    terminal.wait(lambda text: text.count("abcdef") == 2)
    os.kill(other.process(), signal.SIGKILL)
    other.wait("status 137")
    terminal.keys("echo still here", "Enter")
    terminal.wait(lambda text: text.count("still here") == 2)
    console = terminal.process()
    terminal.close()  # the terminal goes away under the console, as with a lost connection
    up.wait(lambda: not Path(f"/proc/{console}").exists())
    assert "still here" in screen(up, "second", capfd)


def test_the_host_goes_away(mortal: Up, own_terminal: Terminal) -> None:
    up, terminal = mortal, own_terminal
    terminal.start(command="attach")
    terminal.wait("ok>")
    os.kill(up.process.pid, signal.SIGKILL)
    text = terminal.wait_restored()
    assert "avmm: first: the connection has ended" in text
    assert "status 1" in text
    assert "with --reconnect the console waits for that" in text
    terminal.start("first", command="attach")
    assert "cannot reach" in terminal.wait_restored()
    terminal.start("third", command="attach")
    assert "no machine called third runs" in terminal.wait_restored()


def test_the_host_goes_and_comes_back(mortal: Up, own_terminal: Terminal) -> None:
    terminal = own_terminal
    terminal.start("--reconnect", "--log", "both.txt", command="attach")
    terminal.wait("ok>")
    terminal.keys("echo before", "Enter")
    terminal.wait(lambda text: text.count("before") == 2)
    terminal.say("stats")
    terminal.wait("PgUp PgDn scroll")
    terminal.keys("q")
    terminal.wait(lambda text: "PgUp" not in text)
    os.kill(mortal.process.pid, signal.SIGKILL)
    mortal.process.wait(PATIENCE)
    terminal.wait("second (lost)")
    assert "first  the connection has ended" in terminal.wait("first (lost)")
    again = Up(mortal.folder)
    try:
        terminal.wait(lambda text: "(lost)" not in text and "before" not in text and "ok>" in text)
        terminal.keys("echo after", "Enter")
        terminal.wait(lambda text: text.count("after") == 2)
        terminal.say("stats")  # over a connection of its own to the new host
        terminal.wait("PgUp PgDn scroll")
        terminal.keys("q", "C-a", "x")
        assert "status 0" in terminal.wait_restored()
    finally:
        again.close()
    log = (mortal.folder / "both.txt").read_text()
    for line in (r"first: .*ok> echo before", r"second: \[ +[\d.]+\] running", r"first: \[ +[\d.]+\] lost reason=the connection has ended"):
        assert re.search(line, log), log
    assert re.search(r"lost(.|\n)*first: \[.*\] running(.|\n)*first: .*echo after", log), log


def test_a_machine_that_ends_stays_to_be_looked_at_and_the_other_goes_on(mortal: Up, own_terminal: Terminal) -> None:
    up, terminal = mortal, own_terminal
    terminal.start(command="attach")
    terminal.wait("ok>")
    terminal.keys("halt", "Enter")
    terminal.wait("1 first (off)")
    terminal.keys("C-a", "n")
    terminal.wait("second  running")
    terminal.say("quit")
    assert "status 1" in terminal.wait_restored()
    assert up.process.wait(PATIENCE) == 0


def test_suspend_resize_and_come_back(up: Up, terminal: Terminal) -> None:
    terminal.start("first", command="attach")
    terminal.wait("ok>")
    terminal.keys("C-a", "z")
    terminal.wait("Stopped")
    terminal.keys("clear; fg", "Enter")
    terminal.wait("ok>")
    terminal.keys("echo back", "Enter")
    terminal.wait(lambda text: text.count("back") == 2)
    os.kill(terminal.process(), signal.SIGTSTP)
    terminal.wait("Stopped")
    terminal.keys("clear; fg", "Enter")
    terminal.wait(lambda text: text.count("back") == 2 and "Stopped" not in text)
    for columns, rows in ((90, 28), (130, 45)):
        terminal.do("resize-window", "-x", str(columns), "-y", str(rows))
        terminal.wait(lambda text: text.count("back") == 2 and "Ctrl-a h helps" in text.rstrip().splitlines()[-1])
        assert text_size(terminal) == rows
    terminal.keys("C-a", "x")
    terminal.wait("left first")
    terminal.keys("echo status $?", "Enter")
    assert "status 0" in terminal.wait_restored()


def text_size(terminal: Terminal) -> int:
    return len(terminal.text().splitlines())
