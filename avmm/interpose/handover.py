"""What the switch needs to know of a device: one :class:`Handover` for each kind of device that can be virtualized.

Everything here is a contract. The ATA channel keeps it in ``ata``, the serial port in ``serial``, the frame buffer in ``frame``; the front
and the switch know none of them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from avmm.devices.line import InterruptLine


class Unsuitable(Exception):
    """The switch cannot be made at this point of the sequence; the next one may do."""


class DeviceHangs(Exception):
    """The physical device did not answer in time, or not as it must."""


class Link(Protocol):
    """A device, and who drives it: the guest or the VMM. Addresses are ports, or guest-physical ones."""

    @property
    def irq(self) -> InterruptLine:
        """The device's own end of its interrupt wire."""

    @property
    def handlers(self) -> tuple[Callable[[int, int], Any], Callable[[int, int, int], Any]]:
        """What answers the buses: ``read(address, size)`` and ``write(address, size, value)`` of the device itself."""

    def read(self, address: int, size: int = 1) -> int:
        """Read a register."""

    def write(self, address: int, value: int, size: int = 1) -> None:
        """Write a register."""

    def give_to(self, *, guest: bool) -> None:
        """Put the other end into the guest's hands, or the VMM's."""

    def reset(self) -> None:
        """RESET#."""

    def save(self) -> Any:
        """Return the device's state."""

    def restore(self, state: Any) -> None:
        """Continue from it."""


class Sequence(Protocol):
    """An I/O-sequence state machine: what the guest is in the middle of, as told by its own accesses."""

    @property
    def stage(self) -> enum.Enum:
        """Where in a sequence the guest is; the value is for people."""

    @property
    def over(self) -> bool:
        """Whether no sequence is in progress."""

    @property
    def resting(self) -> bool:
        """Whether the device has nothing to do: no sequence, or only the registers of the next one are being written."""

    @property
    def word(self) -> int:
        """The unit of a transfer that comes next."""


class Driver(Protocol):
    """The VMM's own driver of the physical device."""

    on_idle: Callable[[], None]
    """Called when a request has ended and nothing is in progress, or what it waits for has changed."""

    def attach(self) -> None:
        """Take the interrupt line."""

    def detach(self) -> None:
        """Give up whatever waits, and the line."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a sequence a switch was made."""

    stage: str
    word: int = 0


class Handover(Protocol):
    """One device that can be virtualized: its two sides, and how each is brought into the state of the other."""

    @property
    def driver(self) -> Driver:
        """The VMM's driver."""

    def may_take(self, *, middle: bool) -> bool:
        """Whether virtualizing may be begun now, as far as can be told by looking."""

    def may_give(self, *, middle: bool) -> bool:
        """Whether devirtualizing may: the driver's own I/O has ended, and the physical device can be had in the state shown.

        If so, :meth:`place` and :meth:`give` may follow at once, before anything else happens to the device.
        """

    def place(self, *, virtualized: bool) -> Place:
        """Where the guest is."""

    def take(self, commit: Callable[[], None]) -> Coroutine[Any, Any, Any]:
        """Take the physical device over, as a strand; return what :meth:`taken` wants. Raises Unsuitable before it calls ``commit``,
        which is the point from where the guest cannot have the device back as it was; DeviceHangs.
        """

    def taken(self, found: Any) -> None:
        """Let the emulated device continue from what was found."""

    def give(self) -> Coroutine[Any, Any, None]:
        """Bring the physical device into the state of the emulated one, as a strand. Raises DeviceHangs.

        The emulated device is not touched, so that the guest can stay with it.
        """

    def given(self) -> None:
        """The guest has the physical device now."""

    def modes(self) -> object:
        """Return what was carried over by :meth:`taken` or :meth:`give`; asked for once, when the pause is over."""

    def reclaim(self) -> Coroutine[Any, Any, None]:
        """The guest stays with the emulated device after a :meth:`give` that was given up: make the physical one ours again."""


class Later(Protocol):
    """An answer that comes later; awaited by the vCPU inside its instruction."""

    def set_result(self, value: int, /) -> None:
        """Give the answer."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def __await__(self) -> Any: ...
