"""avmm up, avmm ctl and avmm top as a person uses them: processes and a terminal's output."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

import guests
from avmm_console.cli import main
from tests.control.panels import BUSY, ECHO, image


class Up:
    """``avmm up`` in the background."""

    def __init__(self, folder: Path, text: str) -> None:
        self.description = folder / "machine.toml"
        self.description.write_text(text)
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "COLUMNS": "120"}
        self.folder = folder / "avmm"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "avmm_console", "up", str(self.description)], env=self.environment, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.told = [self.process.stderr.readline() for _ in range(text.count("[vm."))]

    def run(self, *words: str, status: int = 0) -> str:
        """Run a command here, as ``avmm`` does, and return its output (on the error stream if ``status`` says it fails)."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name in ("XDG_RUNTIME_DIR", "COLUMNS"):
                patch.setenv(name, self.environment[name])
            with pytest.raises(SystemExit) as exit_:
                main(words)
        assert (exit_.value.code or 0) == status, err.getvalue()
        return err.getvalue() if status else out.getvalue()

    def ctl(self, *words: str, status: int = 0) -> str:
        return self.run("ctl", *words, status=status)

    def shows(self, vm: str, text: str) -> None:
        """Ask until the machine's screen has the text; its minute is for a machine that never will."""
        deadline = time.monotonic() + 60
        while text not in self.ctl("screen", vm):
            assert time.monotonic() < deadline, self.ctl("screen", vm)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    image(folder, "echo", ECHO)
    image(folder, "busy", BUSY)
    text = '[vm.one]\nmemory = "2M"\nfloppies = [{ path = "echo.img", mode = "ro" }]\n'
    text += '[vm.two]\nmemory = "2M"\nweight = 50\ncap = 0.25\nfloppies = [{ path = "busy.img", mode = "ro" }]\n'
    running = Up(folder, text)
    yield running
    running.end()


def test_up_says_where(up: Up) -> None:
    assert up.told == [f"{name}: {up.folder / name}.qmp\n" for name in ("one", "two")]


def test_status_both_ways_round(up: Up) -> None:
    assert up.ctl("status", "one") == up.ctl("one", "status") == "running\n"
    assert json.loads(up.ctl("--json", "status", "one")) == {"status": "running", "running": True}


def test_a_socket_that_is_named(up: Up) -> None:
    """The machine's own, or the one of all machines; another machine's is a mistake."""
    assert up.ctl("--socket", str(up.folder / "one.qmp"), "status", "one") == "running\n"
    assert up.ctl("--socket", str(up.folder / "@machine.qmp"), "status", "two") == "running\n"
    assert "socket of one, not of two" in up.ctl("--socket", str(up.folder / "one.qmp"), "status", "two", status=1)
    assert "no machine called 'three'" in up.ctl("--socket", str(up.folder / "@machine.qmp"), "status", "three", status=1)


def test_life(up: Up) -> None:
    up.ctl("stop", "two")
    assert up.ctl("status", "two") == "paused\n"
    up.ctl("cont", "two")
    up.ctl("reset", "two")
    assert up.ctl("status", "two") == "running\n"


def test_keys_and_screen(up: Up) -> None:
    up.ctl("type", "one", "hello")
    up.ctl("sendkey", "one", "shift", "x")
    picture = up.folder / "one.png"
    up.ctl("screendump", "one", str(picture))
    with Image.open(picture) as shown:
        assert shown.format == "PNG"
    up.shows("one", "ready> helloX")


def test_install(up: Up) -> None:
    assert "pit is in the service" in up.ctl("uninstall", "one", "pit")
    assert json.loads(up.ctl("--json", "install", "one", "pit"))["moved"] is True
    assert "no device called nope" in up.ctl("install", "one", "nope", status=1)


def test_snapshots(up: Up) -> None:
    file = up.folder.parent / "one.avmmsnap"
    assert "s of machine time" in up.ctl("snapshot", "one", str(file))
    up.ctl("type", "one", "z")
    assert "s of machine time" in up.ctl("restore", "one", str(file))
    assert up.ctl("status", "one") == "running\n"
    assert "is not a snapshot of avmm" in up.ctl("restore", "one", str(up.description), status=1)
    assert "cannot write the snapshot" in up.ctl("snapshot", "one", str(up.folder.parent / "nowhere" / "x"), status=1)
    assert up.ctl("hmp", "one", "savevm", str(file)).strip() == ""
    assert "Error: " in up.ctl("hmp", "one", "loadvm", str(up.description))
    assert "no history to go back in" in up.ctl("rewind", "one", "1", status=1)


