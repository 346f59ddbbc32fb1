"""Recorded input: given again it makes the same run, and a run that is another says where first."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

import avmm
import guests
from avmm.control import record as records
from avmm.control.commands import COMMANDS
from avmm.control.commands.target import Target
from avmm.control.inputs import LIMIT, Diverged, InputsFull
from avmm.control.qmp import QmpError
from avmm.control.record import Recorder, RecordError, Replay
from avmm_console.serial_io import CHUNK, ENOUGH, SerialStdio
from tests.cpu.asm import assemble
from tests.debug.machines import END, LOAD
from tests.turns import turns, until

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def host() -> AsyncIterator[avmm.Host]:
    async with avmm.Host() as host:
        yield host


async def recorded(host: avmm.Host, path: Path, end: str = "halt\n", **fields: object) -> avmm.Vm:
    """Record a session: keys, the mouse, the serial line, the reset button; it ends when the guest is off."""
    config = {"memory": "16M", "disks": [avmm.Disk(guests.image(), "overlay")]} | fields
    vm = await host.create_vm(avmm.VmConfig(name="recorded", **config))  # type: ignore[arg-type]
    recorder = await Recorder.begin(vm, path)
    await vm.start()
    await vm.screen.wait_for("ok>")
    await vm.keyboard.type("write note kept\nsum pattern.txt\n")
    vm.mouse.move(3, 4)
    vm.serial.write("xyz")
    await vm.sleep(0.2)
    await vm.reset()
    await vm.wait_until(lambda: vm.stats.resets == 1, 1)
    await vm.screen.wait_for("ok>")
    await vm.keyboard.type("read note\n" + end)
    if end == "halt\n":
        await vm.wait_off()
    else:
        await vm.sleep(0.1)
    await recorder.close()
    assert recorder.error is None
    return vm


async def replayed(host: avmm.Host, path: Path) -> avmm.Vm:
    replay = await Replay.make(host, records.read(path), "replayed")
    await replay.run()
    return replay.vm


async def diverges(host: avmm.Host, record: records.Record) -> str:
    replay = await Replay.make(host, record, "diverging")
    with pytest.raises(Diverged) as difference:
        await replay.run()
    await host.remove_vm(replay.vm)
    return str(difference.value)


@pytest.mark.parametrize("end", ["halt\n", "dir\n"])
async def test_a_replay_is_the_same_run(host: avmm.Host, tmp_path: Path, end: str) -> None:
    vm = await recorded(host, tmp_path / "r", end)
    record = records.read(tmp_path / "r")
    kinds = {entry.kind for entry in record.inputs}
    assert kinds == {"press", "release", "mouse", "serial", "reset", "check"}
    assert sum(entry.kind == "check" for entry in record.inputs) >= 5
    again = await replayed(host, tmp_path / "r")
    assert again.serial.output == vm.serial.output
    assert again.screen.text() == vm.screen.text()
    assert "kept" in again.screen.text()
    assert again.state is (avmm.RunState.OFF if end == "halt\n" else avmm.RunState.PAUSED)


async def test_what_an_overlay_held_belongs_to_the_record(host: avmm.Host, tmp_path: Path) -> None:
    disk = avmm.Disk(guests.image(), "overlay", tmp_path / "changes")
    await host.remove_vm(await recorded(host, tmp_path / "first", disks=[disk]))
    vm = await recorded(host, tmp_path / "second", "dir\n", disks=[disk])
    assert "note" in vm.screen.text()
    assert (await replayed(host, tmp_path / "second")).screen.text() == vm.screen.text()


def break_speaker(vm: avmm.Vm) -> None:
    """A bug of ours that shows when the guest beeps."""

    def bug() -> None:
        if "beep" in vm.screen.text():
            raise RuntimeError("the speaker has a bug")

    vm.machine.speaker.pit.on_speaker_change = bug


async def test_a_failure_is_replayed_too(host: avmm.Host, tmp_path: Path) -> None:
    """A bug of a device stops the machine; the record leads to the same instruction."""
    vm = await host.create_vm(avmm.VmConfig(name="buggy", memory="16M", disks=[avmm.Disk(guests.image(), "overlay")]))
    recorder = await Recorder.begin(vm, tmp_path / "r")
    break_speaker(vm)
    await vm.start()
    await vm.screen.wait_for("ok>")
    vm.keyboard.feed("beep 1000\n")
    assert await failure(vm) == "the speaker has a bug"
    await recorder.close()
    record = records.read(tmp_path / "r")
    assert record.end is not None
    assert (record.end.state, record.end.reason) == ("failed", "the speaker has a bug")
    again = await Replay.make(host, record, "again")
    break_speaker(again.vm)
    await again.run()
    assert again.vm.state is avmm.RunState.FAILED
    assert again.vm.partition.processor.units == record.end.units
    assert "where the recorded one was failed (the speaker has a bug)" in await diverges(host, record), "the bug was mended"


async def failure(vm: avmm.Vm) -> str:
    with pytest.raises(avmm.GuestFailure) as failed:
        await vm.wait_off()
    return str(failed.value.__cause__)


async def test_a_run_that_is_another_says_where_first(host: avmm.Host, tmp_path: Path) -> None:
    await recorded(host, tmp_path / "r")
    record = records.read(tmp_path / "r")
    assert record.end is not None
    keys = [n for n, entry in enumerate(record.inputs) if entry.kind == "press"]
    late = keys[20]
    entry = record.inputs[late]
    missing = replace(record, inputs=record.inputs[:late] + record.inputs[late + 1 :])
    assert "diverging diverges from the record between " in await diverges(host, missing)
    other = replace(record, inputs=(*record.inputs[:late], replace(entry, values=("q",)), *record.inputs[late + 1 :]))
    assert " diverges from the record between " in await diverges(host, other)
    moved = replace(record, inputs=(*record.inputs[:late], replace(entry, units=entry.units + 1), *record.inputs[late + 1 :]))
    assert f"it has executed {entry.units} units, where the record has {entry.units + 1}" in await diverges(host, moved)
    memory = replace(record, end=replace(record.end, memory="0"))
    assert "diverges from the record after the last check, before" in await diverges(host, memory)
    assert "its memory is another" in await diverges(host, memory)


async def test_a_record_that_was_cut_off_is_good_up_to_there(host: avmm.Host, tmp_path: Path) -> None:
    """The recorder's process was killed, or its disk is full."""
    await recorded(host, tmp_path / "r", "dir\n")
    whole = records.read(tmp_path / "r")
    os.truncate(tmp_path / "r", len(content(tmp_path / "r")) * 2 // 3)
    cut = records.read(tmp_path / "r")
    assert cut.end is None
    assert 0 < len(cut.inputs) < len(whole.inputs)
    vm = await replayed(host, tmp_path / "r")
    assert vm.partition.clock.now() == cut.last


async def test_a_full_disk_ends_the_record_and_not_the_machine(
    host: avmm.Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(guests.image(), "overlay")]))
    recorder = await Recorder.begin(vm, tmp_path / "r")
    await vm.start()
    await vm.screen.wait_for("ok>")

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        await vm.keyboard.type("echo alive\n")
        await vm.screen.wait_for("\nalive")
    await recorder.close()
    assert recorder.error is not None
    assert recorder.error.errno == errno.ENOSPC
    assert any(event.name == "record ends" for event in vm.partition.trace_log.events)
    assert records.read(tmp_path / "r").end is None


