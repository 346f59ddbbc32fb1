"""The I/O-sequence state machine: every stage crossed with every event (H4)."""

from __future__ import annotations

import pytest

from avmm.devices.ata.registers import NIEN, Address
from avmm.devices.ata.transfer import BEFORE_MEDIUM
from avmm.interpose.ata.sequence import AtaSequence, Flow, Issue, Stage

U, I, S, B, IN, OUT, D, T, R = (  # noqa: E741
    Stage.UNKNOWN, Stage.IDLE, Stage.SETUP, Stage.ISSUED, Stage.DATA_IN, Stage.DATA_OUT, Stage.DMA, Stage.STATUS, Stage.RESET,
)  # fmt: skip
READY, BUSY, DRQ = 0x50, 0x80, 0x58


def set_up(mirror: AtaSequence, code: int | None = None, times: int = 1) -> None:
    for _ in range(times):
        for offset, value in ((6, 0xE0), (2, 1), (3, 5), (4, 0), (5, 0)):
            mirror.write(offset, 1, value)
    if code is not None:
        mirror.write(7, 1, code)


def make(stage: Stage) -> AtaSequence:
    """A mirror in a stage, by the events that lead there."""
    mirror = AtaSequence()
    if stage is U:
        return mirror
    mirror.look(READY, False)
    if stage in (S, B, IN, OUT, D):
        set_up(mirror)
    if stage in (B, IN, OUT, D):
        mirror.write(7, 1, {B: 0x40, IN: 0x20, OUT: 0x30, D: 0xC8}[stage])
    if stage is IN:
        mirror.look(DRQ, True)
    elif stage in (OUT, D):
        mirror.look(DRQ, False)
    elif stage is T:
        mirror.look(READY, True)
    elif stage is R:
        mirror.device_control(4)
    assert mirror.stage is stage
    return mirror


EVENTS = {
    "busy": lambda m: m.look(BUSY, False),
    "data": lambda m: m.look(DRQ, False),
    "over": lambda m: m.look(READY, False),
    "interrupt": lambda m: m.look(READY, True),
    "register": lambda m: m.write(2, 1, 1),
    "command": lambda m: m.write(7, 1, 0x40),
    "read word": lambda m: m.read(0, 2),
    "write word": lambda m: m.write(0, 2, 0x1234),
    "reset": lambda m: m.device_control(4),
    "no reset": lambda m: m.device_control(0),
}
TABLE = {
    #            U  I  S  B  IN   OUT  D  T  R
    "busy":       (B, B, B, B, B, B, B, B, R),
    "data":       (U, U, U, U, IN, OUT, D, U, R),
    "over":       (I, I, S, I, I, I, I, I, R),
    "interrupt":  (T, T, T, T, T, T, T, T, R),
    "register":   (S, S, S, B, IN, OUT, D, T, R),
    "command":    (U, B, B, B, IN, OUT, D, B, R),
    "read word":  (U, I, S, B, IN, OUT, D, T, R),
    "write word": (U, I, S, B, IN, OUT, D, T, R),
    "reset":      (R, R, R, R, R, R, R, R, R),
    "no reset":   (U, I, S, B, IN, OUT, D, T, I),
}  # fmt: skip


@pytest.mark.parametrize("event", TABLE)
@pytest.mark.parametrize(("column", "stage"), list(enumerate((U, I, S, B, IN, OUT, D, T, R))), ids=lambda v: getattr(v, "name", ""))
def test_every_stage_and_event(column: int, stage: Stage, event: str) -> None:
    """H4."""
    mirror = make(stage)
    EVENTS[event](mirror)
    assert mirror.stage is TABLE[event][column]
    assert mirror.word == (1 if (stage, event) in ((IN, "read word"), (OUT, "write word")) else 0)
    assert bytes(mirror.data) == (b"\x34\x12" if (stage, event) == (OUT, "write word") else b"")
    assert mirror.over == (mirror.stage is I)


def test_it_knows_only_what_it_has_seen() -> None:
    mirror = AtaSequence()
    mirror.look(READY, False)
    mirror.write(7, 1, 0x20)
    assert mirror.issue is None  # registers were written before it looked
    mirror.look(READY, False)
    set_up(mirror, 0x24)
    assert mirror.issue is None  # 48-bit: each register twice
    mirror.look(READY, False)
    set_up(mirror, 0x24, times=2)
    assert mirror.issue is not None
    assert (mirror.control, mirror.features) == (None, None)


@pytest.mark.parametrize(("line", "control"), [(True, 0), (False, NIEN)])
def test_nien_shows_in_the_first_interrupt_that_is_due(line: bool, control: int) -> None:
    mirror = make(B)
    mirror.look(BUSY, False)
    assert mirror.control is None
    mirror.look(READY, line)
    assert mirror.control == control


@pytest.mark.parametrize(
    ("code", "registers", "previous", "flow", "address", "lba", "sectors"),
    [
        (0x20, "00 00 02 05 01 00 e0 00", "00 " * 8, Flow.PIO_IN, Address.LBA28, 0x105, 2),
        (0x30, "00 00 00 01 00 00 a1 00", "00 " * 8, Flow.PIO_OUT, Address.CHS, 63, 256),
        (0x25, "00 00 01 02 03 04 e0 00", "00 00 01 05 00 00 00 00", Flow.DMA_IN, Address.LBA48, 0x05040302, 0x101),
        (0xEC, "00 00 07 05 01 00 a0 00", "00 " * 8, Flow.PIO_IN, Address.CHS, BEFORE_MEDIUM, 1),
        (0xE7, "00 00 07 05 01 00 e0 00", "00 " * 8, Flow.NONE, Address.LBA28, 0x105, 7),
    ],
)
def test_a_command_as_issued(code: int, registers: str, previous: str, flow: Flow, address: Address, lba: int, sectors: int) -> None:
    issue = Issue(code, 0, bytes.fromhex(registers), bytes.fromhex(previous))
    assert (issue.flow, issue.address, issue.lba(16, 63), issue.sectors) == (flow, address, lba, sectors)
