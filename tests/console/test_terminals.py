"""What terminals can and cannot: without colours, small and large, fast typists and large pastes, the mouse and the bell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.console import sectors
from tests.console.conftest import MakeTerminal
from tests.console.terminal import Terminal

COLOURED = re.compile(r"\x1b\[(\d+;)*(3[0-7]|4[0-7]|[34]8;[25];\d+|9[0-7])[;m]")


def leave(terminal: Terminal) -> None:
    terminal.keys("C-a", "x")
    terminal.wait_restored()


@pytest.mark.parametrize("environment", [{"NO_COLOR": 1}, {"term": "vt100"}], ids=["NO_COLOR", "vt100"])
def test_without_colours(make_terminal: MakeTerminal, tmp_path: Path, environment: dict[str, str]) -> None:
    terminal = make_terminal(80, 26, **environment)
    colour = bytes.fromhex("b80309 b31e b90500 cd10")  # five hearts, yellow on blue
    terminal.start(sectors.write(tmp_path / "a.img", "", colour + sectors.IDLE))
    terminal.wait("♥♥♥♥♥")
    terminal.keys("C-a", "d")
    terminal.wait("hypervisor")
    assert not COLOURED.search(terminal.text("-e"))
    leave(terminal)


def test_a_terminal_without_a_cursor_is_told_so(make_terminal: MakeTerminal, tmp_path: Path) -> None:
    terminal = make_terminal(term="dumb")
    terminal.start(sectors.write(tmp_path / "a.img"))
    assert "avmm: the console needs a terminal that can move its cursor: set TERM, or use --headless" in terminal.wait("status 2")


def test_fifty_lines_and_a_prefix_of_ones_own(make_terminal: MakeTerminal, tmp_path: Path) -> None:
    terminal = make_terminal(100, 54)
    terminal.start(sectors.write(tmp_path / "a.img", "top", sectors.LINES_50 + sectors.IDLE), "--prefix", "Ctrl-t")
    text = terminal.wait("80x50")
    lines = terminal.wait(lambda text: any(line.strip() == "B" for line in text.splitlines())).splitlines()
    at = next(n for n, line in enumerate(lines) if line.strip() == "B")
    assert "Ctrl-t h helps" in text
    assert "top" in lines[at - 49]  # all fifty rows are there
    terminal.do("resize-window", "-x", "100", "-y", "30")
    terminal.wait(lambda text: any(line.strip() == "B" for line in text.splitlines()) and "top" not in text)  # the row with the cursor is
    terminal.keys("C-t", "x")
    terminal.wait_restored()


def test_small_terminals_and_smaller_ones(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal(80, 24)
    terminal.start()
    terminal.wait("ok>")
    terminal.keys("C-a", "d")
    terminal.wait("> trap ═> hypervisor")
    for columns, rows in ((40, 12), (12, 4), (3, 2), (1, 1), (80, 24)):
        terminal.do("resize-window", "-x", str(columns), "-y", str(rows))
        terminal.keys("dir", "Enter")
        if columns >= 40:
            text = terminal.wait(lambda text: "4 files" in text and "> trap ═> hyper" in text and "Ctrl-a h helps" in text)
            assert all(len(line) <= columns for line in text.splitlines())
    terminal.keys("C-a", "d")
    assert text.count("ok>") <= terminal.wait(lambda text: "hypervisor" not in text).count("ok>")  # there is room for more of the screen
    leave(terminal)


def test_a_fast_typist_loses_no_key_and_a_large_paste_can_be_called_off(make_terminal: MakeTerminal) -> None:
    terminal = make_terminal()
    terminal.start()
    terminal.wait("ok>")
    lines = [f"line{n:02}" + "Abc-1! Xyz_2?" * 4 for n in range(10)]
    for line in lines:  # some 600 keys, as fast as tmux sends them
        terminal.do("send-keys", "-l", f"echo {line}\r")
    text = terminal.wait(lambda text: text.count("Xyz_2?") >= 4 * 2 * len(lines))
    assert all(text.count(line) == 2 for line in lines)
    terminal.paste("echo pasted\n" * 80_000)  # almost a megabyte
    terminal.wait(lambda text: text.count("\n          pasted\n") > 3)
    terminal.keys("C-a", "h")  # the console answers meanwhile
    terminal.wait("All other keys go to the guest")
    terminal.keys("q")
    assert re.search(r"9\d\d,\d\d\d characters to type, Ctrl-a Esc drops them", terminal.wait("characters to type"))
    terminal.keys("C-a", "Escape")
    terminal.wait(lambda text: "characters to type" not in text)
    terminal.keys("", "Enter")
    terminal.keys("echo Own-Keys", "Enter")  # in small and large letters: no Shift was left down
    terminal.wait(lambda text: "\n          Own-Keys\n" in text)
    terminal.keys("C-a", "s")
    terminal.wait("avmm> commit")
    terminal.keys("Enter")
    terminal.wait("part of avmm")
    leave(terminal)


def test_the_key_menu_the_mouse_and_the_bell(make_terminal: MakeTerminal, tmp_path: Path) -> None:
    terminal = make_terminal()
    terminal.start(sectors.write(tmp_path / "echo.img", "ready> ", sectors.ECHO))
    terminal.wait("ready>")
    terminal.keys("C-a", "k")
    terminal.wait("type to find")
    terminal.keys("kp_mult", "Enter")
    terminal.wait("ready> *")
    leave(terminal)
    terminal = make_terminal()
    terminal.start(sectors.write(tmp_path / "mouse.img", "", sectors.BEEP + sectors.MOUSE), "--record", "bell.cast")
    terminal.wait(lambda text: text.count("*") == 1)  # the mouse has said that it was enabled
    terminal.wait(lambda _: terminal.do("display-message", "-p", "#{mouse_any_flag}").strip() == "1")
    terminal.do("send-keys", "-l", "\x1b[<35;10;5M")
    terminal.do("send-keys", "-l", "\x1b[<35;14;6M")
    terminal.wait(lambda text: text.count("*") == 4)  # one packet of three bytes
    terminal.keys("C-a", "m")
    terminal.wait("the mouse is the terminal's")
    leave(terminal)
    assert r"\u0007" in (tmp_path / "bell.cast").read_text()
