"""What is shown and kept of machines whose scenario failed: the screen as a person would see it, the serial line's last part, the
last exits; and in files a picture, a recording, the serial line and the trace.

The invariant: evidence never makes a failure worse. What cannot be had is said in its place.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from avmm.clock import SECOND
from avmm.hypervisor.report import trail

if TYPE_CHECKING:
    from avmm.control.screen import Screen
    from avmm.control.vm import Vm
    from avmm.hypervisor.partition import RunState
    from avmm.testing.screencast import Screencast

TRAIL_SHOWN = 12
SKETCH = (78, 24)
SHADES = " .:-=+*#%@"
LONGEST_NAME = 120


def describe(vm: Vm, state: RunState) -> str:
    """Return what a person needs to see of a machine that was in ``state`` when its test failed."""
    shown = drawn(vm.screen)
    frame = "-" * max(40, max(map(len, shown), default=0))
    parts = ["\n".join([f"{state.value} after {vm.now:.3f} s of machine time", frame, *shown, frame])]
    if vm.serial.output:
        parts.append(f"serial line, last part:\n{vm.serial.tail()}")
    parts.append("last exits:\n" + "\n".join(trail(vm.partition.processor, TRAIL_SHOWN)))
    if vm.partition.failure is not None:
        parts.append(str(vm.partition.failure))
    return "\n".join(parts)


def drawn(screen: Screen) -> list[str]:
    """Return the screen's lines: the text with ``_`` where the cursor is, or a picture as a sketch."""
    if screen.vga.mode() != "text":
        return _sketch(screen)
    rows = screen.vga.text_rows()
    row, column, visible, _, _ = screen.vga.cursor()
    if visible and row < len(rows) and rows[row][column : column + 1] == " ":
        rows[row] = f"{rows[row][:column]}_{rows[row][column + 1 :]}"
    return "\n".join(text.rstrip() for text in rows).rstrip().split("\n")


def _sketch(screen: Screen) -> list[str]:
    from PIL import Image

    width, height, rgb = screen.pixels()
    columns, lines = SKETCH
    grey = Image.frombytes("RGB", (width, height), rgb).convert("L").resize(SKETCH).tobytes()
    dots = [SHADES[value * len(SHADES) >> 8] for value in grey]
    return [f"graphics, {width}x{height}:", *("".join(dots[columns * y : columns * (y + 1)]).rstrip() for y in range(lines))]


def file_name(test: str) -> str:
    """Return a test's id as the beginning of a file's name, different for different tests."""
    name = re.sub(r"[^\w.-]+", "-", test).strip("-")
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{zlib.crc32(test.encode()):08x}"


def save(vm: Vm, cast: Screencast | None, folder: Path, test: str) -> str:
    """Write everything there is of a machine into ``folder``; return a line for each file."""
    start = folder / f"{file_name(test)}-{vm.name}"
    writers: dict[str, Callable[[Path], object]] = {
        ".png": vm.screen.save_png,
        ".trace.jsonl": lambda path: path.write_text(trace(vm)),
    }
    if vm.serial.output:
        writers[".serial.txt"] = lambda path: path.write_bytes(bytes(vm.serial.output))
    if cast is not None:
        writers[".cast"] = cast.save
    lines = []
    for ending, write in writers.items():
        path = start.with_name(start.name + ending)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            lines.append(f"not saved: {path}: {error.strerror or error}")
        else:
            lines.append(f"saved: {path}")
    return "\n".join(lines)


def trace(vm: Vm) -> str:
    """Return the machine's events and its last exits, one JSON object a line; ``time`` in seconds of machine time."""
    log = vm.partition.trace_log
    lines: list[dict[str, object]] = [{"time": event.time / SECOND, "name": event.name, "fields": event.fields} for event in log.events]
    lines += [{"name": "suppressed", "fields": {name: count}} for name, count in log.suppressed.items()]
    lines += [{"name": "exit", "fields": {"what": what}} for what in trail(vm.partition.processor)]
    return "".join(json.dumps(line, default=str) + "\n" for line in lines)
