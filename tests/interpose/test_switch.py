"""The switch at every access of short traces, at random places of random ones, and with things going wrong (H1-H3, H5-H13)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avmm.devices.ata import AtaDisk
from avmm.devices.ata.commands import HANDLERS
from avmm.devices.ata.drive import DiskModes
from avmm.devices.ata.registers import BSY, Command, Phase
from avmm.interpose.ata.sequence import Stage
from avmm.interpose.front import Way
from avmm.interpose.handover import Sequence
from avmm.interpose.switch import Outcome, Plan, Step
from tests.interpose.rig import (
    BASE,
    CONTROL,
    SECTORS,
    STATUS,
    Access,
    Guest,
    Plain,
    Switched,
    Trigger,
    acknowledge,
    command,
    compare,
    dma,
    finish,
    pio_in,
    pio_out,
)

Make = Callable[[Plain], Guest]
LONG = 10**10


def modes(m: Plain) -> Guest:
    """SET FEATURES, translation, two drives."""
    yield from command(0xEF, count=0x45, features=3)
    yield from finish(m.log)
    yield from command(0xEF, count=0x22, features=3, drive=1)
    yield from finish(m.log)
    yield from command(0xEF, features=0x82)
    yield from finish(m.log)
    yield from command(0x91, count=32)
    yield from finish(m.log)
    yield from command(0xC6, count=4, drive=1)
    yield from finish(m.log)
    for drive in (1, 0):
        yield from command(0xEC, drive=drive)
        yield from pio_in(m.log, 1, size=4)


def reading(m: Plain) -> Guest:
    yield from command(0xC6, count=2)
    yield from finish(m.log)
    yield from command(0x29, 7, 3, ext=True)
    yield from pio_in(m.log, 3, 2, size=4)
    yield from command(0x21, 70, 1, chs=True)
    yield from pio_in(m.log, 1, 1, size=4)


def writing(m: Plain) -> Guest:
    yield from command(0x39, 19, 3, ext=True)
    yield from pio_out(m.log, 3, 8, 16, size=4)
    yield from command(0x30, 25, 2)
    yield from pio_out(m.log, 2, 9, 1, size=4)


def polling(m: Plain) -> Guest:
    yield Access(CONTROL, 2)
    yield from command(0x20, 5)
    yield from pio_in(m.log, 1, size=4)
    yield from command(0x30, 6)
    yield from pio_out(m.log, 1, 3, size=4)
    yield Access(CONTROL, 0)
    yield from command(0x40, 6)
    yield from finish(m.log)


def errors(m: Plain) -> Guest:
    yield from command(0x20, SECTORS + 5)
    yield from finish(m.log)
    yield from command(0xF7)
    yield from finish(m.log)
    yield from command(0x24, SECTORS - 1, 3, ext=True)
    yield from finish(m.log)
    yield from command(0x40, 5, 4, chs=True)
    yield from finish(m.log)
    yield Access(CONTROL, 4)
    yield Access(CONTROL, 0)
    yield from finish(m.log)
    for code in (0x90, 0xE0, 0xE5, 0xE7, 0x20, 0xE5, 0xF8):
        yield from command(code, 3)
        yield from (pio_in(m.log, 1, size=4) if code == 0x20 else finish(m.log))
    yield from command(0x27, ext=True)
    yield from finish(m.log)
    yield Access(CONTROL, 0x80)
    m.log.append((yield Access(BASE + 3)))
    yield Access(CONTROL, 0)
    m.log.append((yield Access(BASE + 3)))


def bus_master(m: Plain) -> Guest:
    yield from dma(m.log, m, 0xC8, 4, 3, ext=False)
    yield from dma(m.log, m, 0xCA, 40, 3, ext=False)
    yield from dma(m.log, m, 0x25, 40, 100)


GUESTS: dict[str, tuple[Make, int, int]] = {
    "modes": (modes, 2, 5),
    "reading": (reading, 1, 9),
    "writing": (writing, 1, 9),
    "polling": (polling, 1, 7),
    "errors": (errors, 1, 2),
    "bus master": (bus_master, 1, 1),
}
"""The guest, how many drives it has, and the step: 1 switches at every access. ``long`` does so for all of them."""


@cache
def undisturbed(name: str) -> Plain:
    make, drives, _ = GUESTS[name]
    plain = Plain(drives)
    plain.run(make(plain))
    return plain


def check(name: str, triggers: list[Trigger], virtual: bool) -> Switched:
    make, drives, _ = GUESTS[name]
    plain = undisturbed(name)
    seen = Switched(triggers=triggers, drives=drives, virtual=virtual)
    at = triggers[0].plan.chosen
    if isinstance(at, From):
        at.machine = seen
    seen.run(make(seen))
    assert seen.log == plain.log
    assert [bytes(medium.data) for medium in seen.media] == [bytes(medium.data) for medium in plain.media]
    assert seen.edges == plain.edges
    assert seen.driver.spurious == 0
    return seen


class From:
    """Chooses the first place in a sequence from an access on."""

    def __init__(self, access: int) -> None:
        self.access = access
        self.machine: Switched | None = None

    def __call__(self, mirror: Sequence) -> bool:
        assert self.machine is not None
        return self.machine.accesses >= self.access and mirror.stage is not Stage.IDLE


def every(name: str, virtual: bool, how: str, step: int) -> set[str]:
    stages = set()
    for at in range(0, undisturbed(name).accesses + 1, step):
        if how == "inside":
            plan = Plan(not virtual, middle=True, bound=LONG, patience=LONG, chosen=From(at))
            seen = check(name, [Trigger(0, plan)], virtual)
        else:
            seen = check(name, [Trigger(at, Plan(not virtual, middle=how == "middle", bound=LONG, patience=LONG))], virtual)
        assert all(report.done for report in seen.reports)
        stages |= {report.stage for report in seen.reports}
    return stages


@pytest.mark.parametrize("how", ["between", "middle", "inside"])
@pytest.mark.parametrize("virtual", [False, True], ids=["virtualize", "devirtualize"])
@pytest.mark.parametrize("name", GUESTS)
def test_a_switch_at_every_access_shows_in_nothing(name: str, virtual: bool, how: str) -> None:
    """H1-H3, H5, H6, H8-H10."""
    stages = every(name, virtual, how, GUESTS[name][2])
    if how == "between":
        assert stages == {Stage.IDLE.value}
    if how == "inside" and name in ("reading", "writing"):
        assert (Stage.DATA_IN if name == "reading" else Stage.DATA_OUT).value in stages


@pytest.mark.long
@pytest.mark.parametrize("how", ["between", "middle", "inside"])
@pytest.mark.parametrize("virtual", [False, True], ids=["virtualize", "devirtualize"])
@pytest.mark.parametrize("name", GUESTS)
def test_a_switch_at_really_every_access(name: str, virtual: bool, how: str) -> None:
    every(name, virtual, how, 1)


@pytest.mark.parametrize("name", GUESTS)
def test_back_and_forth_many_times(name: str) -> None:
    """H13."""
    total = undisturbed(name).accesses
    triggers = [
        Trigger(at, Plan(i % 2 == 0, middle=i % 3 > 0, bound=LONG, patience=LONG)) for i, at in enumerate(range(1, total, max(1, total // 40)))
    ]
    seen = check(name, triggers, False)
    assert len(seen.reports) > 15
    assert all(report.done for report in seen.reports)


# -- random traces


def operation(m: Plain, number: int, lba: int, count: int, drive: int) -> Guest:
    """One of what a driver may do."""
    log = m.log
    if number == 0:
        yield from command(0x20, lba, count, drive)
        yield from pio_in(log, count, size=4)
    elif number == 1:
        yield from command(0x34, lba, count, drive, ext=True)
        yield from pio_out(log, count, lba, size=4)
    elif number == 2:
        yield from command(0xC6, count=1 << count % 5, drive=drive)
        yield from finish(log)
    elif number == 3:
        yield from dma(log, m, 0x25, lba, count, drive=drive)
    elif number == 4:
        yield from dma(log, m, 0xCA, lba, count, ext=False, drive=drive)
    elif number == 5:
        yield Access(CONTROL, 4 | count & 2)
        yield 3000
        yield Access(CONTROL, count & 2)
        yield from finish(log, registers=False)
        yield Access(CONTROL, 0)
    elif number == 6:
        yield from command(0x20 if count & 1 else 0x38, SECTORS + lba, count, drive)
        yield from finish(log)
    elif number == 7:
        yield from command(0xEF, count=(0x40, 0x22, 0x0B, 0x7F)[count % 4], drive=drive, features=3)
        yield from finish(log)
    elif number == 8:
        yield from command(0xEC, drive=drive)
        yield from pio_in(log, 1, size=4)
    elif number == 9:
        yield from command(0x40, lba, count, drive)
        yield count * 1000
        yield from finish(log)
    elif number == 10:
        yield from command(0xC6, count=2, drive=drive)
        yield from finish(log)
        yield from command(0x29 if count & 1 else 0xC4, lba, count, drive, ext=bool(count & 1))
        yield from pio_in(log, count, 2, size=4)
    elif number == 11:
        yield from command(0xC6, count=4, drive=drive)
        yield from finish(log)
        yield from command(0x39 if count & 1 else 0xC5, lba, count, drive, ext=bool(count & 1))
        yield from pio_out(log, count, lba, 4, size=4)
    elif number == 12:
        yield from command(0x20 if count & 1 else 0x30, lba, count, drive, chs=True)
        yield from (pio_in(log, count, size=4) if count & 1 else pio_out(log, count, lba, size=4))
    elif number == 13:
        yield Access(CONTROL, count & 2)  # a driver that polls, or one that does not
    else:
        yield from by_interrupts(m, lba, count, drive)


def by_interrupts(m: Plain, lba: int, count: int, drive: int) -> Guest:
    """Read as an operating system does: nothing is looked at before the interrupt."""
    yield Access(CONTROL, 0)
    yield from acknowledge(m.log)
    yield from command(0x20, lba, count, drive)
    for _ in range(count):
        while not m.line(14).level:
            yield 2000
        m.log.append(("status", (yield Access(STATUS))))
        words = []
        for _ in range(128):
            words.append((yield Access(BASE, None, 4)))
        m.log.append(hash(tuple(words)))


OPERATIONS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 500), st.integers(1, 5), st.integers(0, 1)), min_size=1, max_size=6)
SWITCHES = st.lists(st.tuples(st.integers(0, 1500), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS, switches=SWITCHES, virtual=st.booleans())
def test_random_traces_with_switches_at_random_places(
    operations: list[tuple[int, int, int, int]], switches: list[tuple[int, bool]], virtual: bool
) -> None:
    def guest(m: Plain) -> Guest:
        for parameters in operations:
            yield from operation(m, *parameters)

    triggers = [
        Trigger(at, Plan((i % 2 == 0) is not virtual, middle=middle, bound=LONG, patience=LONG))
        for i, (at, middle) in enumerate(sorted(switches))
    ]
    compare(guest, triggers, drives=2, virtual=virtual)


# -- what goes wrong


def machine(virtual: bool = False) -> Switched:
    return Switched(virtual=virtual)


def hang(m: Switched) -> None:
    """The physical device stays busy."""
    channel = m.front.physical.channel
    channel.sequencer.phase = Phase.BUSY
    channel.drives[0].task.status = BSY  # type: ignore[union-attr]


def physical_modes(m: Switched) -> DiskModes:
    drive = m.front.physical.channel.drives[0]
    assert isinstance(drive, AtaDisk)
    return drive.modes


def revive(m: Switched) -> None:
    channel = m.front.physical.channel
    channel.sequencer.phase = Phase.IDLE
    channel.drives[0].task.status = 0x50  # type: ignore[union-attr]


def way(m: Switched) -> Way:
    return m.front.way


def reads(m: Switched) -> None:
    """The guest has a whole device."""
    m.log.clear()
    m.run(reading(m))
    assert m.log == undisturbed("reading").log


def test_a_device_that_hangs_is_left_to_the_guest_at_the_bound() -> None:
    m = machine()
    hang(m)
    m.switch(Plan(True, middle=True, bound=2_000_000))
    assert way(m) is Way.HELD
    assert m.perform(Access(CONTROL)) == BSY
    m.perform(Access(BASE + 2, 0x77))
    m.pass_time(1_999_000)
    assert not m.reports
    m.pass_time(1_000)
    (report,) = m.reports
    assert (report.outcome, report.machine_pause_ns, report.deferred) == (Outcome.ROLLED_BACK, 2_000_000, 1)
    assert "bound of 2 ms" in report.reason
    assert way(m) is Way.DIRECT
    revive(m)
    reads(m)


def test_between_has_patience_without_a_pause() -> None:
    """H5."""
    m = machine()
    hang(m)
    m.switch(Plan(True, patience=5_000_000))
    m.pass_time(5_000_000)
    (report,) = m.reports
    assert (report.outcome, report.machine_pause_ns, report.observed_ns) == (Outcome.ROLLED_BACK, 0, 5_000_000)
    assert way(m) is Way.DIRECT


def test_a_guests_reset_goes_through_to_a_busy_device() -> None:
    m = machine()
    m.perform(Access(CONTROL, 4))
    m.switch(Plan(True, middle=True))
    m.pass_time(1000)
    assert way(m) is Way.HELD  # it cannot be told from a command in progress
    m.perform(Access(CONTROL, 0))
    m.pass_time(1000)
    assert m.perform(Access(CONTROL)) == 0x50
    assert m.reports[-1].done
    reads(m)


@pytest.mark.parametrize("defer", [False, True])
def test_past_the_bound(defer: bool) -> None:
    """H11, H12: the device is the guest's again, or accesses are logged on."""
    m = machine()
    m.run(command(0x40, 5, 200))
    m.switch(Plan(True, middle=True, bound=100_000, defer=defer))
    m.pass_time(99_000)
    m.perform(Access(BASE + 2, 0x55))
    assert way(m) is Way.HELD
    m.pass_time(400_000)
    (report,) = m.reports
    assert report.outcome is (Outcome.DEFERRED if defer else Outcome.ROLLED_BACK)
    assert report.deferred == 1
    written = m.front.target.channel.read(BASE + 2, 1)
    assert (written == 0x55, m.front.target is m.front.emulated) == (defer, defer)  # a busy device takes no writes
    assert report.machine_pause_ns == (220_000 if defer else 100_000)
    reads(m)


