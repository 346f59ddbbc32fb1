"""The seat in front of a machine of this process: one task that looks at its screen, for all who watch.

A machine's video memory is plain memory to its guest, so nobody is told when it changes: it has to be looked at. That is
done 30 times a second, more often for a moment after input, and never for more than a small part of a core: a look that took
long is followed by a pause of so many times its length. These are moments of the host's time, as people are. Right after input
a look follows each turn of the event loop, which is a slice of the guest, until the echo is there.

The invariant: while nobody watches nothing is looked at.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from avmm.control.seat.facts import Facts, Observer
from avmm.control.seat.picture import Picture, look
from avmm.control.seat.seat import SeatError, Viewer
from avmm.control.vm import Vm
from avmm.control.watch import MachineEnded, WaitTimeout, sleep, wait_until
from avmm.devices.keys import typable
from avmm.hypervisor.partition import RunState
from avmm.hypervisor.report import GuestFailure

FRAMES = 30
"""Looks a second."""
LOAD = 20
"""A look and what it causes are followed by a pause of so many times the processor time they took."""
HURRY, HURRIED_LOAD = 0.001, 4
HURRIED = 0.1
"""For so many seconds after input looks are :data:`HURRY` seconds apart, and may take a larger part of a core."""
TURNS = 64
"""Turns of the event loop in which an echo is waited for; a guest that waits for keys takes a handful."""
FACTS = 1.0
PAST = 64 << 10
"""Bytes of the serial line that a new viewer is told."""
PASTE_DELAY = 0.004
"""Seconds of machine time between two characters of a longer text: a BIOS keeps only 15 of them."""
ROOM, ENOUGH = 8, 512
"""Key events waiting in the controller before a longer text, or single keys, wait."""
PATIENCE = 60
"""Seconds of machine time in which a guest must read a key of a longer text."""
CHUNK = 256


class LocalSeat:
    """``async with LocalSeat(vm) as seat``. See :class:`~avmm.control.seat.seat.Seat`."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.picture: Picture | None = None
        self.facts: Facts | None = None
        self._viewers: list[Viewer] = []
        self._observer = Observer(vm)
        self._generation: tuple[bool, int] | None = None
        self._beeps = vm.machine.speaker.beeps
        self._poke = asyncio.Event()
        self._hurried_until = 0.0
        self._turns = 0
        self._facts_at = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """What the machine is called."""
        return self.vm.name

    async def __aenter__(self) -> Self:
        self.vm.serial.listeners.append(self._serial)
        self.vm.partition.observers.append(self._state)
        self._task = asyncio.get_running_loop().create_task(self._look(), name=f"seat:{self.name}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.vm.serial.listeners.remove(self._serial)
        self.vm.partition.observers.remove(self._state)
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()
        for viewer in list(self._viewers):
            viewer.lost("the machine is gone")

    # -- looking

    def watch(self, viewer: Viewer) -> None:
        """Tell a viewer from now on; the serial line's last words are told at once."""
        self._viewers.append(viewer)
        past = bytes(self.vm.serial.output[-PAST:])
        if past:
            viewer.serial(past)
        self._facts_at = 0.0
        self.hurry()

    def unwatch(self, viewer: Viewer) -> None:
        """Do not any more."""
        self._viewers.remove(viewer)

    def room(self, width: int, height: int) -> None:
        """Pictures are never shrunk here."""

    def hurry(self) -> None:
        """Look soon, and often for a moment."""
        self._hurried_until = time.monotonic() + HURRIED
        self._turns = TURNS
        self._poke.set()

    async def _look(self) -> None:
        while True:
            self._poke.clear()
            if not self._viewers:
                await self._poke.wait()
                continue
            began, now = time.thread_time(), time.monotonic()
            seen = self._see(now)
            taken = time.thread_time() - began
            if self._turns and not seen:
                self._turns -= 1
                await asyncio.sleep(0)
                continue
            self._turns = 0
            if now < self._hurried_until:
                await asyncio.sleep(max(HURRY, HURRIED_LOAD * taken))
                continue
            try:
                async with asyncio.timeout(max(1 / FRAMES, LOAD * taken)):
                    await self._poke.wait()
            except TimeoutError:
                pass  # nobody is in a hurry

    def _see(self, now: float) -> bool:
        """Look, and tell what is new; returns whether the picture is."""
        screen, speaker = self.vm.screen, self.vm.machine.speaker
        generation = screen.generation
        seen = generation != self._generation
        if seen:
            self._generation = generation
            self.picture = look(screen)
            for viewer in list(self._viewers):
                viewer.picture_changed()
        if now - self._facts_at >= FACTS:
            self._take_facts(now)
        if speaker.beeps != self._beeps:
            self._beeps = speaker.beeps
            for viewer in list(self._viewers):
                viewer.bell()
        return seen

    def _take_facts(self, now: float) -> None:
        self._facts_at = now
        self.facts = self._observer.take()
        for viewer in list(self._viewers):
            viewer.facts_changed()

    def _serial(self, data: bytes) -> None:
        for viewer in self._viewers:
            viewer.serial(data)

    def _state(self, state: RunState) -> None:
        self._facts_at = 0.0
        self._poke.set()

    # -- hands

    async def press(self, keys: tuple[str, ...]) -> None:
        """Press keys together and let them go."""
        keyboard = self.vm.keyboard
        try:
            for key in keys:
                keyboard.press(key)
        finally:
            for key in reversed(keys):
                keyboard.release(key)
        self.hurry()
        await self._until_there_is_room()

    async def type(self, text: str) -> None:
        """Type text. Each character is pressed and let go at once, so that what others type comes between characters, not into one."""
        keyboard, partition = self.vm.keyboard, self.vm.partition
        text = typable(text)
        for char in text:
            keyboard.feed(char)
            self.hurry()
            if len(text) == 1:
                await self._until_there_is_room()
                continue
            try:
                await sleep(partition, PASTE_DELAY)
                if keyboard.queued > ROOM:
                    await wait_until(partition, lambda: keyboard.queued == 0, PATIENCE, lambda: "the guest read its keyboard")
            except (WaitTimeout, MachineEnded, GuestFailure):
                raise SeatError("the guest does not read its keyboard: the rest is dropped") from None

    async def _until_there_is_room(self) -> None:
        while self.vm.keyboard.queued > ENOUGH and not self._ended:  # noqa: ASYNC110  the guest says nothing when it reads
            await asyncio.sleep(1 / FRAMES)

    @property
    def _ended(self) -> bool:
        return self.vm.state.ended

    async def send(self, data: bytes) -> None:
        """Write to the serial line."""
        for at in range(0, len(data), CHUNK):
            self.vm.serial.write(data[at : at + CHUNK])
            self.hurry()
            while self.vm.serial.uart.queued > CHUNK and not self._ended:  # noqa: ASYNC110  as above
                await asyncio.sleep(HURRY)

    async def send_break(self) -> None:
        """Send a break over the serial line."""
        self.vm.serial.send_break()
        self.hurry()

    async def mouse(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        """Move the mouse, turn its wheel, press its buttons."""
        self.vm.mouse.set(dx, dy, wheel, buttons)
        self.hurry()
