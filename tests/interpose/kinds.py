"""A bench for devices of any kind that can be virtualized, with guests made of single accesses (see ``rig`` for the ATA channel)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avmm.devices.uart import Uart
from avmm.interpose.frame.driver import EmulatedFrame, FrameDriver
from avmm.interpose.frame.handover import FrameFront, FrameHandover
from avmm.interpose.front import Front
from avmm.interpose.handover import Handover
from avmm.interpose.serial.driver import SerialDriver
from avmm.interpose.serial.handover import SerialFront, SerialHandover
from avmm.interpose.serial.port import EmulatedUart
from avmm.interpose.switch import Plan, Switch, SwitchReport
from avmm.platform.cable import Cable
from avmm.platform.frame import FrameLink, PhysicalFrame
from avmm.platform.serial import SerialLink
from tests.devices.bench import Bench
from tests.interpose.rig import Access, Answer, Guest, Trigger

LONG = 10**10


class Machine(Bench):
    """One device behind a front, direct at first; ``triggers`` switch it before the accesses that they name."""

    front: Front[Any]
    handover: Handover

    def __init__(self, triggers: list[Trigger] | None = None) -> None:
        super().__init__()
        self.triggers = list(triggers or [])
        self.reports: list[SwitchReport] = []
        self.current: Switch | None = None
        self.accesses = 0
        self.log: list[object] = []
        self.waits = 0
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def switch(self, plan: Plan) -> Switch:
        self.current = Switch(self.front, self.handover, plan, self.reports.append)
        return self.current

    def perform(self, access: Access) -> int:
        while self.triggers and self.triggers[0].at <= self.accesses and (self.current is None or self.current.step.value == "ended"):
            self.switch(self.triggers.pop(0).plan)
        self.accesses += 1
        read, write, _ = self.front.handlers
        answer = read(access.port, access.size) if access.value is None else write(access.port, access.size, access.value)
        if not isinstance(answer, Answer):
            return answer if isinstance(answer, int) else 0
        self.waits += 1
        for _ in range(10_000):
            if answer.values:
                return answer.values[0]
            self.pass_time(1000)
        raise AssertionError("an access waits for ever")

    def run(self, guest: Guest) -> None:
        value: int | None = None
        while True:
            try:
                step = guest.send(value)  # type: ignore[arg-type]
            except StopIteration:
                return
            if isinstance(step, int):
                self.pass_time(step)
                value = 0
            else:
                value = self.perform(step)


class SerialMachine(Machine):
    """A serial port; ``wire`` is what has gone out."""

    def build(self) -> None:
        real, copy = Cable(self), Cable(self)
        self.uart = Uart(real, paced=True)
        self.wire = bytearray()
        self.uart.on_output = self.wire.append
        self.driver = SerialDriver(SerialLink(real, self.uart))
        self.port = EmulatedUart(copy, 0x3F8, 4, "com1", self.driver)
        emulated = SerialLink(copy, self.port)
        emulated.irq.connect(None)
        self.front = SerialFront(self, self.driver.link, emulated, Answer)
        self.handover = SerialHandover(self.front, self.driver)


class FrameMachine(Machine):
    """A frame device."""

    def build(self) -> None:
        real, copy = Cable(self), Cable(self)
        self.real = PhysicalFrame(real)
        self.driver = FrameDriver(FrameLink(real, self.real))
        self.copy = EmulatedFrame(copy, self.driver)
        emulated = FrameLink(copy, self.copy)
        emulated.irq.connect(None)
        self.front = FrameFront(self, self.driver.link, emulated, Answer)
        self.handover = FrameHandover(self.front, self.driver)


def alternating(places: list[tuple[int, str]]) -> list[Trigger]:
    """To and fro, before those accesses: ``between``, ``middle``, or ``inside``, which waits for a sequence to be in the middle of."""
    return [Trigger(at, plan(i % 2 == 0, how)) for i, (at, how) in enumerate(sorted(places))]


def plan(virtualize: bool, how: str) -> Plan:
    chosen = (lambda sequence: not sequence.resting) if how == "inside" else (lambda sequence: True)
    return Plan(virtualize, middle=how != "between", bound=LONG, patience=LONG, chosen=chosen)


Make = Callable[[Any], Guest]
