"""Make the pictures of the console: ``python docs/console_pictures.py``. Each is a terminal's screen (tmux), drawn with the VGA's font."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyte
from PIL import Image

from avmm.devices.vga.font import CP437, font

FOLDER = Path(__file__).parent / "pictures"
COLUMNS, ROWS = 100, 34
PATIENCE = 60.0
MACHINES = '[vm.first]\nmemory = "16M"\nhyperv = true\n\n[vm.second]\nmemory = "16M"\n'
FORE, BACK = (204, 204, 204), (16, 16, 16)
NAMED = {
    "black": (0, 0, 0), "red": (170, 0, 0), "green": (0, 170, 0), "brown": (170, 85, 0), "blue": (0, 0, 170), "magenta": (170, 0, 170),
    "cyan": (0, 170, 170), "white": (170, 170, 170),
}  # fmt: skip


class Terminal:
    """A tmux session of its own server."""

    def __init__(self, folder: Path) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(folder / "tmux")]
        command = f"TERM=screen-256color exec {sys.executable} -m avmm_console attach"
        self.do("new-session", "-d", "-x", str(COLUMNS), "-y", str(ROWS), command)

    def do(self, *arguments: str) -> str:
        """Carry out a tmux command."""
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True).stdout

    def keys(self, *keys: str) -> None:
        """Press keys."""
        self.do("send-keys", *keys)

    def wait(self, met: Callable[[str], bool]) -> None:
        """Wait for what is on the screen."""
        end = time.monotonic() + PATIENCE
        while not met(text := self.do("capture-pane", "-p")):
            if time.monotonic() > end:
                sys.exit(f"never saw what was waited for:\n{text}")
            time.sleep(0.02)

    def save(self, name: str) -> None:
        """Save what is on the screen."""
        draw(self.do("capture-pane", "-e", "-p")).save(FOLDER / f"{name}.png", optimize=True)


def draw(captured: str) -> Image.Image:
    """Return a picture of a terminal's screen."""
    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.Stream(screen).feed(captured.rstrip("\n").replace("\n", "\r\n"))
    glyphs = font(16)
    picture = Image.new("RGB", (8 * COLUMNS, 16 * ROWS), BACK)
    for y in range(ROWS):
        for x in range(COLUMNS):
            cell = screen.buffer[y][x]
            fore, back = _colour(cell.fg, FORE), _colour(cell.bg, BACK)
            if cell.reverse:
                fore, back = back, fore
            code = CP437.find(cell.data) if cell.data in CP437 else ord(".")
            bits = glyphs[16 * code : 16 * code + 16]
            pixels = bytes(part for row in bits for x in range(8) for part in (fore if row >> 7 - x & 1 else back))
            picture.paste(Image.frombytes("RGB", (8, 16), pixels), (8 * x, 16 * y))
    return picture


def _colour(name: str, default: tuple[int, int, int]) -> tuple[int, int, int]:
    if re.fullmatch("[0-9a-f]{6}", name):
        red, green, blue = bytes.fromhex(name)
        return red, green, blue
    return NAMED.get(name, default)


def main() -> None:
    """Start two machines, attach, and take the pictures."""
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        (folder / "m.toml").write_text(MACHINES)
        os.environ["XDG_RUNTIME_DIR"] = given
        host = subprocess.Popen([sys.executable, "-m", "avmm_console", "up", "m.toml", "--quiet"], cwd=folder)
        while not (folder / "avmm" / "second.console").exists():
            time.sleep(0.05)
        terminal = Terminal(folder)
        try:
            pictures(terminal)
        finally:
            terminal.do("kill-server")
            host.terminate()
            host.wait()


def pictures(terminal: Terminal) -> None:
    """Take them."""
    terminal.wait(lambda text: "ok>" in text and "Ctrl-a h helps" in text)
    terminal.keys("color", "Enter")
    terminal.keys("C-a", "d")
    terminal.wait(lambda text: "VM-H" in text)
    terminal.keys("bench disk", "Enter")
    terminal.wait(lambda text: re.search(r"╚═+ [\d,]+ IRP/s", text) is not None)
    terminal.save("console-emulated")
    terminal.wait(lambda text: "bench emulated read" in text)
    terminal.keys("mode enlightened", "Enter")
    terminal.wait(lambda text: "shunt: diverts" in text)
    terminal.keys("bench disk", "Enter")
    terminal.wait(lambda text: re.search(r"[1-9]\d\d requests/s ═+╣", text) is not None)
    terminal.save("console-enlightened")
    terminal.keys("C-a", "d")
    terminal.keys("C-a", "|")
    terminal.keys("dir", "Enter")
    terminal.wait(lambda text: "│" in text and "4 files" in text)
    terminal.keys("C-a", "c")
    terminal.wait(lambda text: "avmm>" in text)
    terminal.keys("install ", "Tab")
    terminal.wait(lambda text: "lapic" in text)
    terminal.save("console-split")


if __name__ == "__main__":
    main()