def test_a_device_that_hangs_while_it_is_given_back() -> None:
    m = machine(virtual=True)
    hang(m)
    m.switch(Plan(False, bound=1_000_000))
    m.pass_time(1_000_000)
    (report,) = m.reports
    assert report.outcome is Outcome.ROLLED_BACK
    assert way(m) is Way.VIRTUALIZED
    revive(m)
    m.pass_time(10_000_000)
    reads(m)
    m.switch(Plan(False))
    assert m.reports[-1].done
    reads(m)


@pytest.mark.parametrize("code", [0x25, 0x24, 0x29])
def test_given_up_while_the_device_works_on_the_guests_transfer(code: int) -> None:
    """H10, H11: what the device was given to do is ended, so that the next attempt finds it as it was."""
    m = machine(virtual=True)
    m.run(command(0xC6, count=4))
    m.pass_time(1_000_000)
    m.run(command(code, 5, 8, ext=True))
    m.pass_time(1_000_000)
    for bound in (1_000, 20_000, 60_000, 100_000):
        m.switch(Plan(False, middle=True, bound=bound))
        m.pass_time(bound)
        if m.reports[-1].done:
            break
        m.pass_time(1_000_000)
    assert [report.outcome for report in m.reports[:2]] == [Outcome.ROLLED_BACK] * 2
    assert m.reports[-1].done, m.reports


