"""The virtual keyboard and mouse as a person or a scenario uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avmm.control.inputs import Inputs
from avmm.control.watch import sleep, wait_until
from avmm.devices.i8042 import I8042
from avmm.devices.keys import find, for_text
from avmm.hypervisor.partition import Partition

if TYPE_CHECKING:
    from avmm.vmbus.keyboard import SyntheticKeyboard

DELAY = 0.02  # s between two keys of typed text: a BIOS keeps only 15 of them
ROOM = 8  # keys waiting in the controller before typing pauses


class Keyboard:
    """Keys and typing. ``await vm.keyboard.type("dir\\n")``.

    Keys go to the synthetic keyboard while a guest's driver listens there, otherwise to the emulated one; a key that is
    down is let go where it went down.
    """

    def __init__(self, partition: Partition, inputs: Inputs, controller: I8042, synthetic: SyntheticKeyboard | None = None) -> None:
        self._partition = partition
        self._inputs = inputs
        inputs.handlers["press"], inputs.handlers["release"] = self._press, self._release
        self._controller = controller
        self._synthetic = synthetic

    def use(self, controller: I8042) -> None:
        """Type on this controller from now on, which has taken the place of the other."""
        self._controller = controller

    @property
    def queued(self) -> int:
        """Keys pressed or let go that the guest has not read yet."""
        synthetic = self._synthetic.queued if self._synthetic is not None else 0
        return self._controller.queued + synthetic + self._inputs.waiting

    def press(self, key: str) -> None:
        """Press a key by name ("a", "enter", "f1", "ctrl"); it stays down until :meth:`release`. ValueError when no key is called so."""
        self._inputs.post("press", find(key).name)

    def release(self, key: str) -> None:
        """Let go of a key."""
        self._inputs.post("release", find(key).name)

    def _press(self, key: str) -> None:
        if self._synthetic is not None and self._synthetic.ready:
            self._synthetic.press(key)
        else:
            self._controller.press(key)

    def _release(self, key: str) -> None:
        if self._synthetic is not None and self._synthetic.holds(key):
            self._synthetic.release(key)
        else:
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
                self.press(key)
            else:
                self.release(key)
                await sleep(self._partition, delay)
            if self.queued > ROOM:
                await wait_until(
                    self._partition, lambda: self.queued == 0, 60, lambda: "the guest read its keyboard"
                )

    def feed(self, text: str) -> None:
        """Queue text without waiting: the controller passes it on as the guest reads it."""
        for key, pressed in for_text(text):
            (self.press if pressed else self.release)(key)


class Mouse:
    """The PS/2 mouse."""

    def __init__(self, inputs: Inputs, controller: I8042) -> None:
        self._inputs = inputs
        self._controller = controller
        inputs.handlers["mouse"] = self._move
        self._buttons = 0

    def use(self, controller: I8042) -> None:
        """Be plugged into this controller from now on."""
        self._controller = controller

    @property
    def listening(self) -> bool:
        """Whether the guest has asked for what the mouse does."""
        return self._controller.aux.reporting

    def set(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        """Move, turn the wheel and hold these buttons (bit 0 left, 1 right, 2 middle), all at once."""
        self._buttons = buttons
        self._inputs.post("mouse", dx, dy, wheel, buttons)

    def _move(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        self._controller.mouse(dx, dy, wheel, buttons)

    def move(self, dx: int, dy: int, wheel: int = 0) -> None:
        """Move by (dx, dy) steps, to the right and down; turn the wheel, up is positive."""
        self._inputs.post("mouse", dx, dy, wheel, self._buttons)

    def button(self, number: int, down: bool) -> None:
        """Press or release button 0 (left), 1 (right) or 2 (middle)."""
        self._buttons = self._buttons | 1 << number if down else self._buttons & ~(1 << number)
        self._inputs.post("mouse", 0, 0, 0, self._buttons)

