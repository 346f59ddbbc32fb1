"""Overlay pages: pages of the hypervisor's that lie over guest RAM while enabled (hypercall page, SIMP, SIEFP and others).

The page is put into RAM itself and what was there is kept aside, so guest accesses to it cost nothing. The invariant:
what the guest had under an overlay reappears when the overlay is disabled or moved.
"""

from __future__ import annotations

from dataclasses import dataclass

from mypy_extensions import mypyc_attr

from avmm.hypervisor.hyperv.registers import PAGE_ENABLE, PAGE_NUMBER, PAGE_RESERVED
from avmm.memory import PAGE, GuestMemory


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class OverlayState:
    """Where the page is (None: nowhere), and what it hides."""

    address: int | None
    hidden: bytes
    version: int = 1


class Overlay:
    """One overlay page."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.address: int | None = None
        """The guest-physical address while enabled."""
        self._hidden = b""

    def fits(self, address: int) -> bool:
        """Whether there is RAM for the page."""
        return address + PAGE <= self.memory.size

    def enable(self, address: int, content: bytes) -> None:
        """Show ``content``, padded with zeros, at ``address``. Enabling it where it is already changes nothing."""
        if self.address == address:
            return
        self.disable()
        self._hidden = self.memory.read(address, PAGE)
        self.memory.write(address, content.ljust(PAGE, b"\0"))
        self.address = address

    def place(self, value: int, content: bytes = b"") -> bool:
        """Enable, move or disable it as its register says (enable in bit 0, page number from bit 12). False for #GP."""
        if value & PAGE_RESERVED:
            return False
        if not value & PAGE_ENABLE:
            self.disable()
            return True
        address = value & PAGE_NUMBER
        if not self.fits(address):
            return False
        self.enable(address, content)
        return True

    def disable(self) -> None:
        """Let what was there reappear."""
        if self.address is not None:
            self.memory.write(self.address, self._hidden)
            self.address, self._hidden = None, b""

    def reset(self) -> None:
        """Forget it without touching memory: the machine is reset, and RAM keeps what it holds."""
        self.address, self._hidden = None, b""

    def save(self) -> OverlayState:
        """Return where it is and what it hides."""
        return OverlayState(self.address, self._hidden)

    def restore(self, state: OverlayState) -> None:
        """Go on from a saved state; memory is restored by its owner. ValueError when no page of this memory is in it."""
        if state.address is not None and (state.address % PAGE or state.address < 0 or not self.fits(state.address)):
            raise ValueError(f"a saved overlay at {state.address:#x}, where there is no page of RAM")
        if len(state.hidden) != (0 if state.address is None else PAGE):
            raise ValueError(f"a saved overlay that hides {len(state.hidden)} bytes")
        self.address, self._hidden = state.address, state.hidden
