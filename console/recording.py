"""What happened, in files: the console's terminal as an asciicast (``--record``), serial line and events as text (``--log``).

The asciicast is version 2 (docs.asciinema.org, "asciicast v2"): a JSON header, then one JSON array [seconds, "o", data] a line.
The invariant: every line in a file is complete when it is written, so that a console that is killed leaves a usable file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TextIO, TypeVar, cast

from prompt_toolkit.output import Output, create_output

import avmm
from avmm.control.seat import Seat
from avmm.hypervisor.partition import RunState
from avmm.hypervisor.trace import Event

from .history import plain

T = TypeVar("T")
LONGEST = 64 << 10
"""Bytes of the serial line that are kept until the line ends; what goes on is a line of its own."""


class RecordedTerminal:
    """Standard output that is recorded on the way, for prompt_toolkit's output. It has no ``buffer``: text goes through it."""

    def __init__(self, terminal: TextIO, record: TextIO, size: os.terminal_size) -> None:
        self._terminal = terminal
        self._record = record
        self._began = time.monotonic()
        self.encoding = terminal.encoding
        environment = {name: os.environ[name] for name in ("TERM", "SHELL") if name in os.environ}
        header = {"version": 2, "width": size.columns, "height": size.lines, "timestamp": int(time.time()), "env": environment}
        self._line(header)

    def _line(self, value: object) -> None:
        self._record.write(json.dumps(value) + "\n")
        self._record.flush()

    def write(self, data: str) -> int:
        """Write to the terminal and into the record."""
        if data:
            self._line([round(time.monotonic() - self._began, 6), "o", data])
        self._terminal.buffer.write(data.encode(self.encoding or "utf-8", "replace"))
        return len(data)

    def flush(self) -> None:
        """Let the terminal have it."""
        self._terminal.flush()

    def fileno(self) -> int:
        """Return the terminal's file descriptor."""
        return self._terminal.fileno()

    def isatty(self) -> bool:
        """It is one."""
        return self._terminal.isatty()


class PlainLog:
    """Writes the serial line's output line by line, and between them events as ``[seconds] name field=value``.

    ``now`` tells the machine's time; with ``label`` each line says which machine's it is.
    """

    def __init__(self, file: TextIO, now: Callable[[], float], label: str = "") -> None:
        self._file = file
        self._now = now
        self._label = f"{label}: " if label else ""
        self._line = bytearray()

    def serial(self, data: bytes) -> None:
        """Take a piece of the guest's output."""
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._write(plain(line.decode("utf-8", "replace")))
        if len(self._line) > LONGEST:  # a guest need not end its lines
            self.finish_line()

    def note(self, name: str, **fields: object) -> None:
        """Take an event."""
        self.finish_line()
        self._write(" ".join([f"[{self._now():12.6f}] {name}", *(f"{key}={value}" for key, value in fields.items())]))
        self._file.flush()

    def finish_line(self) -> None:
        """Write out a line that has not ended."""
        if self._line:
            self._write(plain(self._line.decode("utf-8", "replace")))
            self._line.clear()

    def _write(self, line: str) -> None:
        self._file.write(f"{self._label}{line}\n")


class SeatLog:
    """Logs what is heard at a seat: the serial line, the states that the machine is in, and that it was lost."""

    def __init__(self, seat: Seat, file: TextIO, label: str = "") -> None:
        self._seat = seat
        self._log = PlainLog(file, self._now, label)
        self._state = ""

    def _now(self) -> float:
        facts = self._seat.facts
        return facts.machine_ns / 1e9 if facts is not None else 0.0

    def serial(self, data: bytes) -> None:
        """Take a piece of the guest's output."""
        self._log.serial(data)

    def facts_changed(self) -> None:
        """Note a state that is new."""
        facts = self._seat.facts
        if facts is not None and facts.state != self._state:
            self._state = facts.state
            self._log.note(facts.state, **({"reason": facts.reason} if facts.reason else {}))

    def lost(self, reason: str) -> None:
        """Note why nothing more comes."""
        self._state = ""
        self._log.note("lost", reason=reason)

    def picture_changed(self) -> None:
        """Pictures are not logged."""

    def bell(self) -> None:
        """Nor is the bell."""


@contextmanager
def logged(vm: avmm.Vm, path: str | None) -> Iterator[None]:
    """Write the log of a machine of this process, for the time of a with block; None writes none."""
    with ExitStack() as held:
        if path is not None:
            log = PlainLog(held.enter_context(open(path, "w", encoding="utf-8")), lambda: vm.now)

            def state(state: RunState) -> None:
                reason = vm.partition.off_reason
                log.note(state.value, **({"reason": reason} if reason and state is RunState.OFF else {}))

            def event(event: Event) -> None:
                log.note(event.name, **event.fields)

            held.callback(log.finish_line)
            held.enter_context(_listening(vm.serial.listeners, log.serial))
            held.enter_context(_listening(vm.partition.observers, state))
            held.enter_context(_listening(vm.partition.trace_log.subscribers, event))
        yield


@contextmanager
def seats_logged(seats: Sequence[Seat], path: str | None) -> Iterator[None]:
    """The same of machines of other processes, each line with its machine's name where there are several."""
    with ExitStack() as held:
        if path is not None:
            file = held.enter_context(open(path, "w", encoding="utf-8"))
            for seat in seats:
                log = SeatLog(seat, file, seat.name if len(seats) > 1 else "")
                seat.watch(log)
                held.callback(seat.unwatch, log)
        yield


@contextmanager
def _listening(listeners: list[Callable[[T], None]], listener: Callable[[T], None]) -> Iterator[None]:
    listeners.append(listener)
    try:
        yield
    finally:
        listeners.remove(listener)


@contextmanager
def recorded(path: str | None) -> Iterator[Output | None]:
    """Return an output to the terminal that is recorded in a file, for the time of a with block; None without a file."""
    if path is None:
        yield None
        return
    with open(path, "w", encoding="utf-8") as record:
        terminal = RecordedTerminal(sys.stdout, record, os.get_terminal_size(sys.stdout.fileno()))
        yield create_output(cast(TextIO, terminal))
