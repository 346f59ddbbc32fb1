"""What reaches a machine from outside: keys, the mouse, the serial line, the buttons on its front.

Everything comes by here as an :class:`Input`. As long as nobody keeps a record it is done at once. Otherwise it is done at
the next *settled moment*: between two instructions, when every timer that is due has fired. Machine time and the units of work
name such a moment exactly, so that a record of inputs, given again at the same moments, makes the same run.

The invariant: with a record, nothing reaches the guest between two settled moments, and every entry of the record names one.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from avmm.hypervisor.partition import Partition

CHECK = "check"
"""An input that does nothing: it says what the machine's :func:`fingerprint` was."""
LIMIT = 4096
"""Inputs that wait for a settled moment, which a machine that is paused does not come to."""
_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "cr0", "cr2",
              "cr3", "cr4", "efer", "cs", "ss", "ds", "es", "fs", "gs")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that was done to a machine, and when: at machine time ``now`` (ns), after ``units`` of work."""

    now: int
    units: int
    kind: str
    values: tuple[Any, ...] = ()


class InputsFull(Exception):
    """A machine that stands still has as many inputs waiting for it as are kept; the sentence says what to do."""


class Diverged(Exception):
    """A machine that was given a record did something else than the one that was recorded; the sentence says where first."""


def fingerprint(partition: Partition) -> int:
    """Return a number that tells two machines apart which have executed the same amount of work: their registers and interrupts."""
    register = partition.processor.register
    values = [*(register(name) for name in _REGISTERS), partition.vcpu.injected, partition.resets]
    return zlib.crc32(b"".join(value.to_bytes(8, "little") for value in values))


class Inputs:
    """The way in. ``handlers`` do each kind of input; ``journals`` hear of each, with its moment."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.handlers: dict[str, Callable[..., object]] = {}
        self.journals: list[Callable[[Input], None]] = []
        self.on_diverged: Callable[[Diverged], None] = partition.fail
        self.recorder: object | None = None
        """Who writes a record from power-on to the end, in which time cannot go back."""
        self.on_interference: Callable[[], None] | None = None
        """Called before the first other input ends a record that is given again; None: it is given to its end, others are ignored."""
        self.ignored = 0
        """Inputs that came while a record was given again."""
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._script: deque[Input] = deque()
        self._last: Input | None = None
        self._marker = partition.clock.timer(_nothing)

    def post(self, kind: str, *values: Any) -> None:
        """Do it: now, or at the next settled moment if a record is kept. While a record is given again it is ignored, or ends that.

        InputsFull when :data:`LIMIT` wait already.
        """
        if self._script:
            if self.on_interference is None:
                self.ignored += 1
                return
            self.on_interference()
            self.replay(())
        if self.journals and not self._partition.state.ended:
            if len(self._waiting) >= LIMIT:
                raise InputsFull(f"{LIMIT} keys and other inputs wait for {self._partition.name} already: let it run first")
            self._waiting.append((kind, values))
            self._partition.processor.kick()
            self._partition.vcpu.wake()
        else:
            self.handlers[kind](*values)

    def record(self, journal: Callable[[Input], None]) -> None:
        """Let ``journal`` hear of every input from now on."""
        self.journals.append(journal)
        self._hook()

    def stop(self, journal: Callable[[Input], None]) -> None:
        """Forget a journal."""
        self.journals.remove(journal)
        self._hook()

    def check(self) -> None:
        """Have the journals told the fingerprint at the next settled moment."""
        self._waiting.append((CHECK, ()))

    def replay(self, inputs: Iterable[Input]) -> None:
        """Give a record again: all of it lies before the machine, which knows of none of it. Replaces what is left of another.

        No journal hears of these inputs.
        """
        self._script = deque(inputs)
        self.on_interference = None
        self._last = None
        self._mark()
        self._hook()

    @property
    def waiting(self) -> int:
        """How many inputs wait for their moment."""
        return len(self._waiting)

    @property
    def left(self) -> int:
        """How much is left of a record that is given again."""
        return len(self._script)

    def _hook(self) -> None:
        self._partition.vcpu.settled = self._settled if self.journals or self._script else None

    def _mark(self) -> None:
        """End a slice at the moment of the next entry, as the input itself did."""
        if self._script:
            self._marker.arm(self._script[0].now)
        else:
            self._marker.cancel()

    def _settled(self) -> bool:
        """Between two slices: do what is to be done now. Returns whether anything was."""
        clock = self._partition.clock
        now, due = clock.now(), clock.next_due()
        if (due is not None and due <= now) or not (self._waiting or (self._script and self._script[0].now <= now)):
            return False
        units = self._partition.processor.units
        while self._script and self._script[0].now <= now:
            entry = self._script.popleft()
            if not self._same(entry, now, units):
                return True
            self._last = entry
            if entry.kind != CHECK:
                self.handlers[entry.kind](*entry.values)
            if not self._script:
                self._hook()
        self._mark()
        while self._waiting:
            kind, values = self._waiting.popleft()
            if kind == CHECK:
                values = (fingerprint(self._partition),)
            else:
                self.handlers[kind](*values)
            for journal in self.journals:
                journal(Input(now, units, kind, values))
        return True

    def _same(self, entry: Input, now: int, units: int) -> bool:
        """Whether the machine has come to an entry as the recorded one had."""
        what = ""
        if now != entry.now:
            what = f"it is at {now} ns, where the record has {entry.now}"
        elif units != entry.units:
            what = f"it has executed {units} units, where the record has {entry.units}"
        elif entry.kind == CHECK and (found := fingerprint(self._partition)) != entry.values[0]:
            what = f"its registers are others ({found:#010x}, where the record has {entry.values[0]:#010x})"
        if not what:
            return True
        since = f"between {self._last.now / 1e9:.9f} s and" if self._last is not None else "before"
        self.replay(())
        self.on_diverged(Diverged(f"{self._partition.name} diverges from the record {since} {entry.now / 1e9:.9f} s: {what}"))
        return False


def _nothing() -> None:
    """The deadline is there to end a slice."""
