"""The command line without a terminal: answers, mistakes, completion; the pager; the path's rates; history, recording and log."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

import avmm
from avmm_console.commands import VERBS, Interpreter, help_text, hint, shown
from avmm_console.history import ScreenHistory, plain
from avmm_console.keys import Chord, Text
from avmm_console.pager import Pager
from avmm_console.path_view import Counters, counters, picture, rates
from avmm_console.recording import RecordedTerminal
from tests.console import sectors
from tests.console.conftest import Avmm


async def conversation(image: str) -> dict[str, str]:
    lines = [
        "", "nonsense", "status", "info status", "info registers", "xp /2xb 0x7dfe", "x/2i 0x7c00", "stats", "type a b", "help x",
        "stop", "info  status", "cont", "install nothing", "uninstall pit", "install pit", "uninstall pit to much more", "stop now",
        "qmp query-name", "qmp query-name [", "sendkey x-y-nokey", "mode 'open", "eject", "quit",
    ]  # fmt: skip
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(name="talker", memory="1M", disks=[avmm.Disk(image, "ro")], clock="virtual"))
        await vm.start()
        await vm.screen.wait_for("ready>")
        interpreter = Interpreter(host, vm)
        before = counters(vm)
        answers = {line: await interpreter.run(line) for line in lines[:9]}
        await vm.screen.wait_for("ready> a b")
        assert counters(vm).io > before.io
        assert counters(vm).injected > before.injected
        answers |= {line: await interpreter.run(line) for line in lines[9:]}
        assert [word for word, _ in interpreter.candidates("un")] == ["uninstall"]
        assert dict(interpreter.candidates("install pi"))["pit"] == "hypervisor"
        assert ("service", "") in interpreter.candidates("uninstall pit ")
        assert interpreter.candidates("info reg") == [("registers", "")]
        assert interpreter.candidates("eject d") == [("disk0", "")]
        assert interpreter.candidates("nonsense x") == []
        assert interpreter.left
        assert vm.state is avmm.RunState.OFF
        interpreter.close()
    return answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import asyncio

    image = sectors.write(tmp_path_factory.mktemp("commands") / "echo.img", "ready> ", sectors.ECHO)
    return asyncio.run(conversation(image))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("nonsense", "nonsense is no command"), ("status", "running"), ("info status", "VM status: running"), ("info registers", "rip"),
        ("xp /2xb 0x7dfe", "0x55 0xaa"), ("x/2i 0x7c00", "xor"), ("stats", "interrupts injected"), ("help x", "dump linear memory"),
        ("info  status", "VM status: paused"), ("install nothing", "no device called nothing"), ("uninstall pit", "pit"),
        ("install pit", "pit"), ("uninstall pit to much more", "uninstall DEVICE [PLACE]"), ("stop now", "stop takes no arguments"),
        ("qmp query-name", '"talker"'), ("qmp query-name [", "Expecting value"), ("sendkey x-y-nokey", "nokey"),
        ("mode 'open", "No closing quotation"), ("eject", "'device' is missing"),
    ],
)  # fmt: skip
def test_answers(answers: dict[str, str], line: str, wanted: str) -> None:
    assert wanted.lower() in answers[line].lower()


def test_what_goes_without_saying(answers: dict[str, str]) -> None:
    assert [answers[line] for line in ("", "stop", "cont", "type a b", "quit")] == [""] * 5


def test_help_and_hints() -> None:
    assert len(help_text().splitlines()) == len(VERBS)
    assert help_text("nothing") == "nothing is no command"
    assert hint("install p") == "install DEVICE [IMAGE [SHA256]]: bring a device into the hypervisor"
    assert hint("x/4i").startswith("x /FORMAT")
    assert "Tab completes" in hint("")
    assert shown({}) == ""
    assert shown({"a": 1, "b": "two"}).split() == ["what", "value", *shown({"a": 1, "b": "two"}).split()[2:3], "a", "1", "b", "two"]


def test_the_pager_scrolls_and_stays_within_the_text() -> None:
    pager = Pager("\n".join(map(str, range(10))), at_end=True, sticky=True)
    assert pager.visible(4) == ["6", "7", "8", "9"]
    assert pager.take(Chord(("pgup",), ""), 4)
    assert pager.visible(4) == ["2", "3", "4", "5"]
    assert pager.take(Chord(("up",), ""), 4)
    assert pager.take(Chord(("pgup",), ""), 4)
    assert pager.visible(4) == ["0", "1", "2", "3"]
    assert "lines 1-4 of 10" in pager.text(80, 5)
    assert pager.take(Text("z"), 4)
    assert not pager.take(Text("q"), 4)
    assert not Pager("short").take(Text("z"), 4)


def test_rates_and_their_picture() -> None:
    before, after = Counters(io=10, inside=100, irps=4), Counters(io=2010, inside=90, irps=24, signals=30, disk_bytes=4096)
    rate = rates(before, after, 2.0)
    assert (rate.io, rate.inside, rate.irps, rate.signals, rate.disk_bytes) == (1000, 0, 10, 15, 2048)
    drawn = picture(rate, True)
    assert "guest ══ 1,000/s ══> trap ═> hypervisor" in drawn
    assert "10 IRP/s" in drawn
    assert "15 signals/s" in drawn
    assert "2 KiB/s" in drawn
    assert max(map(len, drawn.splitlines())) <= 80
    assert "no VMBus" in picture(rate, None)


def test_history_holds_each_line_once() -> None:
    history = ScreenHistory()
    lines = [f"line {n}" for n in range(20)]
    for end in (3, 5, 5, 8, 11, 20):
        shown_rows = lines[max(0, end - 6) : end]
        history.look([*(row + "  " for row in shown_rows), *[""] * (8 - len(shown_rows))])
    assert history.text().split("\n")[:5] == lines[:5]
    assert history.text().split("\n").count("line 4") == 1
    assert plain("\x1b[1;31mred\x1b[0m\r\n\x1b]0;title\x07next\a\r\nold\rnew") == "red\nnext\nnew"


def test_an_asciicast_is_what_went_to_the_terminal() -> None:
    record, terminal = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    recorded = RecordedTerminal(terminal, record, os.terminal_size((100, 30)))
    assert not hasattr(recorded, "buffer")  # prompt_toolkit would write past us
    recorded.write("\x1b[Hä")
    header, *events = map(json.loads, record.getvalue().splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 100, 30)
    assert [event[1:] for event in events] == [["o", "\x1b[Hä"]]
    assert terminal.buffer.getvalue() == "\x1b[Hä".encode()


def test_the_log_has_serial_lines_and_events(avmm_command: Avmm, tmp_path: Path) -> None:
    image = sectors.write(tmp_path / "a.img", "", sectors.SERIAL_GREETING + sectors.POWER_OFF)
    assert avmm_command("run", image, "--headless", "--log", tmp_path / "log.txt").status == 0
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert "serial>" in lines
    assert lines[0].endswith("] running")
    assert any("] off reason=" in line for line in lines)
    assert "--record records the console" in avmm_command("run", image, "--headless", "--record", tmp_path / "a.cast").sentence
    assert "no directory" in avmm_command("run", image, "--headless", "--log", tmp_path / "none" / "log.txt").sentence
