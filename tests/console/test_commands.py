"""The command line without a terminal: answers, mistakes, completion; the pager; the path's rates; history, recording and log."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from prompt_toolkit.output import ColorDepth

import avmm
from avmm.control.commands import COMMANDS, Target
from avmm.control.qmp import QmpError
from avmm.control.seat import Counters, DiskFacts, Facts, LocalSeat
from avmm_console.commands import VERBS, Interpreter, arguments, help_text, hint
from avmm_console.history import ScreenHistory, plain
from avmm_console.keys import Chord, Text
from avmm_console.machines import Machine
from avmm_console.pager import LiveView, Pager
from avmm_console.path_view import picture, rates
from avmm_console.recording import RecordedTerminal
from avmm_console.tables import shown
from tests.console import sectors
from tests.console.conftest import Avmm


async def conversation(image: str) -> dict[str, str]:
    lines = [
        "", "nonsense", "status", "info status", "info registers", "xp /2xb 0x7dfe", "x/2i 0x7c00", "stats", "type a b", "help x",
        "stop", "info  status", "cont", "install nothing", "uninstall pit", "install pit", "uninstall pit to much more", "stop now",
        "qmp query-name", "qmp query-name [", "sendkey x-y-nokey", "mode 'open", "eject", "insert", "inspect pit", "inspect nothing",
        "trace", "top", "commit", "virtualize ata0", "info", "quit",
    ]  # fmt: skip
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(name="talker", memory="1M", disks=[avmm.Disk(image, "overlay")], clock="virtual"))

        async def quit(_: avmm.Vm | None) -> None:
            await vm.partition.stop("quit")

        target = Target(host, COMMANDS, quit, vm)
        async with LocalSeat(vm) as seat:
            machine = Machine(seat, target.execute, ColorDepth.DEPTH_8_BIT)
            machine.start()
            await vm.start()
            await vm.screen.wait_for("ready>")
            interpreter = Interpreter(machine, [machine])
            answers = {line: await said(interpreter, line) for line in lines[:9]}
            await vm.screen.wait_for("ready> a b")
            answers |= {line: await said(interpreter, line) for line in lines[9:-1]}
            assert [word for word, _ in interpreter.candidates("un")] == ["uninstall"]
            assert dict(interpreter.candidates("install pi"))["pit"] == "hypervisor"
            assert ("service", "") in interpreter.candidates("uninstall pit ")
            assert interpreter.candidates("info reg") == [("registers", "")]
            assert [word for word, _ in interpreter.candidates("mode e")] == ["emulated", "enlightened"]
            assert interpreter.candidates("nonsense x") == []
            answers["quit"] = await said(interpreter, "quit")
            assert vm.state is avmm.RunState.OFF
            await machine.stop()
        target.unwatch(vm)
    return answers


async def said(interpreter: Interpreter, line: str) -> str:
    """Carry out a line; of a live view, return what it shows after it has looked twice."""
    answer = await interpreter.run(line)
    if isinstance(answer, LiveView):
        await answer.refresh()
        await answer.refresh()
        return "\n".join(answer.lines)
    return answer


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
        ("info  status", "VM status: paused"), ("install nothing", "this machine has no device called nothing"), ("uninstall pit", "pit"),
        ("install pit", "pit"), ("uninstall pit to much more", "uninstall DEVICE [PLACE]"), ("stop now", "stop takes no arguments"),
        ("qmp query-name", '"talker"'), ("qmp query-name [", "the arguments are no JSON"), ("sendkey x-y-nokey", "nokey"),
        ("mode 'open", "No closing quotation"), ("eject", "'cdrom' not found"),
        ("insert", "insert FILE"), ("inspect pit", "state.counters.0.reload"), ("inspect nothing", "there is no device 'nothing'"),
        ("trace", "switch"), ("top", "talker  running"), ("commit", "disk0"), ("virtualize ata0", "no physical device"),
        ("info", "info registers"),
    ],
)  # fmt: skip
def test_answers(answers: dict[str, str], line: str, wanted: str) -> None:
    assert wanted.lower() in answers[line].lower()


def test_a_word_for_yes() -> None:
    assert arguments("eject", VERBS["eject"], "") == {"device": "cdrom"}
    assert arguments("eject", VERBS["eject"], "force") == {"device": "cdrom", "force": True}
    with pytest.raises(QmpError, match="force is on or off: perhaps"):
        arguments("eject", VERBS["eject"], "perhaps")


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


def facts(mode: str, vmbus: bool | None) -> Facts:
    return Facts("running", "", "real", 0, Counters(), (DiskFacts("disk0", mode, "a.img"),), {}, vmbus, mouse=False)


def test_rates_and_their_picture() -> None:
    before, after = Counters(io=10, inside=100, irps=4), Counters(io=2010, inside=90, irps=24, signals=30, disk_bytes=4096)
    rate = rates(before, after, 2.0)
    assert (rate.io, rate.inside, rate.irps, rate.signals, rate.disk_bytes) == (1000, 0, 10, 15, 2048)
    emulated = picture(rate, facts("emulated", False))
    assert "guest ═══ 1,000/s ═══> trap ═> hypervisor ╦" in emulated
    assert "╚═══ 10 IRP/s ════> outside ═╗" in emulated
    assert "shunt: passes" in emulated
    assert "the guest is not connected" in emulated
    assert "2 KiB/s" in emulated
    over_bus = Counters(signals=15, channel_requests=900)
    enlightened = picture(over_bus, facts("enlightened", True))
    assert "shunt: diverts all" in enlightened
    assert "15 signals/s" in enlightened
    assert "═ 900 requests/s ═" in enlightened
    assert "─ 0 IRP/s ─" in enlightened
    assert "diverts reads and writes" in picture(over_bus, facts("shunt", True))
    assert "123 ═" not in picture(rate, facts("direct", None))
    assert "accesses without a trap" in picture(Counters(direct=123), facts("direct", None))
    assert "the VMM drives the physical disk" in picture(rate, facts("virtualized", None))
    for drawn in (emulated, enlightened, picture(Counters(*[9_999_999] * 13), facts("virtualized", True))):
        assert max(map(len, drawn.splitlines())) <= 80


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
