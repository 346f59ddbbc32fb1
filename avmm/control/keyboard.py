"""The virtual keyboard and mouse as a person or a scenario uses them."""

from __future__ import annotations

from avmm.control.watch import sleep, wait_until
from avmm.devices.i8042 import I8042
from avmm.devices.keys import for_text
from avmm.hypervisor.partition import Partition

DELAY = 0.02  # s between two keys of typed text: a BIOS keeps only 15 of them
ROOM = 8  # keys waiting in the controller before typing pauses


class Keyboard:
    """Keys and typing. ``await vm.keyboard.type("dir\\n")``."""

    def __init__(self, partition: Partition, controller: I8042) -> None:
        self._partition = partition
        self._controller = controller

    @property
    def queued(self) -> int:
        """Keys pressed or let go that the guest has not read yet."""
        return self._controller.queued

    def press(self, key: str) -> None:
        """Press a key by name ("a", "enter", "f1", "ctrl"); it stays down until :meth:`release`."""
        self._controller.press(key)

    def release(self, key: str) -> None:
        """Let go of a key."""
        self._controller.release(key)

    async def key(self, *keys: str, hold: float = DELAY) -> None:
        """Press keys together and let go: ``await keyboard.key("ctrl", "alt", "delete")``."""
        for key in keys:
            self.press(key)
        await sleep(self._partition, hold)
        for key in reversed(keys):
            self.release(key)
        await sleep(self._partition, hold)

    async def type(self, text: str, delay: float = DELAY) -> None:
        """Type text on a US keyboard, ``delay`` s of machine time a key. ValueError for characters that are not on it."""
        for key, pressed in for_text(text):
            if pressed:
                self._controller.press(key)
            else:
                self._controller.release(key)
                await sleep(self._partition, delay)
            if self._controller.queued > ROOM:
                await wait_until(
                    self._partition, lambda: self._controller.queued == 0, 60, lambda: "the guest read its keyboard"
                )

    def feed(self, text: str) -> None:
        """Queue text without waiting: the controller passes it on as the guest reads it."""
        for key, pressed in for_text(text):
            (self._controller.press if pressed else self._controller.release)(key)


class Mouse:
    """The PS/2 mouse."""

    def __init__(self, partition: Partition, controller: I8042) -> None:
        self._partition = partition
        self._controller = controller
        self._buttons = 0

    def move(self, dx: int, dy: int, wheel: int = 0) -> None:
        """Move by (dx, dy) steps, to the right and down; turn the wheel, up is positive."""
        self._controller.mouse(dx, dy, wheel, self._buttons)

    def button(self, number: int, down: bool) -> None:
        """Press or release button 0 (left), 1 (right) or 2 (middle)."""
        self._buttons = self._buttons | 1 << number if down else self._buttons & ~(1 << number)
        self._controller.mouse(0, 0, 0, self._buttons)

