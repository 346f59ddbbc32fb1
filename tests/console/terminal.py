"""A real terminal for the console's tests: tmux starts it, sends keys, and tells what is on the screen."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

PATIENCE = 120.0
"""Seconds of the host's time, far more than anything here takes, on a host that has much else to do as well."""
PROMPT = "shell$"
_numbers = count()
"""Of sockets: a server that was told to go may still hold the one it had."""


class Terminal:
    """A tmux session of its own server."""

    def __init__(self, folder: Path, columns: int = 100, rows: int = 30, term: str = "screen-256color", **environment: object) -> None:
        self.folder = folder
        self._closed = False
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(folder / f"tmux{next(_numbers)}")]
        more = " ".join(f"{name}={value}" for name, value in environment.items())
        shell = f"cd {folder}; PS1='{PROMPT} ' TERM={term} XDG_RUNTIME_DIR={folder}/run {more} exec bash --norc --noprofile"
        self.do("new-session", "-d", "-x", str(columns), "-y", str(rows), shell)
        self.wait(PROMPT)

    def do(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=PATIENCE).stdout

    def keys(self, *keys: str) -> None:
        self.do("send-keys", *keys)

    def start(self, *arguments: object, command: str = "run") -> None:
        self.keys(" ".join(["clear;", sys.executable, "-m", "avmm_console", command, *map(str, arguments), "; echo status $?"]), "Enter")

    def say(self, line: str) -> None:
        """Enter a line on the console's command line."""
        self.keys("C-a", "c")
        self.wait("avmm>")
        self.keys(line, "Enter")

    def paste(self, text: str) -> None:
        file = self.folder / "pasted"
        file.write_text(text)
        self.do("load-buffer", str(file))
        self.do("paste-buffer", "-p")

    def process(self) -> int:
        """The process that the shell runs."""
        shell = self.do("display-message", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[-1])

    def text(self, *options: str) -> str:
        return self.do("capture-pane", "-p", *options)

    def wait(self, wanted: str | Callable[[str], bool]) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            text = self.text()
            if wanted in text if isinstance(wanted, str) else wanted(text):
                return text
            assert time.monotonic() < deadline, f"never saw {wanted!r}:\n{text}"
            time.sleep(0.03)

    def wait_restored(self) -> str:
        """The shell is back, on the normal screen, in line mode with echo, and with a cursor."""
        text = self.wait(lambda text: re.search(r"^status \d", text, re.MULTILINE) is not None and text.rstrip().endswith(PROMPT))
        flags = self.do("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}").split()
        assert flags == ["0", "1", "0"]
        self.keys("clear; stty -a", "Enter")
        modes = self.wait("echoke").split()
        assert {"icanon", "echo", "isig", "icrnl", "opost"} <= {mode.rstrip(";") for mode in modes}
        return text

    def close(self) -> None:
        """Let the terminal go away, with what runs on it."""
        if not self._closed:
            self._closed = True
            self.do("kill-server")
