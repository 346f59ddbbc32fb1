"""How the built-in guest reaches its disk, as its host wants it: the host's end of the guest port."""

from __future__ import annotations

from avmm.control.inputs import Inputs
from avmm.control.watch import MachineEnded, WaitTimeout, wait_until
from avmm.devices.guest_port import MODES, GuestPort
from avmm.hypervisor.partition import Partition, RunState

REASONS = {
    6: "it has no disk",
    10: "it found no hypervisor to speak to",
    11: "the host does not answer on VMBus",
    12: "the host offers no disk controller on VMBus",
    13: "the host's controller does not have the disk it runs from",
}
"""The built-in guest's errors (guests/nub/abi.h)."""


class ModeError(ValueError):
    """The guest did not take the mode; one sentence says why."""


def current(port: GuestPort | None) -> str | None:
    """Return the mode the guest is in; None where no guest tells."""
    return MODES[port.mode] if port is not None and port.mode is not None and port.mode < len(MODES) else None


async def set_mode(partition: Partition, inputs: Inputs, port: GuestPort | None, mode: str, timeout: float) -> str:
    """Have the guest switch, and return when it has, with the mode it is in; see ``Vm.set_mode``."""
    if mode not in MODES:
        raise ModeError(f"there is no mode {mode!r}: choose {', '.join(MODES)}")
    if port is None:
        raise ModeError("a guest can have two ways to its disk only on a machine with hyperv = true")
    if partition.state is not RunState.RUNNING:
        raise ModeError(f"{partition.name} is {partition.state.value}: only a running guest can switch")
    if port.mode is None:
        raise ModeError("nobody in the guest listens at the guest port: only the built-in guest does, once its kernel has started")
    inputs.post("mode", MODES.index(mode))
    try:
        await wait_until(partition, lambda: port.answered and not inputs.waiting, timeout, lambda: f"the guest was {mode}")
    except (WaitTimeout, MachineEnded) as error:
        raise ModeError(str(error)) from None
    if port.error:
        raise ModeError(f"the guest stays {current(port)}: {REASONS.get(port.error, f'its error {port.error}')}")
    if current(port) != mode:
        raise ModeError(f"{partition.name} was reset before its guest was {mode}")
    return mode
