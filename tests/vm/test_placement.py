"""Linux under a disk and timer load while every device in turn is moved in and out of the hypervisor, and what it must not notice."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path

import pytest
import uvloop

import avmm
from tests.vm.linux import BOOT, COMMAND_LINE, DISK_MODULES, Boot, Shell, ext4, read_file, tool, trouble

pytestmark = [pytest.mark.linux, pytest.mark.guests]

LOAD = """\
cat >/tmp/load <<'END'
i=0
while [ ! -e /tmp/stop ]; do
  f=/mnt/f$((i % 3))
  dd if=/dev/urandom of=$f bs=16k count=6 conv=fsync 2>/dev/null || echo write >>/tmp/bad
  sum=$(sha256sum <$f)
  echo 1 >/proc/sys/vm/drop_caches
  [ "$(sha256sum <$f)" = "$sum" ] || echo sum $f >>/tmp/bad
  i=$((i + 1)); echo $i >/tmp/rounds
done
echo done >/tmp/done
END
cat >/tmp/ticks <<'END'
while [ ! -e /tmp/stop ]; do usleep 2000; done
END
"""
"""Writes, reads back from the disk and compares; and something that wants many timer interrupts."""

PLACES = {"hybrid": ("hypervisor", "service"), "host": ("hypervisor", "service", "kernel")}
CLOCKS = {
    "apic": COMMAND_LINE + " clocksource=acpi_pm",
    "pic": COMMAND_LINE + " clocksource=acpi_pm noapic nolapic",
}


async def uptime(shell: Shell) -> tuple[float, float]:
    """Return the guest's monotonic time and the machine's, seconds."""
    said = await shell.run("cut -d' ' -f1 /proc/uptime")
    return float(said), shell.vm.now


async def moved_about(folder: Path, append: str, rounds: int, structure: str = "hybrid") -> None:
    """Move every device out and in ``rounds`` times under load, and check all that the guest could have noticed."""
    disk = ext4(folder / "disk.img", 16)
    chance = random.Random(rounds)
    typed = ""
    async with avmm.Host(structure) as host:
        vm = await host.create_vm(Boot(folder, modules=DISK_MODULES, append=append).config(disks=[avmm.Disk(disk)]))
        await vm.start()
        shell = Shell(vm)
        await shell.ready()
        await shell.run(f"mount -t ext4 {await shell.drive('0:0:0:0')} /mnt")
        vm.serial.write(LOAD)
        await shell.run("(cat </dev/tty1 >/tmp/keys & sh /tmp/load & sh /tmp/ticks &)")
        guest, machine = await uptime(shell)
        homes = vm.placement
        for number in range(rounds):
            for device, home in homes.items():
                away = [place for place in PLACES[structure] if place != home]
                for place in (*away, home):
                    report = await (vm.install(device) if place == "hypervisor" else vm.uninstall(device, place))
                    assert report.moved
                    assert vm.placement[device] == place
                    await vm.sleep(chance.uniform(0.001, 0.02))
            word = f"round {number} of keys"
            await vm.keyboard.type(word + "\n")
            typed += word + "\n"
        assert vm.placement == homes
        guest_end, machine_end = await uptime(shell)
        await shell.run("touch /tmp/stop; while [ ! -e /tmp/done ]; do usleep 10000; done; cat /tmp/bad 2>/dev/null; [ ! -e /tmp/bad ]")
        assert int(await shell.run("cat /tmp/rounds")) >= 1
        assert await shell.run("cat /tmp/keys") == typed.strip()
        sums = await shell.run("sync; cd /mnt; sha256sum f0 f1 f2; cd /; umount /mnt")
        log = await shell.run("dmesg")
        interrupts = await shell.run("cat /proc/interrupts")
        vm.serial.write("poweroff -f\n")
        assert await vm.wait_off(BOOT) == "the guest entered ACPI S5"
    assert trouble(log) == []
    assert re.search(r"^ERR: +0$", interrupts, re.MULTILINE), interrupts  # spurious interrupts
    assert re.search("clocksource: Switched to clocksource acpi_pm", log)
    assert machine_end - machine > rounds * 0.3
    drift = (guest_end - guest) / (machine_end - machine) - 1
    assert abs(drift) <= 0.001 + 0.01 / (machine_end - machine), f"{drift:.2%}"  # /proc/uptime counts hundredths
    tool("e2fsck", "-f", "-n", str(disk))
    for line in sums.splitlines():
        digest, name = line.split()
        assert hashlib.sha256(read_file(disk, f"/{name}")).hexdigest() == digest


@pytest.mark.parametrize("clock", CLOCKS)
def test_linux_does_not_notice_that_its_devices_are_moved(clock: str, tmp_path: Path) -> None:
    """I7: installed and removed at run time under Linux, with no access and no interrupt lost."""
    uvloop.run(moved_about(tmp_path, CLOCKS[clock], 10))


@pytest.mark.long
def test_linux_does_not_notice_on_the_other_structure(tmp_path: Path) -> None:
    """I8: nor in the host OS, outside the kernel VMM and the user-mode VMM."""
    uvloop.run(moved_about(tmp_path, CLOCKS["apic"], 10, "host"))


@pytest.mark.long
@pytest.mark.parametrize("clock", CLOCKS)
def test_linux_does_not_notice_two_hundred_times(clock: str, tmp_path: Path) -> None:
    uvloop.run(moved_about(tmp_path, CLOCKS[clock], 200))