async def test_virtual_time_at_the_pace_of_the_host(host: avmm.Host, tmp_path: Path) -> None:
    """In front of a person: the moments come from the host's time, and are in the record."""
    vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(guests.image(), "overlay")]))
    recorder = await Recorder.begin(vm, tmp_path / "r")
    vm.partition.vcpu.paced = True
    await vm.start()
    await vm.screen.wait_for("ok>")
    await vm.keyboard.type("dir\n")
    await vm.screen.wait_for("files")
    await recorder.close()
    again = await replayed(host, tmp_path / "r")
    assert "files" in again.screen.text()


CD_READER = """
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
again:
    mov word [packet + 2], 1
    mov si, packet
    mov ah, 0x42
    mov dl, 0xe0
    int 0x13
    mov al, '-'
    jc shown
    mov al, [0x8000]
shown:
    mov ah, 0x0e
    int 0x10
    hlt
    jmp again
packet: db 16, 0
    dw 1, 0, 0x800, 0, 0, 0, 0
"""
"""Reads the CD-ROM's first byte at each tick of the timer and shows it, or that there is none."""


async def test_cds_that_were_changed_are_changed_again(host: avmm.Host, tmp_path: Path) -> None:
    for letter in "ABC":
        (tmp_path / letter).write_bytes(letter.encode() * 2048 * 20)
    (tmp_path / "boot").write_bytes(assemble(CD_READER + END, 16, LOAD).ljust(1440 * 1024, b"\0"))
    config = avmm.VmConfig(memory="2M", floppies=[avmm.Disk(tmp_path / "boot", "ro")], cdrom=tmp_path / "A", boot="a")
    vm = await host.create_vm(config)
    recorder = await Recorder.begin(vm, tmp_path / "r")
    await vm.start()
    await vm.screen.wait_for("AAA")
    vm.eject()
    await vm.screen.wait_for("A-", timeout=60)
    for letter in "BC":
        await vm.insert(tmp_path / letter)
        await vm.screen.wait_for(letter * 3)
    await vm.pause()
    await recorder.close()
    record = records.read(tmp_path / "r")
    assert [entry.kind for entry in record.inputs if entry.kind != "check"] == ["eject", "insert", "insert"]
    again = await replayed(host, tmp_path / "r")
    assert again.screen.text() == vm.screen.text()
    assert "CCC" in again.screen.text()
    await host.remove_vm(again)
    (tmp_path / "B").write_bytes(bytes(2048 * 20))
    with pytest.raises(RecordError, match=r"B is not what was put in at .* s any more"):
        await Replay.make(host, record, "again")
    assert [name for name in host.service.disks if "replayed" in name or "again" in name] == []


