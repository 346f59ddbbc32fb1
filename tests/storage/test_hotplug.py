"""Disks that come and go, as the user asks for it; what a guest makes of it is in tests/vm/test_linux_storvsc.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import avmm
from avmm.host.opening import ImageError

pytestmark = pytest.mark.asyncio


def image(path: Path) -> Path:
    path.write_bytes(bytes(1 << 16))
    return path


async def test_luns_come_and_go(tmp_path: Path) -> None:
    first, second = image(tmp_path / "a.img"), image(tmp_path / "b.img")
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", hyperv=True, disks=[avmm.Disk(first)]))
        scsi = vm.machine.scsi
        assert scsi is not None
        assert [*scsi.luns] == [(0, 0, 0)]
        assert scsi.luns[0, 0, 0].medium is vm.machine.disks[0], "the emulated controller and StorVSP share the disk"
        assert await vm.attach_disk(avmm.Disk(second)) == 1
        with pytest.raises(ImageError):
            await vm.attach_disk(avmm.Disk(second))  # it is locked
        await vm.detach_disk(1)
        assert await vm.attach_disk(avmm.Disk(second, "ro")) == 1
        assert scsi.luns[0, 0, 1].medium.read_only
        await vm.detach_disk(0)
        assert not vm.machine.disks[0].closed, "it is still on the emulated controller"
        with pytest.raises(avmm.ConfigError, match="no disk at LUN 0"):
            await vm.detach_disk(0)
        with pytest.raises(ImageError):
            await vm.attach_disk(avmm.Disk(tmp_path / "missing.img"))
        names = {name for name in host.service.disks if "lun" in name}
        assert len(names) == 1
    assert not host.service.disks


async def test_accelerators_of_the_drives_and_a_controller_for_more(tmp_path: Path) -> None:
    disks = [avmm.Disk(image(tmp_path / name)) for name in ("a.img", "b.img", "c.img")]
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", hyperv=True, hyperv_ide=True, disks=disks[:2]))
        assert [[*server.luns] for server in vm.machine.disk_servers()] == [[], [(0, 0, 0)], [(0, 1, 0)]]
        assert [server.luns[0, n, 0].medium for n, server in enumerate(vm.machine.accelerators)] == vm.machine.disks
        assert await vm.attach_disk(disks[2]) == 0
    with pytest.raises(avmm.ConfigError, match="needs hyperv"):
        avmm.VmConfig(hyperv_ide=True)


@pytest.mark.parametrize("config", [{}, {"hyperv": True, "hyperv_disks": False}])
async def test_only_an_enlightened_machine_takes_disks(tmp_path: Path, config: dict[str, bool]) -> None:
    disk = image(tmp_path / "a.img")
    async with avmm.Host() as host:
        vm = await host.create_vm(avmm.VmConfig(memory="1M", **config))  # type: ignore[arg-type]
        assert vm.machine.scsi is None
        with pytest.raises(avmm.ConfigError, match="hyperv"):
            await vm.attach_disk(avmm.Disk(disk))
        with pytest.raises(avmm.ConfigError, match="no disk at LUN 0"):
            await vm.detach_disk(0)
