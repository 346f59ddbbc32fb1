"""A device of your own in thirty lines: a die at port 300h. Publish it as ``pyproject.toml`` beside this file does, and

    avmm.VmConfig(devices=["dice"], placement={"dice": "service"})

puts it into a machine, outside the hypervisor; ``await vm.install("dice")`` brings it inside while the guest plays.
"""

from __future__ import annotations

from dataclasses import dataclass

from avmm.clock import MILLISECOND
from avmm.devices.card import Card, Line
from avmm.devices.device import PortRange


class Dice(Card):
    """Writing n rolls the die for n ms, then IRQ 5 is raised; reading gives the face (1-6) and lowers the line."""

    ports = (PortRange(0x300, 1),)
    irq = Line(5)

    @dataclass(frozen=True)
    class State:
        version: int = 1
        face: int = 0

    face: int

    def write(self, port: int, size: int, value: int) -> None:
        self.timer.arm(self.clock.now() + value * MILLISECOND)

    def on_timer(self) -> None:
        self.face = self.random.randrange(1, 7)  # the machine's seeded generator: a run can be repeated
        self.irq.raise_()

    def read(self, port: int, size: int) -> int:
        self.irq.lower()
        return self.face