def test_the_drivers_patience_ends() -> None:
    m = machine(virtual=True)
    hang(m)
    m.run(command(0x20, 3))
    m.pass_time(6_000_000_000)
    assert m.perform(Access(STATUS)) == 0x51  # SRST brought the device back: an error, not the end
    assert m.driver.broken == ""
    reads(m)


def test_a_spurious_interrupt_of_the_physical_device_does_not_reach_the_guest() -> None:
    """H9."""
    m = machine(virtual=True)
    edges = m.edges
    m.front.physical.irq.set(True)
    m.front.physical.irq.set(False)
    assert (m.edges, m.driver.spurious) == (edges, 1)
    reads(m)


def test_a_bad_sector_is_the_guests_to_see() -> None:
    def guest(m: Plain) -> Guest:
        m.media[0].bad.add(8)
        yield from command(0x24, 5, 6, ext=True)
        yield from pio_in(m.log, 6, size=4)
        yield from command(0x20, 8)
        yield from finish(m.log)

    for at in range(0, 430, 13):
        compare(guest, [Trigger(at, Plan(True, middle=True, bound=LONG))])
    compare(guest, [], virtual=True)


@pytest.mark.parametrize("virtual", [False, True])
def test_cancelled(virtual: bool) -> None:
    m = machine(virtual)
    hang(m)
    switch = m.switch(Plan(not virtual, middle=True, bound=LONG))
    m.pass_time(50_000)
    assert switch.step is Step.HOLDING
    assert switch.cancel()
    assert [report.outcome for report in m.reports] == [Outcome.CANCELLED]
    assert way(m) is (Way.VIRTUALIZED if virtual else Way.DIRECT)
    assert not switch.cancel()
    revive(m)
    m.pass_time(10_000_000)
    reads(m)


