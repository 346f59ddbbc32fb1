"""A virtual machine as its user holds it: lifecycle, screen, serial line, keyboard, what it did."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avmm.control import mode
from avmm.control import snapshot as snapshots
from avmm.control.config import Disk, VmConfig
from avmm.control.history import EVERY, History
from avmm.control.inputs import Inputs
from avmm.control.keyboard import Keyboard, Mouse
from avmm.control.machine import Machine
from avmm.control.media import Media
from avmm.control.placement import Placement
from avmm.control.screen import Screen
from avmm.control.serial import Serial
from avmm.control.snapshot import Snapshot, SnapshotError
from avmm.control.stats import Stats, collect
from avmm.control.watch import ended, sleep, wait_until
from avmm.devices.device import Device
from avmm.devices.i8042 import I8042
from avmm.devices.uart import Uart
from avmm.devices.vga.vga import Vga
from avmm.hypervisor.install import InstallReport
from avmm.hypervisor.partition import RunState
from avmm.hypervisor.policy import Watch
from avmm.hypervisor.report import failure_report

if TYPE_CHECKING:
    from avmm.control.gdb import GdbServer
    from avmm.control.host import Host
    from avmm.control.physical.interposing import Interposing
    from avmm.control.reverse import Reverse
    from avmm.debug.debugger import Debugger
    from avmm.interpose.interposers.share import SharedDisk
    from avmm.interpose.interposers.stack import Interposer
    from avmm.interpose.switch import SwitchReport


class Vm:
    """One machine. Made by ``Host.create_vm``; see there."""

    def __init__(self, config: VmConfig, machine: Machine, host: Host) -> None:
        self.host = host
        self.config = config
        self.machine = machine
        self.partition = machine.partition
        self.screen = Screen(machine.partition, machine.vga, machine.synthetic_video)
        self.inputs = Inputs(machine.partition)
        self.inputs.handlers.update(reset=self._press_reset, power=self._press_power)
        if machine.guest_port is not None:
            self.inputs.handlers.update(mode=machine.guest_port.ask, tell=machine.guest_port.tell)
        self.serial = Serial(machine.partition, self.inputs, machine.uart)
        self.keyboard = Keyboard(machine.partition, self.inputs, machine.keyboard, machine.synthetic_keyboard)
        self.mouse = Mouse(self.inputs, machine.keyboard)
        self._placement = Placement(machine)
        self._watch = Watch(machine.partition, self._placement.as_dict, self._placement.move) if config.auto_placement else None
        self.media = Media(machine, self.inputs)
        self._closed = False
        self.gdb_servers: list[GdbServer] = []
        """Where a gdb may connect."""
        self.history: History | None = None
        """The machine's past; None until :meth:`keep_history`."""
        machine.on_exchange.append(self._exchanged)

    def _press_reset(self) -> None:
        self.partition.reset("reset button")

    def _press_power(self) -> None:
        self.machine.power.press_power_button()

    def _exchanged(self, old: Device, new: Device) -> None:
        """Another instance has taken a device's place."""
        if isinstance(new, Vga):
            self.screen.vga = new
        elif isinstance(new, Uart) and self.serial.uart is old:
            self.serial.uart = new
        elif isinstance(new, I8042):
            self.keyboard.use(new)
            self.mouse.use(new)

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.config.name

    @property
    def state(self) -> RunState:
        """Where the machine is in its life."""
        return self.partition.state

    @property
    def stats(self) -> Stats:
        """What the machine did so far."""
        return collect(self.partition)

    @property
    def now(self) -> float:
        """Machine time in seconds since power-on."""
        return self.partition.clock.now() / 1e9

    @property
    def boot_failure(self) -> str:
        """Why the built-in BIOS found nothing to boot; empty while that has not happened."""
        return self.machine.boot_failure

    def report(self, reason: str) -> str:
        """Return registers, the next instructions and the last exits, as after a failure. Not after :meth:`shutdown`."""
        return failure_report(self.partition, Exception(reason))

    async def wait_until(self, met: Callable[[], bool], timeout: float = 10, what: str = "it happened") -> None:
        """Wait until ``met()`` is true; ``timeout`` in seconds of machine time. Raises WaitTimeout, MachineEnded or GuestFailure."""
        await wait_until(self.partition, met, timeout, lambda: what)

    async def start(self) -> None:
        """Power on. Returns at once; ``await vm.screen.wait_for(...)`` or similar lets it run."""
        if self.config.gdb:
            await self.gdb_server(self.config.gdb)
        await self.partition.power_on(paused=self.config.gdb_wait)
        if self.config.gdb_reverse:
            await self.keep_history()

    async def pause(self) -> None:
        """Let machine time stand still; returns when no work is in flight. A search backwards ends where it has come to."""
        if self.history is None or not await self.reverse.call_off():
            await self.partition.pause()

    async def resume(self) -> None:
        """Go on after :meth:`pause`."""
        await self.partition.resume()

    # What few machines use is imported when it is: a start takes that much less.

    @functools.cached_property
    def debugger(self) -> Debugger:
        """Stops and steps the machine, and looks at it. DebugError for one whose guest is written in Python."""
        from avmm.debug.debugger import Debugger

        return Debugger(self.partition)

    @functools.cached_property
    def reverse(self) -> Reverse:
        """Runs it backwards, where there is a history."""
        from avmm.control.reverse import Reverse

        return Reverse(self)

    @functools.cached_property
    def _interposing(self) -> Interposing:
        from avmm.control.physical.interposing import Interposing

        return Interposing(self.machine)

    async def gdb_server(self, address: str = "127.0.0.1:0") -> GdbServer:
        """Let a gdb connect at ``HOST:PORT`` (port 0: any that is free), ``PORT`` or ``unix:PATH``; ends with the machine.

        ``server.address`` is what gdb's ``target remote`` takes. Raises ConfigError, and DebugError as :attr:`debugger`.
        """
        from avmm.control.gdb import GdbServer

        server = GdbServer(self.debugger, address, self.monitor, self.reverse)
        await server.start()
        self.gdb_servers.append(server)
        return server

    async def monitor(self, line: str) -> str:
        """Carry out a line of the human monitor, as ``avmm ctl hmp`` does, and return what it says."""
        from avmm.control.commands.monitor import run_for

        return await run_for(self, line)

    async def reset(self) -> None:
        """Press the reset button."""
        self.inputs.post("reset")

    async def sleep(self, seconds: float) -> None:
        """Wait for machine time to pass."""
        await sleep(self.partition, seconds)

    async def snapshot(self) -> Snapshot:
        """Return the machine as it is at this moment; it goes on, or stays paused. Raises SnapshotError when it cannot be saved."""
        return await snapshots.take(self)

    async def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot says, of this machine or one like it, and go on from there; a paused machine stays paused.

        Also when it is off or has failed. Raises SnapshotError when the snapshot does not fit.
        """
        await snapshots.restore(self, snapshot)

    async def keep_history(self, every: float = EVERY) -> History:
        """Keep a snapshot every so many seconds of machine time from now on, to go back to. Virtual time only. Raises SnapshotError."""
        if self.history is None:
            history = History(self, every)
            await history.begin()
            self.history = history
        return self.history

    async def rewind(self, seconds: float) -> None:
        """Go back by ``seconds`` of machine time, as far as there is a history, and go on from there; a paused machine stays paused.

        Raises SnapshotError without :meth:`keep_history`.
        """
        if self.history is None:
            raise SnapshotError(f"{self.name} has no history to go back in: have it kept first, by keep_history() or avmm ctl keep-history")
        await self.history.rewind(seconds)

    @property
    def placement(self) -> dict[str, str]:
        """Where each device lives: ``hypervisor``, ``service``, or ``kernel`` (host structure)."""
        return self._placement.as_dict()

    async def install(self, device: str, image: str = "builtin", sha256: str = "") -> InstallReport:
        """Bring a device model into the hypervisor while the guest uses it, and return what was done.

        ``image`` says where its code comes from: ``builtin``, ``entry-point:NAME``, a file's path or a URL (http, https, file).
        The last two need ``sha256`` and may end in ``#ClassName``. Raises InstallError (with a report) when the device stays
        where it was, DeviceImageError when ``image`` is not understood.
        """
        return await self._placement.move(device, "hypervisor", image, sha256)

    async def uninstall(self, device: str, to: str = "service", image: str = "builtin", sha256: str = "") -> InstallReport:
        """Put a device model outside: ``service`` (the service OS, or the user-mode VMM) or ``kernel``; otherwise as :meth:`install`."""
        return await self._placement.move(device, to, image, sha256)

    @property
    def physical(self) -> dict[str, str]:
        """Who has each physical device: the guest (``direct``) or the VMM (``virtualized``)."""
        return {name: device.mode for name, device in self.machine.physical.devices.items()}

    async def virtualize(
        self, device: str, when: str = "between", bound: float = 0.002, on_bound: str = "rollback", patience: float = 2.0
    ) -> SwitchReport:
        """Take a physical device away from the running guest, which goes on with an emulated one and does not notice.

        ``when`` is ``between`` I/O sequences, or in the ``middle`` of one if the guest begins one soon. The guest finds the device busy
        for at most ``bound`` seconds of machine time; past that ``on_bound`` says what happens: ``rollback``, or ``defer``, which goes on
        logging accesses. ``patience`` limits how long a place to switch at is waited for. The report says how it ended. Raises
        VirtualizeError when it cannot be begun.
        """
        return await self.machine.physical.switch(device, True, when, bound, on_bound, patience)

    async def devirtualize(
        self, device: str, when: str = "between", bound: float = 0.002, on_bound: str = "rollback", patience: float = 2.0
    ) -> SwitchReport:
        """Give a physical device back to the running guest; as :meth:`virtualize`."""
        return await self.machine.physical.switch(device, False, when, bound, on_bound, patience)

    async def interpose(self, device: str, kind: str, **options: Any) -> Interposer:
        """Put an interposer between a virtualized disk and its driver: ``trace`` (path), ``fault`` (rules, seed), ``limit`` (bytes_per_s,
        requests_per_s, burst), ``mirror`` (file, or target, a block device of VM-H; drive). Raises VirtualizeError.
        """
        return await self._interposing.add(device, kind, options)

    def interposers(self, device: str) -> dict[str, dict[str, object]]:
        """Return what has been put between a disk and its driver, the newest last, and what each has done."""
        return self._interposing.status(device)

    async def remove_interposer(self, device: str, kind: str) -> None:
        """Take an interposer away; the guest does not notice that either. ``share`` ends what :meth:`share_disk` gave."""
        await self._interposing.remove(device, kind)

    def switch_over(self, device: str) -> None:
        """Let the guest use the ``mirror`` interposer's disk only, from now on. Raises VirtualizeError while it is not complete."""
        self._interposing.switch_over(device)

    def share_disk(self, device: str, drive: int = 0) -> SharedDisk:
        """Return a read-only view of a virtualized disk of this machine. Another machine can have it: ``Disk(shared, "ro")``."""
        return self._interposing.share(device, drive)

    def eject(self, force: bool = False) -> None:
        """Open the CD-ROM drive, as its button does, or with ``force`` as a paper clip does. Raises ConfigError while it is locked."""
        self.media.eject(force)

    async def insert(self, path: str | Path, force: bool = False) -> None:
        """Put another CD-ROM image in. Raises ConfigError while the guest has locked the drive, and ImageError."""
        await self.media.insert(path, force)

    async def attach_disk(self, disk: Disk) -> int:
        """Plug a disk into an enlightened machine's SCSI controller and return its LUN. Raises ConfigError or ImageError."""
        return await self.media.attach(disk)

    async def detach_disk(self, lun: int) -> None:
        """Pull a disk out of the SCSI controller; raises ConfigError when there is none at ``lun``."""
        await self.media.detach(lun)

    @property
    def mode(self) -> str | None:
        """How the built-in guest reaches its disk: ``emulated``, ``enlightened`` or ``shunt-only``; None where no guest tells."""
        return mode.current(self.machine.guest_port)

    async def set_mode(self, wanted: str, timeout: float = 10) -> str:
        """Have the built-in guest reach its disk another way, also in the midst of its work, and return when it does.

        ``timeout`` in seconds of machine time. Raises ModeError in one sentence when the guest stays as it is.
        """
        return await mode.set_mode(self.partition, self.inputs, self.machine.guest_port, wanted, timeout)

    async def power_button(self) -> None:
        """Press the power button: an ACPI event for the guest, which may shut down."""
        self.inputs.post("power")

    async def wait_off(self, timeout: float = 60) -> str:
        """Wait until the machine is off and return why; ``timeout`` in seconds of machine time. Raises GuestFailure if it failed."""
        await ended(self.partition, timeout)
        if self.partition.failure is not None:
            raise self.partition.failure
        return self.partition.off_reason

    async def shutdown(self) -> None:
        """Pull the plug and close the disks; everything the guest flushed, and everything it wrote, is in the files then."""
        if not self._closed:
            self._closed = True
            for server in self.gdb_servers:
                await server.close()
            if self._watch is not None:
                await self._watch.close()
            if self.history is not None:
                await self.history.close()
            await self.partition.stop()
            await self.media.close()
            await self.machine.close()