def test_stats_and_any_command(up: Up) -> None:
    assert "exits: out" in up.ctl("stats", "one")
    assert json.loads(up.ctl("--json", "stats", "one"))["exits"]["out"] > 0
    assert json.loads(up.ctl("qmp", "one", "query-name")) == {"name": "one"}
    assert "JSON" in up.ctl("qmp", "one", "query-name", "{", status=2)


def exits(up: Up, vm: str) -> int:
    return sum(json.loads(up.ctl("--json", "stats", vm))["exits"].values())


def test_top(up: Up) -> None:
    before = exits(up, "one")
    one, two = json.loads(up.run("top", "--once", "--json", "--interval", "0.5"))
    after = exits(up, "one")
    assert (one["name"], one["status"], one["weight"], one["cap"]) == ("one", "running", 100, None)
    assert (two["name"], two["weight"], two["cap"]) == ("two", 50, 0.25)
    assert one["outside"] == {"ata0": "service", "ata1": "service", "bmide": "service"}
    assert one["placement"]["pit"] == "hypervisor"
    assert 0 < two["guest_percent"] < 60
    assert 0 < 0.5 * one["exits_per_second"] <= after - before  # the BIOS counts ticks of the timer
    table = up.run("top", "--once", "--interval", "0.1")
    assert "running" in table
    assert "50, 25%" in table


def test_mistakes(up: Up) -> None:
    assert "no machine called nope runs (running: one, two)" in up.ctl("status", "nope", status=2)
    assert "there is no socket" in up.ctl("--socket", "/nope", "status", "one", status=2)
    bad = up.folder / "bad.toml"
    bad.write_text("[vm.x]\nmemroy = 3\n")
    assert f"{bad}, line 2: there is no key 'memroy'" in up.run("up", str(bad), status=2)
    assert "runs: end it" in up.run("up", str(up.description), status=2)
    assert "2 machines, nothing wrong" in up.run("up", "--check", str(up.description))


def test_quit_ends_it(tmp_path: Path) -> None:
    image(tmp_path, "echo", ECHO)
    running = Up(tmp_path, '[vm.one]\nmemory = "2M"\nfloppies = [{ path = "echo.img", mode = "ro" }]\n')
    running.ctl("quit", "one")
    assert running.process.wait(20) == 0
    assert running.end() == 0
    assert list(running.folder.iterdir()) == []


def test_interrupt_ends_it(tmp_path: Path) -> None:
    image(tmp_path, "busy", BUSY)
    running = Up(tmp_path, '[vm.one]\nmemory = "2M"\nfloppies = [{ path = "busy.img", mode = "ro" }]\n')
    assert running.end() == 130
    assert list(running.folder.iterdir()) == []


def test_the_built_in_guest_switches_and_is_traced(tmp_path: Path) -> None:
    shutil.copy(guests.image(), tmp_path / "guest.img")
    text = '[vm.nub]\nmemory = "8M"\nhyperv = true\ndisks = [{ path = "guest.img", mode = "overlay" }]\n'
    up = Up(tmp_path, text)
    try:
        up.shows("nub", "ok>")
        assert up.ctl("mode", "nub", "enlightened") == "enlightened\n"
        assert up.ctl("hmp", "nub", "mode", "shunt-only") == "mode: shunt-only\n"
        assert up.ctl("hmp", "nub", "mode") == "mode: shunt-only\n"
        assert "shunt-only" in up.ctl("mode", "nub", "fast", status=2)
        words = [sys.executable, "-m", "avmm_console", "ctl", "--json", "trace", "nub", "--requests", "1", "--op", "read"]
        tracing = subprocess.Popen(words, env=up.environment, stdout=subprocess.PIPE, text=True)
        while tracing.poll() is None:
            up.ctl("type", "nub", "read motd.txt\\n")
        out, _ = tracing.communicate(timeout=30)
        (found,) = json.loads(out)
        assert (found["path"], found["op"]) == ("shunt", "read")
        assert found["hops"][0]["what"] == "a program asks"
        up.ctl("stop", "nub")
        assert "paused: it sends no requests" in up.ctl("trace", "nub", "--requests", "1", status=1)
        assert "paused: only a running guest" in up.ctl("mode", "nub", "emulated", status=1)
        assert "go with --requests" in up.ctl("trace", "nub", "--all", status=2)
    finally:
        up.end()