@pytest.mark.parametrize("virtual", [False, True])
def test_a_machine_reset_ends_a_switch(virtual: bool) -> None:
    m = machine(virtual)
    hang(m)
    m.switch(Plan(not virtual, middle=True, bound=LONG))
    m.front.reset()
    revive(m)
    assert [(report.outcome, report.reason) for report in m.reports] == [(Outcome.ROLLED_BACK, "the machine was reset")]
    m.pass_time(10_000_000)
    reads(m)


def test_reads_that_cannot_be_busy_wait_in_their_instruction() -> None:
    """H7: the guest finds the device busy; what BSY cannot answer waits."""
    m = machine()
    m.run(command(0x40, 5, 200))
    m.switch(Plan(True, middle=True, bound=LONG))
    assert m.perform(Access(STATUS)) == BSY
    assert m.waits == 0
    assert m.perform(Access(BASE + 3)) == 204  # the last sector: what it reads when the command is over
    assert m.waits == 1
    assert m.reports[0].done


def test_modes_are_reported_and_carried() -> None:
    """H8."""
    m = machine()
    m.run(command(0xC6, count=4))
    m.run(finish(m.log))
    m.run(command(0xEF, count=0x44, features=3))
    m.run(finish(m.log))
    m.switch(Plan(True))
    carried = m.reports[0].modes
    assert carried is not None
    assert carried.drives[0] is not None
    assert (carried.drives[0].multiple, carried.drives[0].transfer.udma, carried.interrupts) == (4, 4, True)
    m.run(command(0xEF, count=0x22, features=3))
    m.run(finish(m.log))
    m.run(command(0xC6, count=8))
    m.run(finish(m.log))
    assert physical_modes(m).transfer.udma == 4  # not yet
    m.switch(Plan(False))
    now = physical_modes(m)
    assert (now.multiple, now.transfer.udma, now.transfer.mdma) == (8, None, 2)


