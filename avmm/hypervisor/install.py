"""Installing a device model in the hypervisor at run time, or putting it outside again, while the guest uses it.

The steps: check whether the image is installed, probe the device, fetch the image through a
channel, verify it, transfer the state, switch. :class:`Installation` knows their order and what each outcome leads to, and
does nothing itself; :class:`Installer` performs the steps. State and switch are done in one go between two instructions of
the guest, where nothing is awaited: no access is in progress then, so none can be lost or made twice.

The invariant: until the switch is complete the device is where it was, whatever fails and wherever the task is cancelled;
from then on it is in its new place, and a cancellation comes too late to change that.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any, Protocol

from avmm.devices.device import Device
from avmm.hypervisor.image import Channel, DeviceImageError, Image


class State(enum.Enum):
    """Where an installation is."""

    IDLE = "idle"
    CHECKING = "check"
    PROBING = "probe"
    FETCHING = "fetch"
    VERIFYING = "verify"
    TRANSFERRING = "transfer"
    SWITCHING = "switch"
    DONE = "done"
    FAILED = "failed"


class Event(enum.Enum):
    """What became of a step."""

    BEGIN = "begin"
    IN_PLACE = "in place"
    ELSEWHERE = "elsewhere"
    IMAGE_KNOWN = "image known"
    IMAGE_MISSING = "image missing"
    FETCHED = "fetched"
    VERIFIED = "verified"
    TRANSFERRED = "transferred"
    SWITCHED = "switched"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Action(enum.Enum):
    """What to do next."""

    CHECK = "check"
    PROBE = "probe"
    FETCH = "fetch"
    VERIFY = "verify"
    TRANSFER = "transfer"
    SWITCH = "switch"
    FINISH = "finish"
    GIVE_UP = "give up"
    UNDO = "undo"
    NOTHING = "nothing"


_TABLE: dict[tuple[State, Event], tuple[State, Action]] = {
    (State.IDLE, Event.BEGIN): (State.CHECKING, Action.CHECK),
    (State.CHECKING, Event.IN_PLACE): (State.DONE, Action.FINISH),
    (State.CHECKING, Event.ELSEWHERE): (State.PROBING, Action.PROBE),
    (State.PROBING, Event.IMAGE_KNOWN): (State.TRANSFERRING, Action.TRANSFER),
    (State.PROBING, Event.IMAGE_MISSING): (State.FETCHING, Action.FETCH),
    (State.FETCHING, Event.FETCHED): (State.VERIFYING, Action.VERIFY),
    (State.VERIFYING, Event.VERIFIED): (State.TRANSFERRING, Action.TRANSFER),
    (State.TRANSFERRING, Event.TRANSFERRED): (State.SWITCHING, Action.SWITCH),
    (State.SWITCHING, Event.SWITCHED): (State.DONE, Action.FINISH),
}
for _state in (State.CHECKING, State.PROBING, State.FETCHING, State.VERIFYING, State.TRANSFERRING):
    _TABLE[_state, Event.FAILED] = _TABLE[_state, Event.CANCELLED] = (State.FAILED, Action.GIVE_UP)
_TABLE[State.SWITCHING, Event.FAILED] = _TABLE[State.SWITCHING, Event.CANCELLED] = (State.FAILED, Action.UNDO)
_TABLE[State.IDLE, Event.CANCELLED] = (State.FAILED, Action.GIVE_UP)
for _state in (State.DONE, State.FAILED):
    _TABLE[_state, Event.CANCELLED] = (_state, Action.NOTHING)


class Installation:
    """One installation: events in, actions out."""

    def __init__(self) -> None:
        self.state = State.IDLE

    def feed(self, event: Event) -> Action:
        """Take what became of the last action and return the next. ValueError for an event that cannot come now."""
        try:
            self.state, action = _TABLE[self.state, event]
        except KeyError:
            raise ValueError(f"{event.value!r} cannot come while the installation is in {self.state.value!r}") from None
        return action


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was done, or tried."""

    name: str
    ns: int
    """Host time it took."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class InstallReport:
    """What an installation did. ``error`` is empty when the device is where it was wanted."""

    device: str
    before: str
    """Where it was: ``hypervisor``, ``service`` or ``kernel``; empty for a device that there is not."""
    wanted: str
    image: str
    steps: tuple[Step, ...]
    time: int
    """Machine time in ns at the end."""
    moved: bool = False
    error: str = ""

    def __str__(self) -> str:
        outcome = self.error or ("moved" if self.moved else "there already")
        steps = ", ".join(f"{step.name} {step.ns / 1000:.0f} us" for step in self.steps)
        return f"{self.device}: {self.before} -> {self.wanted} ({self.image}): {outcome}; {steps}"


class InstallError(Exception):
    """The device is where it was; the sentence and the report say why."""

    def __init__(self, report: InstallReport) -> None:
        super().__init__(f"{report.device} stays in the {report.before}: {report.error}" if report.before else report.error)
        self.report = report


class Refused(Exception):
    """A step cannot be done; one sentence says why."""


class Site(Protocol):
    """The machine whose devices are moved. Only :meth:`at_boundary` waits."""

    def place(self, device: str) -> str:
        """Return where a device is. Refused when there is none of that name."""

    def origin(self, device: str) -> str:
        """Return the key of the image that the device runs from."""

    def probe(self, device: str, wanted: str) -> str:
        """Look at the device and return what it is. Refused when it cannot be moved there."""

    def known(self, device: str, key: str) -> type[Device] | None:
        """Return an image that the hypervisor has had before."""

    def transfer(self, device: str, image: type[Device], wanted: str) -> Any:
        """Make another instance with the state of the device, which nobody sees yet."""

    def switch(self, exchange: Any, key: str) -> None:
        """Let it take the device's place."""

    def undo(self, exchange: Any) -> None:
        """After a switch that failed half-way: be as before it."""

    async def at_boundary(self, action: Callable[[], None]) -> None:
        """Call ``action`` between two instructions of the guest."""

    def now(self) -> int:
        """Return the machine time."""

    def trace(self, event: str, **fields: object) -> None:
        """Record a step."""


