"""``avmm run`` with a console: a machine of this process on the terminal.

The invariant: the machine is shut down and its images are closed before the process ends, however the console ends.
"""

from __future__ import annotations

from contextlib import ExitStack

import avmm
from avmm.control.commands import COMMANDS, Target
from avmm.control.seat import LocalSeat

from . import serial_io
from .app import Console, depth_here
from .headless import raise_nothing_booted
from .keys import parse_prefix
from .machines import Machine
from .make import begin, make, recorded_input
from .recording import logged, recorded
from .request import Request
from .results import Status, print_stats, save_files, say


async def run_console(request: Request) -> int:
    """Make the machine, show it, and return the exit status."""
    async with avmm.Host() as host:
        vm = await make(host, request)

        async def stop(_: avmm.Vm | None) -> None:
            await vm.partition.stop("quit")

        target = Target(host, COMMANDS, stop, vm)
        with ExitStack() as held:
            held.enter_context(serial_io.connected(vm, request.serial))
            held.enter_context(logged(vm, request.log))
            held.callback(target.unwatch, vm)
            output = held.enter_context(recorded(request.record))
            async with LocalSeat(vm) as seat:
                machine = Machine(seat, target.execute, depth_here())
                console = Console([machine], lambda: _ended(vm), prefix=parse_prefix(request.prefix), output=output)
                async with recorded_input(vm, request.record_input, by_person=True):
                    await begin(vm)
                    for server in vm.gdb_servers:
                        console.say(f"gdb: target remote {server.address}")
                    await console.run()
        status = _outcome(vm, request)
        save_files(vm, request)
        if request.stats:
            print_stats(vm.stats)
    return status


def _ended(vm: avmm.Vm) -> bool:
    return vm.state.ended or bool(vm.boot_failure)


def _outcome(vm: avmm.Vm, request: Request) -> Status:
    if vm.partition.failure is not None:
        say(f"avmm: {vm.partition.failure}")
        return Status.FAILED
    if vm.boot_failure:
        raise_nothing_booted(vm, request)
    if vm.partition.off_reason == "triple fault":
        say(f"avmm: {vm.report('triple fault')}")
        return Status.FAILED
    off = vm.state is avmm.RunState.OFF and vm.partition.off_reason != "quit"
    say(f"{vm.name}: {f'the guest went off ({vm.partition.off_reason})' if off else 'switched off'}")
    return Status.DONE