def do(m: Plain, code: int, count: int = 1, features: int | None = None) -> None:
    """One command, to its end."""
    m.run(command(code, count=count, features=features))
    m.run(finish(m.log))


def test_modes_that_cannot_be_read_stay_as_the_guest_set_them() -> None:
    """H8: IDENTIFY DEVICE tells neither the PIO mode nor whether a reset brings back the defaults."""
    m = machine()
    do(m, 0xEF, 0x0B, features=3)
    do(m, 0xEF, features=0xCC)
    set_before = physical_modes(m)
    for _ in range(2):
        m.switch(Plan(True))
        do(m, 0x40, features=0x66)  # that FEATURES was seen does not mean that it was used
        m.switch(Plan(False))
    assert (set_before.transfer.pio, set_before.defaults_on_reset) == (3, True)
    assert physical_modes(m) == set_before
    m.switch(Plan(True))
    do(m, 0xEF, 0x0C, features=3)
    do(m, 0xEF, features=0x66)
    m.switch(Plan(False))
    assert (physical_modes(m).transfer.pio, physical_modes(m).defaults_on_reset) == (4, False)
    assert all(report.done for report in m.reports)


@pytest.mark.parametrize("control", [0, 2])
@pytest.mark.parametrize("count", [0x00, 0x80, 0xFF, 0x55])
@pytest.mark.parametrize(("code", "power"), [(0xE0, 0x00), (0xE1, 0x80), (0x40, 0xFF), (0xE6, None)])
def test_power_modes_are_told_apart_whatever_the_sector_count_was(code: int, power: int | None, count: int, control: int) -> None:
    """H8: a sleeping drive answers no command, and one that is awake may answer with what was there."""
    m = machine()
    m.perform(Access(CONTROL, control))
    do(m, code)
    m.perform(Access(BASE + 2, 0x77))
    m.perform(Access(BASE + 2, count))
    m.switch(Plan(True, middle=True))
    (report,) = m.reports
    (found, _) = report.modes.drives
    assert (found.power, found.asleep) == (power or 0, power is None)
    assert report.modes.interrupts is (control == 0 or power is None)  # a drive that sleeps cannot be asked
    assert m.perform(Access(BASE + 2)) == count
    m.perform(Access(CONTROL, 0x80))
    assert m.perform(Access(BASE + 2)) == 0x77
    m.switch(Plan(False, middle=True))
    assert m.reports[-1].done
    physical = physical_modes(m)
    assert (physical.power, physical.asleep) == (power or 0, power is None)
    assert m.perform(Access(BASE + 2)) == 0x77
    m.perform(Access(CONTROL, control))
    assert m.perform(Access(BASE + 2)) == count


