"""What a machine starts with: the built-in BIOS, a kernel that it loads, or a firmware image.

The invariant: files are read once, when the machine is made; after a reset the guest's memory is filled from the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from avmm.boot import acpi, firmware, layout, linux, linux_real_mode, multiboot, table_loader
from avmm.boot.bios.bios import Bios
from avmm.boot.bios.drives import BiosDrive
from avmm.boot.bios.video import VideoServices
from avmm.boot.bios.video_rom import video_rom
from avmm.boot.errors import BootError
from avmm.control.config import ConfigError, VmConfig
from avmm.control.machine import Machine
from avmm.cpu.engine import CpuState
from avmm.devices import power
from avmm.devices.fw_cfg import FwCfg, e820_file, standard_items
from avmm.devices.vga.font import font
from avmm.hypervisor.bus import FirmwarePorts
from avmm.hypervisor.partition import Partition

ACPI_AT = 0xE0000
VIDEO_ROM_AT = 0xC0000


def pm_base(config: VmConfig) -> int:
    """Return where the power management block is, by the ACPI tables that the firmware has."""
    return table_loader.PM_BASE if config.acpi and config.bios != "builtin" else power.PM_BASE


def start_with(machine: Machine, config: VmConfig, drives: list[BiosDrive]) -> None:
    """Choose what the processor starts with: a kernel, a firmware image, or the built-in BIOS."""
    partition = machine.partition
    if config.bios == "builtin":
        video = machine.video_services = VideoServices(partition.processor, partition.memory, machine.vga)

        def failed(reason: str) -> None:
            machine.boot_failure = reason

        bios = Bios(
            partition, partition.processor, FirmwarePorts(partition.ports, partition.devices), video, drives,
            memory_size=config.memory_bytes, memory_map=layout.memory_map(config.memory_bytes),
            font_8x8=font(8)[:1024], on_boot_failure=failed,
        )  # fmt: skip
        partition.plug(bios)
        if config.kernel is not None:
            partition.boot_state = _kernel_start(machine, config, bios, video)
            return

        def power_on() -> CpuState:
            machine.boot_failure = ""
            _install(partition, bios)
            if config.acpi:
                _place_acpi(partition)
            return bios.start_state()

        partition.boot_state = power_on
        return
    if config.kernel is not None:
        raise ConfigError("a kernel is started by the built-in BIOS, not by another firmware")
    partition.boot_state = _firmware_start(machine, config)


def _install(partition: Partition, bios: Bios) -> None:
    bios.install()
    partition.memory.write(VIDEO_ROM_AT, video_rom())


def _place_acpi(partition: Partition) -> int:
    blob, rsdp = acpi.build(partition.memory.size, ACPI_AT, vmbus="vmbus" in partition.devices)
    partition.memory.write(ACPI_AT, blob)
    return rsdp


def read_file(path: str | Path, what: str) -> bytes:
    """Return a file's bytes. ConfigError in one sentence when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from None


@dataclass(eq=False)
class _Content:
    """What was in a file, for as long as a machine may start from it."""

    data: bytes


_contents: WeakValueDictionary[tuple[int, ...], _Content] = WeakValueDictionary()


def _shared(path: str | Path, what: str) -> _Content:
    """Read a file, unless another machine has read the same: clones share it."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from None
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    content = _contents.get(key)
    if content is None:
        content = _contents[key] = _Content(read_file(path, what))
    return content


def _kernel_start(machine: Machine, config: VmConfig, bios: Bios, video: VideoServices) -> Callable[[], CpuState]:
    partition = machine.partition
    assert config.kernel is not None
    shared = _shared(config.kernel, "the kernel"), _shared(config.initrd, "the initrd") if config.initrd is not None else _Content(b"")
    kernel, initrd = shared[0].data, shared[1].data or None
    if linux_real_mode.is_real_mode_only(kernel):
        return _real_mode_start(machine, config, bios, linux_real_mode.prepare(config.memory_bytes, kernel, initrd, config.append))
    is_linux = kernel[0x202:0x206] == b"HdrS" or kernel[:5] == b"\x7fELF\x02"
    if not is_linux:
        try:
            multiboot.find_header(kernel)
        except BootError:
            raise BootError(f"{config.kernel} is no kernel: neither a Linux bzImage or vmlinux nor a multiboot image") from None

    def start(held: tuple[_Content, _Content] = shared) -> CpuState:
        _install(partition, bios)
        video.set_mode(3)
        rsdp = _place_acpi(partition) if config.acpi else None
        size = config.memory_bytes
        if is_linux:
            return linux.load(partition.memory, size, kernel, initrd, config.append, rsdp)
        modules = [(initrd, Path(config.initrd).name)] if initrd is not None and config.initrd is not None else []
        return multiboot.load(partition.memory, size, kernel, config.append, modules)

    return start


def _real_mode_start(machine: Machine, config: VmConfig, bios: Bios, kernel: linux_real_mode.RealModeKernel) -> Callable[[], CpuState]:
    partition = machine.partition
    bios.boot.kernel = kernel.place

    def start() -> CpuState:
        _install(partition, bios)
        if config.acpi:
            _place_acpi(partition)
        return bios.start_state()

    return start


def _firmware_start(machine: Machine, config: VmConfig) -> Callable[[], CpuState]:
    partition = machine.partition
    seabios = config.bios == "seabios"
    image = read_file(firmware.find(firmware.SEABIOS) if seabios else config.bios, "the firmware")
    high = firmware.high_image(image)
    partition.add_memory((1 << 32) - len(image), high)
    video_bios = config.vgabios or firmware.find(firmware.VGABIOS)
    files = {"vgaroms/vgabios-isavga.bin": read_file(video_bios, "the video BIOS"), "etc/e820": e820_file(config.memory_bytes)}
    if config.acpi:
        files |= table_loader.files(config.memory_bytes, vmbus=config.hyperv)
    partition.plug(FwCfg(partition, standard_items(config.memory_bytes), files))
    low = image[-0x20000:]

    def start() -> CpuState:
        high[:] = image
        partition.memory.write(0x100000 - len(low), low)
        return CpuState()

    return start
