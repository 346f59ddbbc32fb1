"""Plain registers of channel and bus master: nobody can tell that they were looked at or set, but who looks at them again."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avmm.devices.ata import AtaDisk
from avmm.devices.ata.registers import Command, Phase
from avmm.devices.device import Device
from tests.devices.ata.host import BMIDE, BUFFER, Host, PromptDisk, cd_host, disk_host, pattern, prompt_host
from tests.devices.bench import MemoryDisk

COMMANDS = (Command.READ_SECTORS, Command.WRITE_SECTORS, Command.READ_DMA, Command.WRITE_DMA, Command.SET_FEATURES, Command.FLUSH_CACHE, 0xFF)
DEVICES = (0x00, 0xA0, 0xB0, 0xE0, 0xF0)


def two_disks(virtual: bool) -> Host:
    media = PromptDisk(64), PromptDisk(64)
    for seed, medium in enumerate(media):
        medium.data[:] = pattern(64, seed)
    host = Host([AtaDisk(medium) for medium in media], ram=0x10800)
    host.clock.virtual = virtual
    host.prd((BUFFER, 512), (BUFFER + 512, 1024))
    return host


def outward(host: Host) -> tuple[object, ...]:
    """All that others than the registers have of channel and bus master, but for the line's being low."""
    sequencer, engine = host.ata.sequencer, host.dma.engines[0]
    windows = {port: (bytes(buffer), out, at) for port, (buffer, out, at) in host.windows.items()}
    walk = (engine.entry, engine.address, engine.left, engine.last)
    media = [bytes(drive.disk.data) for drive in host.ata.present if isinstance(drive.disk, PromptDisk)]
    return (
        host.irq.edges, sequencer.pending, sequencer.generation, host.clock.next_due(), windows, walk, bytes(host.memory.view), media,
        host.dma_status() & 1,
    )  # fmt: skip


def state(host: Host) -> tuple[object, object]:
    return host.ata.save(), host.dma.save()


accesses = st.one_of(
    st.tuples(st.sampled_from([*range(0x1F1, 0x1F8), 0x3F6, 0x1F7, BMIDE, BMIDE + 2]), st.none()),
    st.tuples(st.sampled_from(range(0x1F1, 0x1F6)), st.integers(0, 3)),
    st.tuples(st.just(0x1F6), st.sampled_from(DEVICES)),
    st.tuples(st.just(0x1F7), st.sampled_from(COMMANDS)),
    st.tuples(st.just(0x3F6), st.sampled_from([0, 2, 4, 6, 0x80])),
    st.tuples(st.just(BMIDE), st.sampled_from([0, 1, 8, 9])),
    st.tuples(st.just(BMIDE + 2), st.sampled_from([4, 6, 0x60])),
    st.tuples(st.just(0), st.sampled_from([1000, 30_000, 1_000_000])),
)


@pytest.mark.parametrize("virtual", [False, True])
def test_what_is_plain_changes_nothing_but_registers(virtual: bool) -> None:
    counts: Counter[bool] = Counter()
    commands: Counter[bool] = Counter()

    @settings(derandomize=True, max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(accesses, min_size=20, max_size=40))
    def holds(steps: list[tuple[int, int | None]]) -> None:
        host = two_disks(virtual)
        for port, value in steps:
            if not port:
                host.pass_time(value or 0)
                continue
            device: Device = host.dma if port >= BMIDE else host.ata
            plain = device.plain(port, 1, value)
            counts[plain] += 1
            if port == 0x1F7 and value is not None:
                commands[plain] += 1
            before, whole, pending = outward(host), state(host), any(drive.task.intrq for drive in host.ata.present)
            if value is None:
                host.read(device, port)
                assert not plain or pending or state(host) == whole
            else:
                host.write(device, port, value)
            assert not plain or outward(host) == before, (hex(port), value)

    holds()
    assert min(counts.values()) > 400
    assert (commands[True] > 20) is not virtual
    assert commands[False] > 100


