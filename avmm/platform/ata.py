"""An ATA channel on a cable whose other end is held by the guest, or by the VMM.

:class:`AtaLink` is a channel with its bus master engine, used for two things: the *physical* controller, which stands for real
hardware (ATA/ATAPI-6, T13/1410D; SFF-8038i) over a backing file, and the VMM's emulation of it. The channel does not know
who drives it; only its :class:`Cable` does. With the guest on the other end the data port's windows are the processor's and
an access costs no exit; with the VMM there, :meth:`AtaLink.read` and :meth:`AtaLink.write` move each word.

The invariant: what passes through :meth:`AtaLink.read` and :meth:`AtaLink.write` is what would have passed through the processor's windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avmm.devices.ata.busmaster import Engine, EngineState
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.channel import State as ChannelState
from avmm.devices.ata.drive import Drive
from avmm.devices.ata.registers import COMMAND, COMMAND_BLOCK, CONTROL_BLOCK, INTERRUPT
from avmm.platform.cable import Cable


@dataclass(frozen=True, slots=True)
class State:
    """A saved channel with its engine."""

    channel: ChannelState
    engine: EngineState
    version: int = 1


class AtaLink:
    """A channel, its bus master engine and the cable to them. ``read`` and ``write`` are for the VMM's end."""

    def __init__(
        self,
        cable: Cable,
        number: int,
        drives: Sequence[Drive | None],
        channel: type[AtaChannel] = AtaChannel,
        engine: Engine | None = None,
    ) -> None:
        self.cable = cable
        self.number = number
        self.channel = channel(cable, number, drives)
        self.data = COMMAND_BLOCK[number]
        """The data port, and the first of the command block."""
        self.status = self.data + COMMAND
        self.control = CONTROL_BLOCK[number]
        self.irq = cable.line(INTERRUPT[number])
        self.engine = engine or Engine(cable.memory, self.channel.sequencer.dma_ready)
        self.join()

    def join(self) -> None:
        """Let channel and engine work with each other."""
        self.engine.on_start = self.channel.sequencer.dma_ready
        self.channel.sequencer.engine = self.engine

    @property
    def handlers(self) -> tuple[Callable[[int, int], int], Callable[[int, int, int], None]]:
        """What answers the ports."""
        return self.channel.read, self.channel.write

    def give_to(self, *, guest: bool) -> None:
        """Put the other end of the cable into the guest's hands, or the VMM's."""
        self.cable.give_to(guest=guest)

    def reset(self) -> None:
        """RESET#. The engine's is the bus master's."""
        self.channel.reset()

    def save(self) -> State:
        """Return the state of channel and engine."""
        return State(self.channel.save(), self.engine.save())

    def restore(self, state: State) -> None:
        """Continue from ``state``."""
        self.channel.restore(state.channel)
        self.engine.restore(state.engine)

    def read(self, address: int, size: int = 1) -> int:
        """IN from ``address``, as the VMM or as the guest through it."""
        window = self.cable.open_window(address, out=False) if address == self.data else None
        if window is not None and window[1] + size <= len(window[0]):
            buffer, at = window
            value = int.from_bytes(buffer[at : at + size], "little")
            self._moved(address, at + size)
            return value
        return self.channel.read(address, size)

    def write(self, address: int, value: int, size: int = 1) -> None:
        """OUT to ``address``."""
        window = self.cable.open_window(address, out=True) if address == self.data else None
        if window is not None and window[1] + size <= len(window[0]):
            buffer, at = window
            buffer[at : at + size] = value.to_bytes(size, "little")
            self._moved(address, at + size)
            return
        self.channel.write(address, size, value)

    def read_words(self, count: int) -> bytes:
        """REP INSW: ``count`` bytes, an even number, from the data port."""
        parts: list[bytes] = []
        while count > 0:
            window = self.cable.open_window(self.data, out=False)
            if window is None:
                parts.append(self.channel.read(self.data, 2).to_bytes(2, "little"))
                count -= 2
                continue
            buffer, at = window
            size = min(count, len(buffer) - at)
            parts.append(bytes(buffer[at : at + size]))
            count -= size
            self._moved(self.data, at + size)
        return b"".join(parts)

    def write_words(self, data: bytes | bytearray | memoryview) -> None:
        """REP OUTSW: an even number of bytes to the data port."""
        at = 0
        while at < len(data):
            window = self.cable.open_window(self.data, out=True)
            if window is None:
                self.channel.write(self.data, 2, int.from_bytes(data[at : at + 2], "little"))
                at += 2
                continue
            buffer, start = window
            size = min(len(data) - at, len(buffer) - start)
            buffer[start : start + size] = data[at : at + size]
            at += size
            self._moved(self.data, start + size)

    def _moved(self, port: int, position: int) -> None:
        if self.cable.moved(port, position):
            self.channel.window_done(port)