async def test_modes_and_disks_that_came_and_went(host: avmm.Host, tmp_path: Path) -> None:
    image = tmp_path / "more.img"
    image.write_bytes(bytes(1 << 20))
    config = avmm.VmConfig(memory="16M", disks=[avmm.Disk(guests.image(), "overlay")], hyperv=True)
    vm = await host.create_vm(config)
    recorder = await Recorder.begin(vm, tmp_path / "r")
    await vm.start()
    await vm.screen.wait_for("ok>")
    await vm.set_mode("enlightened")
    await vm.keyboard.type("sum pattern.txt\n")
    with pytest.raises(avmm.ConfigError, match="is recorded: give the disk an overlay"):
        await vm.attach_disk(avmm.Disk(image))
    assert await vm.attach_disk(avmm.Disk(image, "overlay")) == 1
    await vm.sleep(0.1)
    await vm.detach_disk(1)
    await vm.sleep(0.1)
    await vm.set_mode("emulated")
    await vm.keyboard.type("dir\n")
    await vm.sleep(0.3)
    await vm.pause()
    await recorder.close()
    kinds = [entry.kind for entry in records.read(tmp_path / "r").inputs if entry.kind not in ("check", "press", "release")]
    assert kinds == ["mode", "plug", "unplug", "mode"]
    again = await replayed(host, tmp_path / "r")
    assert again.screen.text() == vm.screen.text()
    assert again.mode == "emulated"


async def test_what_cannot_be_recorded_or_replayed_says_so(host: avmm.Host, tmp_path: Path) -> None:
    image = Path(shutil.copy(guests.image(), tmp_path / "guest.img"))
    for number, (fields, sentence) in enumerate((
        ({"clock": "real"}, "is in real time, where no run can be repeated"),
        ({"disks": [avmm.Disk(image)]}, r"guest\.img is written in place, and cannot be brought back: give it to .* with an overlay"),
    )):  # fmt: skip
        vm = await host.create_vm(avmm.VmConfig(name=f"vm{number}", memory="2M", **fields))  # type: ignore[arg-type]
        with pytest.raises(RecordError, match=sentence):
            await Recorder.begin(vm, tmp_path / "r")
        assert "r" not in os.listdir(tmp_path)
        await host.remove_vm(vm)
    vm = await host.create_vm(avmm.VmConfig(memory="2M", disks=[avmm.Disk(image, "ro")]))
    with pytest.raises(RecordError, match="cannot write the record .*: No such file or directory"):
        await Recorder.begin(vm, tmp_path / "no" / "r")
    recorder = await Recorder.begin(vm, tmp_path / "r")
    with pytest.raises(RecordError, match="vm is recorded already"):
        await Recorder.begin(vm, tmp_path / "s")
    await vm.start()
    with pytest.raises(avmm.SnapshotError, match="what reaches vm is recorded, and a record goes forward only"):
        await vm.restore(await vm.snapshot())
    await recorder.close()
    with pytest.raises(RecordError, match="a record begins at power-on, and vm is running already"):
        await Recorder.begin(vm, tmp_path / "s")
    record = records.read(tmp_path / "r")
    os.truncate(image, 1 << 20)
    with pytest.raises(RecordError, match=r"cannot be replayed: .*guest\.img is not what disk0 .* was"):
        await Replay.make(host, record, "again")