@pytest.mark.parametrize("virtual", [False, True])
def test_saved_and_restored_in_the_middle_of_a_transfer(virtual: bool) -> None:
    m = machine(virtual)
    m.run(command(0x20, 3))
    m.pass_time(1_000_000)
    assert [m.perform(Access(BASE, None, 4)) for _ in range(2)] == [0x10003] * 2
    state = m.front.save()
    rest = [m.perform(Access(BASE, None, 4)) for _ in range(126)]
    m.front.restore(state)
    assert [m.perform(Access(BASE, None, 4)) for _ in range(126)] == rest
    other = machine(not virtual)
    with pytest.raises(ValueError, match="switch it first"):
        other.front.restore(state)


def test_a_device_that_interrupts_spuriously_during_a_switch() -> None:
    """H9: the driver hears it, the guest does not."""
    m = machine(virtual=True)
    reads(m)
    hang(m)
    m.switch(Plan(False, bound=1_000_000))
    assert way(m) is Way.HELD
    edges = m.edges
    m.front.physical.irq.set(True)
    m.front.physical.irq.set(False)
    m.pass_time(1_000_000)
    assert m.edges == edges
    revive(m)
    m.pass_time(10_000_000)
    reads(m)


def test_a_device_that_does_not_identify_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It errs in the middle of a switch: that fails, says so, and the guest has the device that there is."""
    m = machine()
    with monkeypatch.context() as patch:
        patch.delitem(HANDLERS, Command.IDENTIFY)
        m.switch(Plan(True))
    (report,) = m.reports
    assert (report.outcome, way(m), report.modes) == (Outcome.FAILED, Way.DIRECT, None)
    assert "does not identify itself (status 51h)" in report.reason
    reads(m)
    m.switch(Plan(True))
    assert m.reports[-1].done
    reads(m)


def test_nothing_is_left_behind() -> None:
    """H13: after many cycles the guest reaches the device by the same functions as before the first, and nothing waits for anything."""
    m = machine()
    before = m.front.handlers
    for number in range(50):
        for virtualize in (True, False):
            m.switch(Plan(virtualize, middle=bool(number % 2)))
            assert m.reports[-1].done
    assert m.front.handlers == before
    assert before[2]
    assert m.front.engine is m.front.physical.engine
    assert (m.front._log, m.front._waiting, m.clock.next_due()) == ([], [], None)
    m.run(command(0x20, 3))
    m.pass_time(1_000_000)
    assert m.windows[BASE][2] == 0  # the data are the processor's to move, without an exit
    reads(machine())
