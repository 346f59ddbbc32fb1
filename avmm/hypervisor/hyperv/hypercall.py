"""The hypercall ABI: control word, status codes, and the inputs of the two calls VMBus needs.

After the Hypervisor Top Level Functional Specification (TLFS), Hypercall Interface and Inter-Partition Communication. The
invariant: nothing here keeps state, and input is copied out of guest memory once.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from avmm.memory import PAGE, GuestMemory

POST_MESSAGE: Final = 0x5C
SIGNAL_EVENT: Final = 0x5D
MESSAGE_PAYLOAD = 240
CONNECTION_ID: Final = 0xFFFFFF
_FAST: Final = 0x10000
_FAST_SIGNAL: Final = 0x1005D
_MUST_BE_ZERO = ~(0xFFFF | _FAST) & (1 << 64) - 1  # for calls without repetition and variable header
_MESSAGE = struct.Struct("<IIII")
_EVENT_SIZE = 8  # connection (32 bits), flag number (16), reserved


class Status(enum.IntEnum):
    """The low 16 bits of a hypercall's result."""

    SUCCESS = 0
    INVALID_HYPERCALL_CODE = 2
    INVALID_HYPERCALL_INPUT = 3
    INVALID_ALIGNMENT = 4
    INVALID_PARAMETER = 5
    ACCESS_DENIED = 6
    OPERATION_DENIED = 8
    INSUFFICIENT_MEMORY = 0xB
    INVALID_PORT_ID = 0x11
    INVALID_CONNECTION_ID = 0x12
    INSUFFICIENT_BUFFERS = 0x13
    INVALID_SYNIC_STATE = 0x18


PostMessage = Callable[[int, int, bytes], Status]
"""``(connection id, message type, payload)``"""
SignalEvent = Callable[[int, int], Status]
"""``(connection id, flag number)``"""


@dataclass(slots=True)
class Connections:
    """Who takes messages and events: the bus plugs itself in here."""

    post_message: PostMessage
    signal_event: SignalEvent


def dispatch(memory: GuestMemory, connections: Connections, control: int, first: int) -> Status:
    """Perform a hypercall. ``first`` is the input's address or, of a fast call, the input."""
    if control == _FAST_SIGNAL and first <= CONNECTION_ID:  # nearly all are of this form
        return connections.signal_event(first, 0)
    code = control & 0xFFFF
    if code == SIGNAL_EVENT:
        return _signal_event(memory, connections, control, first)
    if code == POST_MESSAGE:
        return _post_message(memory, connections, control, first)
    return Status.INVALID_HYPERCALL_CODE


def _input(memory: GuestMemory, control: int, address: int, length: int) -> bytes | Status:
    if control & _MUST_BE_ZERO:
        return Status.INVALID_HYPERCALL_INPUT
    if address % 8:
        return Status.INVALID_ALIGNMENT
    if address % PAGE + length > PAGE or address + length > memory.size:
        return Status.INVALID_PARAMETER
    return memory.read(address, length)


def _post_message(memory: GuestMemory, connections: Connections, control: int, address: int) -> Status:
    if control & _FAST:
        return Status.INVALID_HYPERCALL_CODE
    data = _input(memory, control, address, _MESSAGE.size + MESSAGE_PAYLOAD)
    if isinstance(data, Status):
        return data
    connection, _, message_type, size = _MESSAGE.unpack_from(data)
    if size > MESSAGE_PAYLOAD:
        return Status.INVALID_HYPERCALL_INPUT
    if not 0 < message_type < 1 << 31:  # the others are the hypervisor's own
        return Status.INVALID_PARAMETER
    return connections.post_message(connection & CONNECTION_ID, message_type, data[_MESSAGE.size : _MESSAGE.size + size])


def _signal_event(memory: GuestMemory, connections: Connections, control: int, first: int) -> Status:
    if control & _MUST_BE_ZERO:
        return Status.INVALID_HYPERCALL_INPUT
    if not control & _FAST:
        data = _input(memory, control, first, _EVENT_SIZE)
        if isinstance(data, Status):
            return data
        first = int.from_bytes(data, "little")
    connection = first & 0xFFFFFFFF
    if connection & ~CONNECTION_ID or first >> 48:
        return Status.INVALID_HYPERCALL_INPUT
    return connections.signal_event(connection, first >> 32)
