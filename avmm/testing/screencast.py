"""What a machine's screen showed, as an asciicast in machine time: ``asciinema play FILE``.

The file is version 2 of the format (docs.asciinema.org, "asciicast v2"): a JSON header, then one JSON array
[seconds, "o", data] a line. Text has its colours; a graphics mode is drawn in half blocks, two pixels to a character.
The invariant: recording changes nothing that a guest, or a scenario that waits in machine time, can tell.
"""

from __future__ import annotations

import json
from collections import deque
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from avmm.clock import MILLISECOND, SECOND
from avmm.control.watch import Pace
from avmm.devices.vga.render import decode

if TYPE_CHECKING:
    from avmm.control.vm import Vm

INTERVAL, IDLE_INTERVAL = 40 * MILLISECOND, 640 * MILLISECOND
KEPT = 5000
"""Pictures; the oldest go first."""
CANVAS = (80, 25)
Rows = tuple[str, ...]


class Screencast:
    """Looks at a machine's screen from now on and keeps each picture that is new."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._clock = vm.partition.clock
        self._pace = Pace(self._clock, INTERVAL, IDLE_INTERVAL)
        self._generation = -1
        self._pictures: deque[tuple[int, Rows]] = deque(maxlen=KEPT)
        self._timer = self._clock.timer(self._look)
        self._look()

    def _look(self) -> None:
        self._take()
        self._timer.arm(self._clock.now() + self._pace.next())

    def _take(self) -> None:
        vga = self._vm.screen.vga
        before, self._generation = self._generation, vga.generation
        if self._generation != before:
            self._pictures.append((self._clock.now(), self._text() if vga.mode() == "text" else self._graphics()))

    def _text(self) -> Rows:
        vga = self._vm.screen.vga
        table = vga.registers.colour_table()
        rows = []
        for cells in vga.cells():
            runs = []
            for attribute, run in groupby(cells, key=lambda cell: cell[1]):
                runs.append(_colours(table[attribute & 15], table[attribute >> 4 & 7]) + decode(bytes(code for code, _ in run)))
            rows.append("".join(runs) + "\x1b[0m")
        return tuple(rows)

    def _graphics(self) -> Rows:
        from PIL import Image

        width, height, rgb = self._vm.screen.pixels()
        columns, lines = CANVAS
        small = Image.frombytes("RGB", (width, height), rgb).resize((columns, 2 * lines)).tobytes()
        dots = [tuple(small[at : at + 3]) for at in range(0, len(small), 3)]
        upper, lower = ([dots[2 * columns * y + columns * half :][:columns] for y in range(lines)] for half in (0, 1))
        return tuple("".join(_colours(a, b) + "▀" for a, b in zip(*row, strict=True)) + "\x1b[0m" for row in zip(upper, lower, strict=True))

    def save(self, path: str | Path) -> None:
        """Write what was recorded up to now."""
        self._take()
        columns, lines = CANVAS if self._vm.screen.vga.mode() != "text" else self._vm.screen.vga.size
        with open(path, "w", encoding="utf-8") as file:
            header = {"version": 2, "width": columns, "height": lines, "title": self._vm.name}
            file.write(json.dumps(header) + "\n")
            shown: Rows = ()
            for at, rows in self._pictures:
                parts = ["\x1b[2J"] if len(rows) != len(shown) else []
                parts += [f"\x1b[{y};1H{row}" for y, row in enumerate(rows, 1) if len(rows) != len(shown) or row != shown[y - 1]]
                file.write(json.dumps([at / SECOND, "o", "".join(parts)], ensure_ascii=False) + "\n")
                shown = rows


def _colours(foreground: tuple[int, ...], background: tuple[int, ...]) -> str:
    return "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*foreground, *background)
