"""The switch and the front, every state crossed with every event, on a device that only remembers its accesses (H5-H7, H9-H12)."""

from __future__ import annotations

import enum
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from avmm.devices.line import InterruptLine
from avmm.interpose.front import Front, Way
from avmm.interpose.handover import DeviceHangs, Place, Unsuitable
from avmm.interpose.strand import Resume, Suspend
from avmm.interpose.switch import Outcome, Plan, Step, Switch, SwitchReport
from tests.devices.bench import Bench
from tests.interpose.rig import Answer

STATUS, DATA, URGENT = 0x100, 0x101, 0x102
BUSY = 0x80
BOUND, PATIENCE = 1_000, 10_000


class Toy:
    """A device that remembers what it was asked; also its link."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.irq = InterruptLine(5)
        self.asked: list[tuple[str, int, int]] = []
        self.guest = False

    @property
    def handlers(self) -> tuple[Any, Any]:
        return self.read, lambda address, size, value: self.write(address, value, size)

    def read(self, address: int, size: int = 1) -> int:
        self.asked.append(("in", address, len(self.asked)))
        return len(self.asked)

    def write(self, address: int, value: int, size: int = 1) -> None:
        self.asked.append(("out", address, value))

    def give_to(self, *, guest: bool) -> None:
        self.guest = guest

    def reset(self) -> None:
        self.asked.append(("reset", 0, 0))

    def save(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        raise AssertionError


class Phase(enum.Enum):
    ANY = "any"


class ToySequence:
    stage = Phase.ANY
    over = resting = True
    word = 0


class ToyFront(Front[Toy]):
    def begin_sequence(self) -> None:
        self.mirror = ToySequence()

    def look(self) -> None: ...

    def seen_read(self, address: int, size: int, value: int) -> None: ...

    def seen_write(self, address: int, size: int, value: int) -> None: ...

    def busy(self, address: int) -> int | None:
        return BUSY if address == STATUS else None

    def urgent(self, address: int) -> bool:
        return address == URGENT


class ToyDriver:
    def __init__(self) -> None:
        self.attached = 0
        self.on_idle: Callable[[], None] = lambda: None

    def attach(self) -> None:
        self.attached += 1

    def detach(self) -> None:
        self.attached = 0


class ToyHandover:
    """Its coroutines go on when the test says with what."""

    def __init__(self) -> None:
        self.driver = ToyDriver()
        self.ready = False
        self.calls: list[str] = []
        self.resume: Resume | None = None
        self.carried: object = None
        self.commit: Callable[[], None] = lambda: None

    def may_take(self, *, middle: bool) -> bool:
        return self.ready

    may_give = may_take

    def place(self, *, virtualized: bool) -> Place:
        return Place("somewhere", 7)

    async def _work(self, name: str) -> object:
        def begin(resume: Resume) -> None:
            self.resume = resume

        self.calls.append(name)
        return await Suspend(begin)

    def take(self, commit: Callable[[], None]) -> Coroutine[Any, Any, Any]:
        self.commit = commit
        return self._work("take")

    def taken(self, found: Any) -> None:
        self.calls.append("taken")
        self.carried = found

    async def give(self) -> None:
        self.carried = await self._work("give")

    def modes(self) -> object:
        return self.carried

    def given(self) -> None:
        self.calls.append("given")

    async def reclaim(self) -> None:
        self.calls.append("reclaim")


class Rig(Bench):
    """A switch brought into one of the states."""

    def __init__(self, state: str, virtualize: bool, defer: bool) -> None:
        super().__init__()
        self.virtualize = virtualize
        self.physical, self.emulated = Toy("physical"), Toy("emulated")
        self.front = ToyFront(self, "toy", self.physical, self.emulated, Answer)
        self.handover = ToyHandover()
        self.reports: list[SwitchReport] = []
        if not virtualize:
            self.front.release(Way.VIRTUALIZED)
        self.before, self.after = (self.physical, self.emulated) if virtualize else (self.emulated, self.physical)
        self.before.irq.set(True)
        self.switch = Switch(self.front, self.handover, Plan(virtualize, bound=BOUND, defer=defer, patience=PATIENCE), self.reports.append)
        if state == "observing":
            return
        self.handover.ready = True
        self.handover.driver.on_idle()
        if state in ("committed", "late"):
            self.handover.commit()
        if state == "late":
            self.pass_time(BOUND)
        if state == "ended":
            self.go_on("modes")

    def go_on(self, value: object) -> None:
        assert self.handover.resume is not None
        self.handover.resume(value)

    def out(self, address: int, value: int) -> Answer | None:
        _, write, _ = self.front.handlers
        answer = write(address, 1, value)
        assert answer is None or isinstance(answer, Answer)
        return answer

    def enter(self, address: int) -> object:
        read, _, _ = self.front.handlers
        return read(address, 1)


STATES = ("observing", "holding", "committed", "late", "ended")
NOTHING = "nothing"
R, D, F, C, L = Outcome.ROLLED_BACK, Outcome.DONE, Outcome.FAILED, Outcome.CANCELLED, Outcome.DEFERRED


def idle(rig: Rig) -> None:
    rig.handover.ready = True
    rig.handover.driver.on_idle()


EVENTS: dict[str, Callable[[Rig], object]] = {
    "suitable": idle,
    "done": lambda rig: rig.go_on("modes"),
    "unsuitable": lambda rig: rig.go_on(Unsuitable("not here")),
    "hangs": lambda rig: rig.go_on(DeviceHangs("it hangs")),
    "bound": lambda rig: rig.pass_time(BOUND),
    "patience": lambda rig: rig.pass_time(PATIENCE),
    "cancel": lambda rig: rig.switch.cancel(),
    "reset": lambda rig: rig.front.reset(),
    "urgent": lambda rig: rig.out(URGENT, 1),
    "machine ends": lambda rig: rig.switch.abandon(),
}
# What is reported after the event, None for nothing yet. Taking: observing, holding, committed, late. Giving: observing, holding.
TAKING: dict[str, tuple[object, ...]] = {
    "suitable": (None, None, None, None, NOTHING),
    "done": ("-", D, D, L, "-"),
    "unsuitable": ("-", None, "-", "-", "-"),
    "hangs": ("-", F, F, F, "-"),
    "bound": (None, R, None, None, NOTHING),
    "patience": (R, R, None, None, NOTHING),
    "cancel": (C, C, None, None, NOTHING),
    "reset": (R, R, R, R, NOTHING),
    "urgent": (None, None, None, None, NOTHING),
    "machine ends": (C, C, C, C, NOTHING),
}
GIVING: dict[str, tuple[object, ...]] = {
    "suitable": (None, None, "-", "-", NOTHING),
    "done": ("-", D, "-", "-", "-"),
    "unsuitable": ("-", "-", "-", "-", "-"),
    "hangs": ("-", F, "-", "-", "-"),
    "bound": (None, R, "-", "-", NOTHING),
    "patience": (R, R, "-", "-", NOTHING),
    "cancel": (C, C, "-", "-", NOTHING),
    "reset": (R, R, "-", "-", NOTHING),
    "urgent": (None, None, "-", "-", NOTHING),
    "machine ends": (C, C, "-", "-", NOTHING),
}
CASES = [
    (virtualize, state, event, table[event][column])
    for virtualize, table in ((True, TAKING), (False, GIVING))
    for column, state in enumerate(STATES)
    for event in EVENTS
    if table[event][column] != "-"
]


@pytest.mark.parametrize(("virtualize", "state", "event", "outcome"), CASES)
def test_every_state_with_every_event(virtualize: bool, state: str, event: str, outcome: object) -> None:
    """Nothing is lost, nothing is done twice, the order is kept and the interrupt line keeps its level, whatever happens when."""
    rig = Rig(state, virtualize, defer=False)
    held = rig.front.way is Way.HELD
    rig.out(DATA, 1)  # one access before the event ...
    waits = rig.enter(DATA) if held else None
    already = len(rig.reports)
    answer = EVENTS[event](rig)
    new = rig.reports[already:]
    assert [report.outcome for report in new] == ([] if outcome in (None, NOTHING) else [outcome])
    assert not (event == "cancel" and outcome is None and answer)  # too late to cancel
    rig.out(DATA, 2)  # ... and one after it
    if rig.front.way is Way.HELD:
        rig.go_on("modes")  # let it end
    rig.pass_time(2 * PATIENCE)
    (report,) = rig.reports
    assert rig.switch.step is Step.ENDED
    assert gc.isenabled()
    owner = rig.after if report.done else rig.before
    other = rig.before if report.done else rig.after
    assert rig.front.target is owner
    assert (owner.guest, rig.front.way) == (True, Way.DIRECT if owner is rig.physical else Way.VIRTUALIZED)
    assert (report.modes is not None) == report.done
    writes = [(toy.name, value) for toy in (other, owner) for what, address, value in toy.asked if (what, address) == ("out", DATA)]
    assert [value for _, value in writes] == [1, 2]  # each once, in order
    if held:
        assert isinstance(waits, Answer)
        assert len(waits.values) == 1
    assert rig.handover.driver.attached == (rig.front.target is rig.emulated and virtualize)
    assert rig.handover.calls.count("taken") + rig.handover.calls.count("given") == report.done
    assert rig.line(5).level == owner.irq.level
    rig.out(DATA, 3)
    assert owner.asked[-1] == ("out", DATA, 3)


@pytest.mark.parametrize("virtualize", [True, False])
def test_past_the_bound_defer_goes_on(virtualize: bool) -> None:
    """H11, H12: it says so, and what was logged is replayed."""
    rig = Rig("holding", virtualize, defer=True)
    assert rig.enter(STATUS) == BUSY
    for value in range(5):
        rig.out(DATA, value)
    rig.pass_time(3 * BOUND)
    assert not rig.reports
    rig.go_on("modes")
    (report,) = rig.reports
    assert (report.outcome, report.deferred, report.machine_pause_ns, report.bound_ns) == (L, 5, 3 * BOUND, BOUND)
    assert "past the bound" in report.reason
    assert [value for _, _, value in rig.after.asked] == list(range(5))


def test_the_bound_is_looked_at_by_the_clock_and_not_only_by_its_timer() -> None:
    """H11: the host may run others between a step and the next, and the timer no sooner."""
    rig = Rig("holding", True, defer=False)
    rig.time += BOUND + 1
    with pytest.raises(Exception, match="^$"):
        rig.handover.commit()  # nothing has been changed yet
    rig.pass_time(2 * PATIENCE)
    assert [report.outcome for report in rig.reports] == [R]
    rig = Rig("holding", False, defer=False)
    rig.time += BOUND + 1
    rig.go_on("modes")
    assert [report.outcome for report in rig.reports] == [R]
    rig = Rig("committed", True, defer=False)
    rig.time += BOUND + 1
    rig.go_on("modes")
    assert [report.outcome for report in rig.reports] == [L]


def test_a_log_that_is_full_lets_writes_wait() -> None:
    rig = Rig("holding", True, defer=True)
    answers = [rig.out(DATA, value & 0xFF) for value in range(1030)]
    assert answers[:1024] == [None] * 1024
    assert all(isinstance(answer, Answer) and not answer.values for answer in answers[1024:])
    rig.go_on("modes")
    assert all(isinstance(answer, Answer) and answer.values == [0] for answer in answers[1024:])
    assert [value for _, _, value in rig.emulated.asked] == [value & 0xFF for value in range(1030)]


def test_a_bug_of_ours_is_not_the_devices_fault() -> None:
    rig = Rig("holding", True, defer=False)
    with pytest.raises(ZeroDivisionError):
        rig.go_on(ZeroDivisionError("ours"))
    assert [report.outcome for report in rig.reports] == [F]
    assert rig.front.way is Way.DIRECT


def test_an_interrupt_while_held_is_replayed_to_whoever_answers() -> None:
    """H9: no edge is lost and none is new."""
    rig = Rig("holding", True, defer=False)
    edges = rig.line(5).edges
    rig.emulated.irq.set(True)
    rig.go_on("modes")
    assert (rig.line(5).level, rig.line(5).edges) == (True, edges)
    rig.emulated.irq.set(False)
    rig.emulated.irq.set(True)
    assert rig.line(5).edges == edges + 1
    rig.physical.irq.set(False)
    assert rig.line(5).level
