"""Snapshots in files: another process goes on from them, and a file that is not whole is refused in one sentence."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import avmm
import guests
from avmm.control import snapshot_file
from avmm.devices.card import Card as PluginCard
from avmm.devices.device import PortRange
from avmm.devices.pit import Pit
from tests.vm.history import moment

OTHER_PROCESS = """
import asyncio, sys, avmm
from tests.vm.history import moment

async def main(path):
    async with avmm.Host() as host:
        vm = await host.clone(await avmm.Snapshot.load(path), paused=True)
        await vm.resume()
        await vm.keyboard.type("read x\\n")
        await vm.sleep(1)
        print(repr(await moment(vm)))

asyncio.run(main(sys.argv[1]))
"""


class Card(PluginCard):
    """A device that is no part of avmm."""

    name = "card"
    ports = (PortRange(0x300, 1),)

    @dataclass(frozen=True)
    class State:
        version: int = 1


async def saved(path: Path, then: str = "") -> tuple[avmm.Snapshot, str]:
    """Save a machine that is at work, and return what it comes to when it is typed to afterwards."""
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(guests.image(), "overlay")]))
        await vm.start()
        await vm.screen.wait_for("ok>")
        await vm.keyboard.type("write x kept\nbench disk\n")
        await vm.sleep(0.003)
        taken = await vm.snapshot()
        await vm.pause()
        await taken.save(path)
        if not then:
            return taken, ""
        await vm.restore(taken)
        await vm.resume()
        await vm.keyboard.type(then)
        await vm.sleep(1)
        return taken, repr(await moment(vm))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot's file."""
    path = tmp_path_factory.mktemp("snapshot") / "guest.avmmsnap"
    asyncio.run(saved(path))
    return path


@pytest.fixture
def content(file: Path) -> bytes:
    return file.read_bytes()


def zeros(path: Path) -> None:
    path.write_bytes(bytes(1 << 20))


async def load(path: Path) -> str:
    with pytest.raises(avmm.SnapshotError) as refused:
        await avmm.Snapshot.load(path)
    return str(refused.value)


def test_another_process_goes_on_identically(tmp_path: Path) -> None:
    path = tmp_path / "guest.avmmsnap"
    _, expected = asyncio.run(saved(path, "read x\n"))
    assert "kept" in expected
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.asyncio
async def test_a_file_cut_short_anywhere_is_refused(content: bytes, tmp_path: Path) -> None:
    data, path = content, tmp_path / "cut"
    for length in (1, 7, 8, 12, 23, 24, 500, len(data) // 2, len(data) - 33, len(data) - 1):
        path.write_bytes(data[:length])
        assert await load(path) == f"the snapshot {path} has been cut short" or length < 8
    path.write_bytes(b"")
    assert await load(path) == f"{path} is not a snapshot of avmm"


@pytest.mark.asyncio
async def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    data, path, choice = content, tmp_path / "damaged", random.Random(3)
    for at in [16, 30, *(choice.randrange(24, len(data)) for _ in range(12))]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << choice.randrange(8)]) + data[at + 1 :])
        assert await load(path) in (f"the snapshot {path} is damaged", f"the snapshot {path} has been cut short")
    path.write_bytes(data + b"x")
    assert await load(path) == f"the snapshot {path} is damaged"


@pytest.mark.asyncio
async def test_a_foreign_file_and_another_version_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    for foreign in (b"\x7fELF" + bytes(100), b"AVMM", b"AVMMOVL\x01" + bytes(4096)):
        path.write_bytes(foreign)
        assert await load(path) in (f"{path} is not a snapshot of avmm", f"the snapshot {path} has been cut short")
    path.write_bytes(b"AVMMSNAP" + struct.pack("<I", 7) + content[12:])
    assert await load(path) == f"{path} is a snapshot of version 7, and this avmm reads version 1"
    assert "cannot read the snapshot" in await load(tmp_path / "nowhere")
    assert "Is a directory" in await load(tmp_path)


@pytest.mark.asyncio
async def test_a_state_that_makes_no_sense_is_refused(file: Path, tmp_path: Path) -> None:
    """Its digest is right: somebody made it so, or another avmm did."""
    taken, path = await avmm.Snapshot.load(file), tmp_path / "odd"
    (pit,) = (one for one in taken.partition.devices if one.name == "pit")
    assert isinstance(pit.state, Pit.State)
    wrong = replace(pit, state=replace(pit.state, version=9))
    devices = tuple(wrong if one is pit else one for one in taken.partition.devices)
    odd = replace(taken, partition=replace(taken.partition, devices=devices))
    await odd.save(path)
    async with avmm.Host() as host:
        with pytest.raises(avmm.SnapshotError, match="the snapshot does not fit vm-1, which has failed now: not a state of the PIT, version 1"):
            await host.clone(await avmm.Snapshot.load(path))
        assert not host.vms
        processor = replace(taken.partition.processor, model="unicorn 9")  # type: ignore[type-var]
        with pytest.raises(avmm.SnapshotError, match=r"saved by unicorn 9, and this is unicorn 2\.1\.4"):
            await host.clone(replace(taken, partition=replace(taken.partition, processor=processor)))
    short = snapshot_file.HEAD.pack(b"AVMMSNAP", 1, 0, 1) + b"\xc0" + b"\xff" * 8
    path.write_bytes(short + hashlib.sha256(short).digest())
    assert "cannot be used by this avmm" in await load(path)


@pytest.mark.asyncio
async def test_a_missing_disk_is_named(tmp_path: Path) -> None:
    image = Path(shutil.copy(guests.image(), tmp_path / "disk.img"))
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="16M", disks=[avmm.Disk(image, "ro")]))
        await vm.start()
        await vm.screen.wait_for("ok>")
        await (await vm.snapshot()).save(tmp_path / "s")
        await host.remove_vm(vm)
        os.unlink(image)
        with pytest.raises(avmm.ImageError, match=r"disk\.img does not exist"):
            await host.clone(await avmm.Snapshot.load(tmp_path / "s"))
        zeros(image)
        with pytest.raises(avmm.SnapshotError, match=r"disk\.img is not what disk0 of the snapshot was"):
            await host.clone(await avmm.Snapshot.load(tmp_path / "s"))


@pytest.mark.asyncio
async def test_a_full_disk_leaves_no_half_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, path = await avmm.Snapshot.load(file), tmp_path / "kept"
    path.write_bytes(b"the one before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(avmm.SnapshotError, match="cannot write the snapshot .*kept: File too large; nothing of it was left"):
            await taken.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def no_space(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)  # a file system that finds out late
    with pytest.raises(avmm.SnapshotError, match="No space left on device"):
        await taken.save(path)
    assert os.listdir(tmp_path) == ["kept"]
    assert path.read_bytes() == b"the one before"
    with pytest.raises(avmm.SnapshotError, match="No such file or directory"):
        await taken.save(tmp_path / "nowhere" / "x")


@pytest.mark.asyncio
async def test_a_device_of_ones_own_is_named_by_its_entry_point_only(tmp_path: Path) -> None:
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", devices=[Card]))
        await vm.start()
        taken = await vm.snapshot()
        with pytest.raises(avmm.SnapshotError, match="the snapshot of vm cannot be a file: the class Card is no plain value"):
            await taken.save(tmp_path / "x")