@dataclass(slots=True)
class _Job:
    """One installation under way, and what its steps have found."""

    device: str
    wanted: str
    channel: Channel
    key: str
    before: str = ""
    run: Installation = field(default_factory=Installation)
    steps: list[Step] = field(default_factory=list)
    fetched: Image | None = None
    image: type[Device] | None = None
    error: str = ""
    moved: bool = False


class Installer:
    """Moves the devices of one machine, one at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = asyncio.Lock()

    async def move(self, device: str, wanted: str, channel: Channel, key: str = "") -> InstallReport:
        """Bring ``device`` to ``wanted``, with the image that comes through ``channel``. InstallError when it stays where it was.

        ``key`` names the image: the same key stands for the same code, and is fetched once.
        """
        async with self._lock:
            job = _Job(device, wanted, channel, key or channel.origin)
            action = job.run.feed(Event.BEGIN)
            try:
                job.before = self._site.place(device)
                while action not in (Action.FINISH, Action.GIVE_UP):
                    action = await self._perform(job, action)
            except Refused as refusal:
                job.error = str(refusal)
                action = job.run.feed(Event.FAILED)
            except asyncio.CancelledError:
                if job.run.feed(Event.CANCELLED) is Action.GIVE_UP:
                    job.error = "cancelled"
                self._report(job)
                raise
            report = self._report(job)
        if action is Action.GIVE_UP:
            raise InstallError(report)
        return report

    async def _perform(self, job: _Job, action: Action) -> Action:
        if action is Action.TRANSFER:
            begin = monotonic_ns()
            await self._site.at_boundary(lambda: self._exchange(job, begin))
            return Action.FINISH if job.run.state is State.DONE else Action.GIVE_UP
        begin = monotonic_ns()
        detail = ""
        try:
            if action is Action.FETCH:
                job.fetched = await job.channel.fetch()
                event, detail = Event.FETCHED, job.channel.origin
            else:
                event, detail = self._look(job, action)
        except (Refused, DeviceImageError) as error:
            event, detail = Event.FAILED, str(error)
            job.error = detail
        except asyncio.CancelledError:
            self._note(job, action.value, begin, "cancelled")
            raise
        self._note(job, action.value, begin, detail)
        return job.run.feed(event)

    def _look(self, job: _Job, action: Action) -> tuple[Event, str]:
        """Perform a step that takes no waiting."""
        site = self._site
        if action is Action.CHECK:
            here = job.before == job.wanted and site.origin(job.device) == job.key
            return (Event.IN_PLACE if here else Event.ELSEWHERE), job.before
        if action is Action.PROBE:
            detail = site.probe(job.device, job.wanted)
            job.image = site.known(job.device, job.key)
            return (Event.IMAGE_MISSING if job.image is None else Event.IMAGE_KNOWN), detail
        assert action is Action.VERIFY
        assert job.fetched is not None
        job.image = job.fetched.verify()
        return Event.VERIFIED, f"{job.image.__module__}.{job.image.__qualname__}"

    def _exchange(self, job: _Job, begin: int) -> None:
        """Transfer the state and switch; called between two instructions, and never left half-way."""
        site, image = self._site, job.image
        assert image is not None
        self._note(job, "wait", begin, "for the instruction to end")
        begin = monotonic_ns()
        try:
            exchange = site.transfer(job.device, image, job.wanted)
        except Exception as error:  # the image is somebody's code, and the state may not suit it
            job.error = f"the state was refused: {_short(error)}"
            self._note(job, "transfer", begin, job.error)
            job.run.feed(Event.FAILED)
            return
        self._note(job, "transfer", begin)
        job.run.feed(Event.TRANSFERRED)
        begin = monotonic_ns()
        try:
            site.switch(exchange, job.key)
        except Exception as error:
            job.error = f"the switch failed: {_short(error)}"
            job.run.feed(Event.FAILED)
            site.undo(exchange)
            self._note(job, "switch", begin, job.error)
            return
        job.moved = True
        job.run.feed(Event.SWITCHED)
        self._note(job, "switch", begin, f"{job.before} -> {job.wanted}")

    def _note(self, job: _Job, name: str, begin: int, detail: str = "") -> None:
        step = Step(name, monotonic_ns() - begin, detail)
        job.steps.append(step)
        self._site.trace(f"install.{name}", device=job.device, ns=step.ns, detail=detail)

    def _report(self, job: _Job) -> InstallReport:
        report = InstallReport(
            job.device, job.before, job.wanted, job.channel.origin, tuple(job.steps), self._site.now(), job.moved, job.error
        )
        if job.error:
            self._site.trace("install.failed", device=job.device, reason=job.error)
        elif job.moved:
            self._site.trace("install.done", device=job.device, place=job.wanted)
        return report


def _short(error: Exception) -> str:
    return str(error) or type(error).__name__
