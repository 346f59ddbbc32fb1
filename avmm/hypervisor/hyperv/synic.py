"""The synthetic interrupt controller of the one virtual processor: message slots, event flags, SINT vectors.

After the Hypervisor Top Level Functional Specification, Inter-Partition Communication (SynIC). Messages wait in a queue per SINT
while the guest's slot is taken, and go on when it writes EOM. The invariant: a slot is written only while its type word is zero,
and the type word is written last.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from mypy_extensions import mypyc_attr

from avmm.hypervisor.hyperv.overlay import Overlay, OverlayState
from avmm.hypervisor.hyperv.registers import SINTS
from avmm.memory import GuestMemory

SLOT: Final = 256
FLAGS: Final = 2048
LARGEST = 240  # bytes of a message's payload
MASKED: Final = 0x10000
AUTO_EOI: Final = 0x20000
POLLING: Final = 0x40000
_WRITABLE = 0xFF | MASKED | AUTO_EOI | POLLING | 1 << 20
_HEADER_TAIL = struct.Struct("<BBHQ")
_MESSAGE_PENDING = 1


class InterruptSink(Protocol):
    """The local APIC as SynIC uses it."""

    auto_eoi: int
    """Vectors (bit mask) that end themselves when they are acknowledged."""

    def inject(self, vector: int) -> None:
        """Request a fixed interrupt."""


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class SynicState:
    """Everything the guest can see, and the messages that wait."""

    control: int
    event_page: int
    message_page: int
    sints: tuple[int, ...]
    queues: tuple[tuple[tuple[int, bytes], ...], ...]
    overlays: tuple[OverlayState, OverlayState]
    version: int = 1


class Synic:
    """SCONTROL, SIEFP, SIMP, EOM and the SINTs. ``on_room(sint)`` is told when a message has left the queue."""

    def __init__(self, memory: GuestMemory, apic: InterruptSink) -> None:
        self.memory = memory
        self.apic = apic
        self.on_room: Callable[[int], None] = _ignore
        self._events, self._messages = Overlay(memory), Overlay(memory)
        self.reset()

    def reset(self) -> None:
        """As after power-on: everything masked, no pages."""
        self.control = 0
        self.event_page = self.message_page = 0
        self.sints = [MASKED] * SINTS
        self._queues: list[deque[tuple[int, bytes]]] = [deque() for _ in range(SINTS)]
        self._events.reset()
        self._messages.reset()
        self.apic.auto_eoi = 0

    # -- registers

    def write_control(self, value: int) -> bool:
        """SCONTROL: bit 0 enables the controller."""
        self.control = value
        self._retry()
        return True

    def write_event_page(self, value: int) -> bool:
        """SIEFP."""
        if not self._events.place(value):
            return False
        self.event_page = value
        return True

    def write_message_page(self, value: int) -> bool:
        """SIMP."""
        if not self._messages.place(value):
            return False
        self.message_page = value
        self._retry()
        return True

    def write_eom(self, value: int) -> bool:
        """End of message: a slot was freed."""
        self._retry()
        return True

    def write_sint(self, number: int, value: int) -> bool:
        """SINTn. False (#GP) on reserved bits and on vectors below 16 that are not masked."""
        if value & ~_WRITABLE or (value & 0xFF < 16 and not value & (MASKED | POLLING)):
            return False
        self.sints[number] = value
        self.tell_apic()
        return True

    def tell_apic(self) -> None:
        """Tell the local APIC which vectors end themselves."""
        automatic = 0
        for sint in self.sints:
            if sint & AUTO_EOI and not sint & MASKED:
                automatic |= 1 << (sint & 0xFF)
        self.apic.auto_eoi = automatic

    # -- what the hypervisor sends

    def depth(self, sint: int) -> int:
        """How many messages wait for the guest."""
        return len(self._queues[sint])

    def waits(self, sint: int, message_type: int, start: bytes) -> bool:
        """Whether a message of that type whose payload begins with ``start`` waits for the guest."""
        return any(kind == message_type and payload.startswith(start) for kind, payload in self._queues[sint])

    def post(self, sint: int, message_type: int, payload: bytes) -> None:
        """Send a message; it waits while the slot is taken or the controller is off. The caller bounds the queue by :meth:`depth`."""
        self._queues[sint].append((message_type, payload))
        self._deliver(sint)

    def forget(self, sint: int, message_type: int) -> None:
        """Drop the messages of a type that wait."""
        self._queues[sint] = deque(message for message in self._queues[sint] if message[0] != message_type)

    def signal(self, sint: int, flag: int) -> bool:
        """Set an event flag and interrupt unless it was set already. False when the guest has no event page."""
        page = self._events.address
        if page is None or not self.control & 1 or not 0 <= flag < FLAGS:
            return False
        at, bit, view = page + sint * SLOT + (flag >> 3), 1 << (flag & 7), self.memory.view
        old = view[at]
        if not old & bit:
            view[at] = old | bit  # in place: nobody runs code in the page of event flags
            self._interrupt(sint)
        return True

    def _interrupt(self, sint: int) -> None:
        value = self.sints[sint]
        if not value & (MASKED | POLLING):
            self.apic.inject(value & 0xFF)

    def _retry(self) -> None:
        for sint, queue in enumerate(self._queues):
            if queue:
                self._deliver(sint)

    def _deliver(self, sint: int) -> None:
        page = self._messages.address
        queue = self._queues[sint]
        if not self.control & 1 or page is None or not queue:
            return
        slot = page + sint * SLOT
        memory = self.memory
        if any(memory.view[slot : slot + 4]):
            memory.write(slot + 5, bytes((memory.view[slot + 5] | _MESSAGE_PENDING,)))
            return
        message_type, payload = queue.popleft()
        pending = _MESSAGE_PENDING if queue else 0
        memory.write(slot + 4, _HEADER_TAIL.pack(len(payload), pending, 0, 0) + payload)
        memory.write(slot, struct.pack("<I", message_type))
        self._interrupt(sint)
        self.on_room(sint)

    # -- saved state

    def save(self) -> SynicState:
        """Return the state."""
        queues = tuple(tuple(queue) for queue in self._queues)
        overlays = (self._events.save(), self._messages.save())
        return SynicState(self.control, self.event_page, self.message_page, tuple(self.sints), queues, overlays)

    def restore(self, state: SynicState) -> None:
        """Go on from a saved state. ValueError when no controller is in it."""
        if len(state.sints) != SINTS or len(state.queues) != SINTS:
            raise ValueError(f"a saved SynIC with {len(state.sints)} SINTs and {len(state.queues)} queues")
        for kind, payload in (message for queue in state.queues for message in queue):
            if not 0 < kind < 1 << 32 or len(payload) > LARGEST:
                raise ValueError(f"a saved SynIC with a message of type {kind:#x} and {len(payload)} bytes")
        self.control, self.event_page, self.message_page = state.control, state.event_page, state.message_page
        self._events.restore(state.overlays[0])
        self._messages.restore(state.overlays[1])
        self._queues = [deque(queue) for queue in state.queues]
        for number, value in enumerate(state.sints):
            if not self.write_sint(number, value):
                raise ValueError(f"a saved SynIC with {value:#x} in SINT {number}")


def _ignore(sint: int) -> None:
    """Nobody waits for room."""
