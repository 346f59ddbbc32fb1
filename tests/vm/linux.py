"""Debian's Linux kernel with a busybox shell on the serial line, as the tests use it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import avmm
from tests import third_party
from tests.vm import initrd

DISK_MODULES = ("ata_piix", "sd_mod")
CD_MODULES = ("sr_mod", "isofs")
PROMPT = "/ # "
SHELL = "stty cols 2000\nexec sh"
BOOT = 60  # s of machine time, far more than it takes
COMMAND_LINE = "console=ttyS0 panic=0 quiet"

TROUBLE = re.compile(
    r"WARNING: CPU|Oops|BUG:|Firmware Bug|firmware bug|lost interrupt|timed out|timeout|nobody cared|exception Emask|"
    r"failed to IDENTIFY|failed command|I/O error|Call Trace|lockup|hung_task|blocked for more|general protection|"
    r"ACPI (BIOS )?(Error|Warning)|ACPI Exception|Spurious|spurious|IRQ conflict|unstable|Kernel panic|segfault|"
    r"link is slow|soft resetting|hard resetting|limiting speed|Corrupt|EXT4-fs error|invalid opcode|Unable to handle",
)
"""What a kernel says when something is wrong with its machine."""


def trouble(log: str) -> list[str]:
    """Return the lines of a kernel log that complain."""
    return [line for line in log.splitlines() if TROUBLE.search(line)]


@dataclass(frozen=True)
class Boot:
    """What to boot: the init script's last lines, modules, and the machine's parts."""

    folder: Path
    init: str = SHELL
    modules: tuple[str, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    append: str = COMMAND_LINE

    def config(self, **parts: object) -> avmm.VmConfig:
        """Return a machine with the kernel and the initrd; ``parts`` are more of its fields."""
        image = self.folder / "initrd.img"
        image.write_bytes(initrd.build(self.init, self.modules, parameters=self.parameters))
        machine = avmm.VmConfig(memory="192M", kernel=initrd.kernel(), initrd=image, append=self.append)
        return replace(machine, **parts)  # type: ignore[arg-type]


class Shell:
    """The shell on the serial line: ``await shell.run("ls")`` gives what it printed."""

    def __init__(self, vm: avmm.Vm) -> None:
        self.vm = vm

    async def ready(self) -> None:
        """Wait for the first prompt."""
        await self.vm.serial.wait_for(PROMPT, BOOT)

    async def drive(self, place: str) -> str:
        """Return the device file of the drive at a SCSI address: Linux names its disks in the order in which they answer."""
        return "/dev/" + await self.run(f"ls /sys/bus/scsi/devices/{place}/block")

    async def run(self, command: str, timeout: float = BOOT) -> str:
        """Run a command line, require that it succeeds, and return its output."""
        self.vm.serial.write(f'{command}; echo "<<$?>>"\n')
        said = await self.vm.serial.wait_for(re.compile(r"<<(\d+)>>\r\n/ # "), timeout)
        text = said[: said.rindex("<<")].replace("\r\n", "\n")
        assert "<<0>>" in said, f"{command} failed:\n{said}"
        echo, _, output = text.partition('; echo "<<$?>>"\n')
        assert command in echo.replace("\n", ""), said  # the terminal echoed what was typed
        return output.strip()


def ext4(path: Path, megabytes: int) -> Path:
    """Make an image with an empty ext4 filesystem."""
    path.write_bytes(b"")
    tool("mke2fs", "-q", "-t", "ext4", "-F", str(path), f"{megabytes}M")
    return path


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of e2fsprogs; it must succeed."""
    done = subprocess.run(
        [third_party.tool(name), *arguments], env=third_party.tool_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def read_file(image: Path, name: str) -> bytes:
    """Read a file out of an ext4 image, as the host sees it."""
    to = image.with_suffix(".out")
    tool("debugfs", "-R", f"dump {name} {to}", str(image))
    data = to.read_bytes()
    to.unlink()
    return data


def copies(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Copy images into a folder."""
    folder.mkdir()
    return [Path(shutil.copy(path, folder / path.name)) for path in paths]