@pytest_asyncio.fixture
async def data(host: avmm.Host, tmp_path: Path) -> bytes:
    """A short record."""
    vm = await host.create_vm(avmm.VmConfig(memory="2M"))
    recorder = await Recorder.begin(vm, tmp_path / "r")
    await vm.start()
    await recorder.close()
    return content(tmp_path / "r")


def content(path: Path) -> bytes:
    return path.read_bytes()


async def test_files_that_are_no_records(data: bytes, tmp_path: Path) -> None:
    for wrong, sentence in (
        (b"", "is not a record of avmm"),
        (b"AVMMSNAP" + bytes(100), "is not a record of avmm"),
        (data[:8] + struct.pack("<I", 5) + data[12:], "is a record of version 5, and this avmm reads version 1"),
        (data[:30] + bytes([data[30] ^ 1]) + data[31:], "is damaged"),
        (data[:16], "is damaged"),
    ):
        (tmp_path / "x").write_bytes(wrong)
        with pytest.raises(RecordError, match=sentence):
            records.read(tmp_path / "x")
    with pytest.raises(RecordError, match="cannot read the record"):
        records.read(tmp_path / "nowhere")


async def recorded_and_paused(host: avmm.Host, path: Path) -> tuple[avmm.Vm, Recorder]:
    """Return the built-in guest at its prompt, standing still, and who records what reaches it."""
    vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(guests.image(), "overlay")]))
    recorder = await Recorder.begin(vm, path)
    await vm.start()
    await vm.screen.wait_for("ok>")
    await vm.pause()
    return vm, recorder


async def nobody_quits(vm: avmm.Vm | None) -> None:
    raise AssertionError


async def test_a_paused_machine_keeps_a_bounded_number_of_inputs(host: avmm.Host, tmp_path: Path) -> None:
    """Which come when it goes on, in order; what was one too many is said, by QMP as well, and the machine takes no harm."""
    vm, recorder = await recorded_and_paused(host, tmp_path / "r")
    for key in ("e", "c", "h", "o", "spc", "h", "i", "ret"):
        vm.keyboard.press(key)
        vm.keyboard.release(key)
    for _ in range(LIMIT - 16):
        vm.mouse.move(0, 0)
    for one_more in (lambda: vm.keyboard.press("a"), lambda: vm.mouse.move(1, 1), lambda: vm.serial.write("x")):
        with pytest.raises(InputsFull, match="4096 keys and other inputs wait for vm already: let it run first"):
            one_more()
    with pytest.raises(InputsFull):
        await vm.reset()
    target = Target(host, COMMANDS, nobody_quits, vm)
    with pytest.raises(QmpError, match="let it run first"):
        await target.execute("send-key", {"keys": [{"type": "qcode", "data": "a"}]})
    target.unwatch(vm)
    assert vm.inputs.waiting == LIMIT
    await vm.resume()
    await vm.screen.wait_for("\nhi")
    assert vm.inputs.waiting == 0
    await recorder.close()


async def test_standard_input_waits_for_a_paused_machine(host: avmm.Host, tmp_path: Path) -> None:
    vm, recorder = await recorded_and_paused(host, tmp_path / "r")
    text = tmp_path / "text"
    text.write_bytes(b"x" * (ENOUGH + 10) * CHUNK)
    source, sink = os.open(text, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    link = SerialStdio(vm, source, sink)
    try:
        link.open()
        await until(lambda: vm.inputs.waiting == ENOUGH)
        await turns()
        assert vm.inputs.waiting == ENOUGH
        await vm.resume()
        await vm.wait_until(lambda: os.lseek(source, 0, os.SEEK_CUR) == text.stat().st_size and not vm.inputs.waiting, 10)
    finally:
        link.close()
        os.close(source)
        os.close(sink)
    await recorder.close()
