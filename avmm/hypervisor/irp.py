"""The I/O request packet: a guest access on its way to a device model outside the hypervisor, and its feedback.

The hypervisor makes an :class:`Irp` for an access that no in-hypervisor device answers and sends it to the service OS,
whose device task completes it; the suspended vCPU task awaits it inside the instruction.

The invariant: an Irp is answered exactly once, by a value or by an exception; later answers are ignored.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections.abc import Awaitable, Callable, Generator
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avmm.devices.device import Device

next_id: Callable[[], int] = itertools.count(1).__next__
"""Return a fresh request id: Irps and storage requests take theirs from one sequence, so an id names one journey."""


class IrpKind(enum.Enum):
    """What the guest did."""

    PORT_READ = "port read"
    PORT_WRITE = "port write"
    MEMORY_READ = "memory read"
    MEMORY_WRITE = "memory write"
    WINDOW_DONE = "window done"


class Irp(Awaitable[int]):
    """One access that goes outside. ``await irp`` gives the value read (0 for the other kinds) or raises what went wrong."""

    __slots__ = ("_future", "address", "created", "device", "hops", "id", "kind", "partition", "size", "value")

    def __init__(
        self, kind: IrpKind, device: Device, address: int, size: int = 1, value: int = 0, *, partition: str = "", id: int = 0
    ) -> None:
        self.id = id or next_id()
        self.kind = kind
        self.device = device
        """The device model that shall answer."""
        self.address = address
        """The port, or the guest-physical address."""
        self.size = size
        self.value = value
        """What the guest writes; after :meth:`complete` of a read, what it gets."""
        self.partition = partition
        self.created = monotonic_ns()
        """Host monotonic time in ns, for traces only."""
        self.hops: list[tuple[str, int]] = []
        """Where the packet has been: (task name, host monotonic ns)."""
        self._future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, int]:
        return self._future.__await__()

    def hop(self, name: str) -> None:
        """Note that the packet has reached ``name``."""
        self.hops.append((name, monotonic_ns()))

    @property
    def done(self) -> bool:
        """Whether it has been answered, or given up by the one who awaited it."""
        return self._future.done()

    def when_answered(self, routine: Callable[[], None]) -> None:
        """Have ``routine()`` called soon after the answer, as the one who awaits it goes on."""
        self._future.add_done_callback(lambda future: routine())

    def complete(self, value: int = 0) -> None:
        """Send the feedback packet: the access has been performed and read ``value``."""
        if not self._future.done():
            if self.kind is IrpKind.PORT_READ or self.kind is IrpKind.MEMORY_READ:
                self.value = value
            self._future.set_result(value)

    def fail(self, error: Exception) -> None:
        """Answer that the access could not be performed; ``error`` is raised where the Irp is awaited."""
        if not self._future.done():
            self._future.set_exception(error)

    def __repr__(self) -> str:
        return f"<Irp {self.id} {self.kind.value} {self.device.name}:{self.address:#x} size {self.size}>"
