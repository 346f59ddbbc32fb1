"""What somebody in front of a machine has, whether the machine runs in this process or in another one.

The invariant: input is carried out in the order it was given, and a key that goes down by it comes up by it: whoever leaves, no
key stays down.
"""

from __future__ import annotations

from typing import Protocol

from avmm.control.seat.facts import Facts
from avmm.control.seat.picture import Picture


class SeatError(Exception):
    """Input could not be delivered, or the connection is lost; one sentence says why."""


class Viewer(Protocol):
    """Hears what changes, in the event loop. Nothing here may take long: the machine waits."""

    def picture_changed(self) -> None:
        """The screen shows something else."""

    def facts_changed(self) -> None:
        """There are new facts."""

    def serial(self, data: bytes) -> None:
        """The guest wrote to its serial line."""

    def bell(self) -> None:
        """The machine beeped."""

    def lost(self, reason: str) -> None:
        """Nothing more will come."""


class Seat(Protocol):
    """A place in front of a machine. The picture and the facts are the latest; both are None until the first have come."""

    @property
    def name(self) -> str:
        """What the machine is called."""

    @property
    def picture(self) -> Picture | None:
        """What the screen shows."""

    @property
    def facts(self) -> Facts | None:
        """What is known about the machine."""

    def watch(self, viewer: Viewer) -> None:
        """Tell a viewer from now on; the serial line's last words are told at once."""

    def unwatch(self, viewer: Viewer) -> None:
        """Do not any more."""

    def room(self, width: int, height: int) -> None:
        """Say how many pixels can be shown; a picture of more may be delivered shrunk."""

    async def press(self, keys: tuple[str, ...]) -> None:
        """Press keys together and let them go."""

    async def type(self, text: str) -> None:
        """Type text as fast as the guest reads its keyboard. What is not on the keyboard is left out. SeatError when it does not read."""

    async def send(self, data: bytes) -> None:
        """Write to the serial line, as fast as the guest reads it."""

    async def send_break(self) -> None:
        """Send a break over the serial line."""

    async def mouse(self, dx: int, dy: int, wheel: int, buttons: int) -> None:
        """Move the mouse right and down, turn its wheel up; ``buttons`` as in the PS/2 mouse's packets."""