@pytest.mark.parametrize("virtual", [False, True])
def test_a_request_of_linux_is_one_access_that_is_not_plain_and_in_virtual_time_two(virtual: bool) -> None:
    """The accesses that libata makes for READ DMA."""
    host, _ = prompt_host()
    host.clock.virtual = virtual
    host.prd((BUFFER, 512))
    effects: list[tuple[str, int, int]] = []

    def access(port: int, value: int | None = None, size: int = 1) -> None:
        device: Device = host.dma if port >= BMIDE else host.ata
        if not device.plain(port, size, value):
            effects.append(("IN" if value is None else "OUT", port, value or 0))
        if value is None:
            host.read(device, port, size)
        else:
            host.write(device, port, value, size)

    for port, value in ((0x1F7, None), (0x1F6, 0xA0), (0x3F6, None), (0x1F7, None), (0x1F1, 0), (0x1F2, 1), (0x1F3, 7), (0x1F4, 0),
                        (0x1F5, 0), (0x1F6, 0xE0), (0x1F7, None)):  # fmt: skip
        access(port, value)
    access(BMIDE + 4, 0x1000, 4)
    for port, value in ((BMIDE, None), (BMIDE, 8), (0x1F7, 0xC8)):
        access(port, value)
    host.pass_time(1_000_000)
    for port, value in ((0x3F6, None), (BMIDE, None), (BMIDE, 9), (BMIDE + 2, None), (BMIDE, None), (BMIDE, 8), (0x3F6, None), (0x3F6, None),
                        (0x1F7, None), (BMIDE + 2, None), (BMIDE + 2, 4)):  # fmt: skip
        access(port, value)
    assert effects == [("OUT", 0x1F7, 0xC8)] * virtual + [("OUT", BMIDE, 9)]
    assert host.memory.read(BUFFER, 512) == pattern(8)[7 * 512 :]


@pytest.mark.parametrize(
    ("code", "lba", "count", "plain"),
    [
        (Command.READ_DMA, 7, 1, True), (Command.WRITE_DMA, 2047, 1, True), (Command.WRITE_DMA, 2047, 2, False),
        (Command.READ_SECTORS, 7, 1, False), (Command.FLUSH_CACHE, 0, 0, False), (Command.SET_FEATURES, 0, 0, False), (0xFF, 0, 0, False),
    ],
)  # fmt: skip
def test_a_command_is_plain_if_it_only_waits_for_the_bus_master(code: int, lba: int, count: int, plain: bool) -> None:
    host, medium = prompt_host()
    host.lba28(0, lba, count)  # the registers, and a command that is aborted
    assert host.inp(7) & 0x01
    assert host.ata.plain(0x1F7, 1, code) is plain
    host.start_dma(to_memory=code == Command.READ_DMA)
    assert not host.ata.plain(0x1F7, 1, code), "it would move them"
    host.stop_dma()
    medium.read_only = True
    assert host.ata.plain(0x1F7, 1, code) is (plain and code == Command.READ_DMA)
    host.ata.drives[0].put_in(MemoryDisk(2048))  # type: ignore[union-attr]
    assert not host.ata.plain(0x1F7, 1, code), "it is not prompt"


def test_the_status_is_plain_unless_it_is_waited_for() -> None:
    host, _ = disk_host()
    host.lba28(Command.READ_SECTORS, 3, 1)
    assert host.ata.phase is Phase.BUSY
    assert not host.ata.plain(0x1F7, 1)
    assert not host.ata.plain(0x3F6, 1)
    assert not host.ata.plain(0x1F2, 1, 1), "it is lost"
    host.pass_time(1_000_000)
    assert host.irq.level
    assert host.ata.plain(0x3F6, 1)
    assert host.ata.plain(0x1F7, 1), "it lowers the line"
    host.inp(7)
    assert not host.irq.level
    assert host.ata.plain(0x1F7, 1)
    assert not host.ata.plain(0x1F0, 2), "data"


def test_another_drive_device_control_and_an_empty_place_are_not_plain() -> None:
    host, _ = cd_host()
    assert host.ata.plain(0x1F6, 1, 0xA0)
    assert not host.ata.plain(0x1F6, 1, 0xB0), "it has a line of its own"
    for value in (0, 2, 4):
        assert not host.ata.plain(0x3F6, 1, value)
    host.out(6, 0xB0)
    assert not host.ata.plain(0x1F7, 1), "nobody is there to share it"


@pytest.mark.parametrize(
    ("offset", "size", "value", "plain"),
    [(0, 1, 8, True), (0, 1, 9, False), (2, 1, 4, True), (4, 4, 0x1000, True), (5, 4, 0x1000, False), (0, 4, 0, False), (4, 2, 0, False), (8, 1, 0, False)],
)  # fmt: skip
def test_writes_to_the_bus_master(offset: int, size: int, value: int, plain: bool) -> None:
    host, _ = disk_host()
    assert host.dma.plain(BMIDE + offset, size, value) is plain
    host.start_dma(to_memory=True)
    assert not host.dma.plain(BMIDE + offset, size, value), "bytes may be moved at any time"
    assert not host.dma.plain(BMIDE + 2, 1)
