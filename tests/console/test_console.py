"""The full-screen console in a real terminal: tmux starts it, sends keys, and tells what is on the screen."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.console import sectors
from tests.console.conftest import MakeTerminal
from tests.console.terminal import Terminal


def test_see_type_help_and_quit(terminal: Terminal, tmp_path: Path) -> None:
    terminal.start(sectors.write(tmp_path / "echo.img", "ready> ", sectors.ECHO), "--name", "guest")
    text = terminal.wait("ready>")
    assert "guest  running  80x25  real time" in text
    assert "Ctrl-a h helps" in text
    terminal.keys("Hello, World! $")
    terminal.wait("ready> Hello, World! $")
    terminal.keys("C-a", "h")
    assert "leave: a machine started here" in terminal.wait("All other keys go to the guest.")
    terminal.keys("x")  # closes the help and goes nowhere else
    terminal.wait(lambda text: "All other keys" not in text)
    terminal.do("set-buffer", "pasted text")
    terminal.do("paste-buffer", "-p")
    terminal.wait("ready> Hello, World! $pasted text")
    terminal.keys("C-a", "C-a")
    terminal.wait("pasted text☺")  # what Ctrl-a looks like in code page 437
    terminal.keys("C-a", "Space")
    terminal.wait("guest  paused")
    terminal.keys("C-a", "Space")
    terminal.wait("guest  running")
    terminal.keys("C-a", "i")
    terminal.wait("saved guest-0.png")
    assert (tmp_path / "guest-0.png").read_bytes().startswith(b"\x89PNG")
    terminal.keys("C-a", "DC")
    terminal.wait(lambda text: "ready>" in text and "Hello" not in text)
    terminal.keys("C-a", "x")
    text = terminal.wait_restored()
    assert "guest: switched off" in text
    assert "status 0" in text


def test_colours_of_the_guest(terminal: Terminal, tmp_path: Path) -> None:
    colour = bytes.fromhex("b80309 b31e b90500 cd10")  # five hearts, yellow on blue, through int 10h AH=09h
    terminal.start(sectors.write(tmp_path / "a.img", "", colour + sectors.IDLE))
    terminal.wait("♥♥♥♥♥")
    line = next(line for line in terminal.text("-e").splitlines() if "♥" in line)
    before = line[: line.index("♥")]
    assert "38;5;227" in before  # 255, 255, 85
    assert "48;5;19" in before  # 0, 0, 170
    terminal.keys("C-a", "x")
    terminal.wait_restored()


def test_graphics_are_half_blocks(terminal: Terminal, tmp_path: Path) -> None:
    terminal.start(sectors.write(tmp_path / "a.img", "", sectors.MODE_13H + sectors.IDLE))
    text = terminal.wait("320x200")
    assert text.count("▀") > 1000
    lines = [line for line in terminal.text("-e").splitlines() if "▀" in line]
    assert "38;5;124" in lines[2]  # 170, 0, 0
    assert "38;5;124" not in lines[-3]
    terminal.keys("C-a", "x")
    terminal.wait_restored()


def test_the_serial_line_as_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.start(sectors.write(tmp_path / "a.img", "screen", sectors.SERIAL_GREETING + sectors.SERIAL_ECHO))
    terminal.wait("screen")
    terminal.keys("C-a", "t")
    assert "serial line" in terminal.wait("serial>")
    terminal.keys("typed")
    terminal.wait("serial>typed")
    terminal.keys("C-a", "t")
    terminal.wait("screen")
    terminal.keys("C-a", "x")
    terminal.wait_restored()


def test_command_line_path_scroll_back_and_record(terminal: Terminal, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "ready> ", sectors.ECHO)
    terminal.start(image, "--record", "run.cast", "--log", "run.txt")
    terminal.wait("ready>")
    terminal.keys("C-a", "c")
    terminal.wait("avmm>")
    terminal.keys("info reg", "Tab")
    terminal.wait("avmm> info registers")
    terminal.keys("Enter")
    assert "rip" in terminal.wait("PgUp PgDn scroll").lower()
    terminal.keys("z")  # closes the answer and goes nowhere else
    terminal.wait(lambda text: "PgUp" not in text and "avmm>" not in text)
    terminal.keys("C-a", "c")
    terminal.wait("avmm>")
    terminal.keys("stop", "Enter")
    terminal.wait("vm  paused")
    terminal.keys("C-a", "c", "Up", "Up")  # all in one piece
    terminal.wait("avmm> info registers")
    terminal.keys("Down")
    terminal.wait("avmm> stop")
    terminal.keys("Escape")
    terminal.wait(lambda text: "avmm>" not in text)
    terminal.keys("C-a", "Space")
    terminal.wait("vm  running")
    terminal.keys("C-a", "d")
    assert "> outside" in terminal.wait("> trap ═> hypervisor")
    terminal.keys("typed")
    terminal.wait("ready> typed")  # the guest runs and is seen beside it; nothing of the command line came here
    terminal.wait(lambda text: "hypervisor" in text and "I/O 0 mem" not in text)
    terminal.keys("C-a", "[")
    terminal.wait("scroll-back")
    terminal.keys("q")
    terminal.wait(lambda text: "scroll-back" not in text)
    terminal.keys("C-a", "c")
    terminal.wait("avmm>")
    terminal.keys("uninstall pit", "Enter")
    terminal.wait("PgUp PgDn scroll")
    terminal.keys("q")
    terminal.wait("pit:service")
    terminal.keys("C-a", "c")
    terminal.wait("avmm>")
    terminal.keys("quit", "Enter")
    assert "status 0" in terminal.wait_restored()
    header, *events = map(json.loads, (tmp_path / "run.cast").read_text().splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 100, 30)
    assert "hypervisor" in "".join(data for _, _, data in events)
    assert "] paused" in (tmp_path / "run.txt").read_text()


def test_it_ends_with_the_guest(terminal: Terminal, tmp_path: Path) -> None:
    terminal.start(sectors.write(tmp_path / "a.img", "bye", sectors.POWER_OFF))
    text = terminal.wait_restored()
    assert "vm: the guest went off" in text
    assert "status 0" in text


def test_a_failure_is_reported_on_the_normal_screen(terminal: Terminal, tmp_path: Path) -> None:
    terminal.start(sectors.write(tmp_path / "a.img", "bad", sectors.FETCH_FROM_NOTHING))
    text = terminal.wait_restored()
    assert "last exits:" in text
    assert "status 3" in text


def test_an_image_that_does_not_boot(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "zero.img").write_bytes(bytes(4096))
    terminal.start("zero.img")
    text = terminal.wait_restored()
    assert "avmm: zero.img is not bootable" in text
    assert "status 2" in text


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("HUP", 129), ("INT", 130)])
def test_a_signal_restores_the_terminal(terminal: Terminal, tmp_path: Path, name: str, status: int) -> None:
    image = sectors.write(tmp_path / "a.img", "running", sectors.ECHO)
    terminal.start(image)
    terminal.wait("running  80x25")
    os.kill(terminal.process(), getattr(signal, f"SIG{name}"))
    assert f"status {status}" in terminal.wait_restored()


def test_a_terminal_that_is_too_small(make_terminal: MakeTerminal, tmp_path: Path) -> None:
    terminal = make_terminal(60, 9)
    terminal.start(sectors.write(tmp_path / "a.img"))
    text = terminal.wait("status 2")
    assert "too small for the console: it has 60x9, 40x10" in text.replace("\n", "")
