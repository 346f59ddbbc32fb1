"""The console as a person has it: ``avmm attach`` on a terminal of 100x30 and 256 colours, its processor time and its answers to keys.

Redraws: the guest changes its whole screen all the time, 30 pictures a second are sent to the console, which draws as many of them as a
twentieth of a core is enough for; the redraws are counted in what reaches the terminal. Keys: each is timed from the write to the terminal
until the guest's echo comes out of it, through console, socket, keyboard controller, interrupt, shell, video memory and back; and once
more with the machine in the console's process.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.measure import Result, median_of

SECONDS = 4.0
LIMIT_PERCENT, LIMIT_MS = 5, 10
KEYS = 200
PATIENCE = 60.0
PAINT = b"\x1b7"
SCREEN = "b800b8 8ec0 b82007"
SCENES = {
    "lines scroll, a colour a line": bytes.fromhex(f"{SCREEN} 31ff b91900 51 b95000 f3ab 40 80e40f 59 e2f3 ebec"),
    "every cell in another colour": bytes.fromhex(f"{SCREEN} 31ff b9d007 ab 40 80c401 e2f9 40 ebf1"),
    "graphics, 320x200": bytes.fromhex("b81300 cd10 b800a0 8ec0 31ff b900fa aa 40 e2fc 40 ebf4"),
}
"""Boot sectors that draw without end."""


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.fd, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        words = [sys.executable, "-m", "avmm_console", *command]
        self.process = subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside, env=environment, start_new_session=True)
        os.close(inside)
        os.set_blocking(self.fd, False)

    def read(self, seconds: float) -> bytes:
        """Return what comes within a time, as soon as something does. RuntimeError when the console has ended."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return b""
        try:
            return os.read(self.fd, 1 << 16)
        except OSError:  # the other end is closed
            raise RuntimeError("the console has ended") from None

    def until(self, wanted: bytes, seconds: float = PATIENCE) -> float:
        """Return the moment at which ``wanted`` had come, escape sequences apart."""
        seen, end = b"", time.perf_counter() + seconds
        while time.perf_counter() < end:
            seen += self.read(0.05)
            now = time.perf_counter()
            if wanted in re.sub(rb"\x1b(\[[0-9;?]*[A-Za-z]|[78])", b"", seen):
                return now
        raise RuntimeError(f"never saw {wanted!r} in {seen[-2000:]!r}")

    def processor_seconds(self) -> float:
        """Return what the process has used."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def close(self) -> None:
        """Leave the console."""
        os.write(self.fd, b"\x01x")
        end = time.monotonic() + PATIENCE
        with suppress(RuntimeError):
            while self.process.poll() is None and time.monotonic() < end:
                self.read(0.1)
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@contextmanager
def attached(description: str) -> Iterator[Terminal]:
    """A console attached to a machine of another process."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m.toml").write_text(description)
        environment = {**os.environ, "XDG_RUNTIME_DIR": folder, "TERM": "xterm-256color"}
        environment.pop("COLORTERM", None)
        host = subprocess.Popen([sys.executable, "-m", "avmm_console", "up", "m.toml", "--quiet"], cwd=folder, env=environment)
        try:
            end = time.monotonic() + PATIENCE
            while not (Path(folder) / "avmm" / "m.console").exists() and time.monotonic() < end:
                time.sleep(0.05)
            terminal = Terminal(["attach"], environment)
            yield terminal
            terminal.close()
        finally:
            host.terminate()
            host.wait()


def redraw(code: bytes) -> tuple[float, float]:
    """Return (redraws a second, percent of a core)."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "scene.img"
        image.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(512 * 199))
        with attached(f'[vm.m]\nmemory = "2M"\nfloppies = [{{ path = "{image}", mode = "ro" }}]\n') as terminal:
            while PAINT not in terminal.read(0.05):
                pass
            end = time.perf_counter() + 1  # the start is not measured
            while time.perf_counter() < end:
                terminal.read(0.05)
            used, began, frames = terminal.processor_seconds(), time.perf_counter(), 0
            while (passed := time.perf_counter() - began) < SECONDS:
                frames += terminal.read(0.05).count(PAINT)
            used = terminal.processor_seconds() - used
    return frames / passed, used / passed * 100


def latencies(terminal: Terminal, count: int) -> list[float]:
    """Return the milliseconds of each of so many keys."""
    terminal.until(b"ok>")
    found = []
    for n in range(count):
        key = b"abcdefghijklmnopqrstuvwxyz"[n % 26 : n % 26 + 1]
        if n % 40 == 39:
            os.write(terminal.fd, b"\r")
            terminal.until(b"ok>")
        while terminal.read(0.05 + n % 7 / 1000):  # until all is quiet
            pass
        began = time.perf_counter()
        os.write(terminal.fd, key)
        found.append((terminal.until(key) - began) * 1e3)
    return found


def run(runs: int) -> list[Result]:
    """Measure redraws of three scenes, and keys attached and not."""
    results = []
    for name, code in SCENES.items():
        measured = [redraw(code) for _ in range(max(1, runs // 2))]
        results.append(median_of(f"console: redraws a second, {name}", "/s", [frames for frames, _ in measured]))
        results.append(median_of(f"console: part of a core, {name}", "%", [used for _, used in measured], limit=LIMIT_PERCENT))
    with attached('[vm.m]\nmemory = "16M"\n') as terminal:
        results += _keys("attached", latencies(terminal, KEYS))
    terminal = Terminal(["run", "--memory", "16M"], {**os.environ, "TERM": "xterm-256color"})
    results += _keys("in the console's process", latencies(terminal, KEYS))
    terminal.close()
    return results


def _keys(where: str, found: list[float]) -> list[Result]:
    values = sorted(found)
    p99 = values[int(len(values) * 0.99)]
    name, low, high, count = f"key to terminal, machine {where}", values[0], values[-1], len(values)
    return [
        Result(f"{name}, p99", "ms", p99, low, high, count, goal=f"<= {LIMIT_MS} ms", met=p99 <= LIMIT_MS),
        Result(f"{name}, median", "ms", statistics.median(values), low, high, count),
    ]
