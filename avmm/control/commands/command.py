"""What a QMP command is: a name, the arguments it takes, and a coroutine that carries it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avmm.control.config import ConfigError
from avmm.control.inputs import InputsFull
from avmm.control.mode import ModeError
from avmm.control.physical import VirtualizeError
from avmm.control.qmp import QmpError
from avmm.control.snapshot import SnapshotError
from avmm.debug.debugger import DebugError
from avmm.devices.block import BlockError
from avmm.host.opening import ImageError
from avmm.hypervisor.image import DeviceImageError
from avmm.hypervisor.install import InstallError

if TYPE_CHECKING:
    from avmm.control.commands.target import Target
    from avmm.control.vm import Vm

REQUIRED = object()
REFUSALS = (
    BlockError, ConfigError, DebugError, DeviceImageError, ImageError, InputsFull, InstallError, ModeError, QmpError, SnapshotError,
    VirtualizeError,
)  # fmt: skip
"""What a machine raises when it cannot do what a command asks for; each says why in one sentence."""
_NAMES: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


@dataclass(frozen=True, slots=True)
class Arg:
    """An argument: its type and what it is when not given."""

    type: type
    default: Any = REQUIRED


@dataclass(slots=True)
class Call:
    """One execution of a command: on which machine, with which arguments."""

    target: Target
    arguments: dict[str, Any]
    chosen: Vm | None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def vm(self) -> Vm:
        """The machine that the command is for."""
        assert self.chosen is not None
        return self.chosen

    @property
    def running(self) -> Vm:
        """The machine, which must not have ended. QmpError otherwise."""
        vm = self.vm
        if vm.state.ended:
            raise QmpError(f"'{vm.name}' has ended ({vm.partition.off_reason or 'it failed'})")
        return vm


Action = Callable[[Call], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Command:
    """A command. With ``machine`` False it is for the host and not for one machine."""

    name: str
    action: Action
    args: dict[str, Arg] = field(default_factory=dict)
    machine: bool = True

    def check(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with defaults filled in. QmpError for what is missing, unexpected or of the wrong type."""
        for name in given:
            if name not in self.args:
                raise QmpError(f"Parameter '{name}' is unexpected")
        checked = {}
        for name, arg in self.args.items():
            if name not in given:
                if arg.default is REQUIRED:
                    raise QmpError(f"Parameter '{name}' is missing")
                checked[name] = arg.default
                continue
            value = given[name]
            kinds = (int, float) if arg.type is float else (arg.type,)
            if not isinstance(value, kinds) or (isinstance(value, bool) and arg.type is not bool):
                raise QmpError(f"Invalid parameter type for '{name}', expected: {_NAMES[arg.type]}")
            checked[name] = value
        return checked


class Table(dict[str, Command]):
    """Commands by name, filled by a decorator: ``@table.command("stop")``."""

    def command(self, name: str, *, machine: bool = True, **args: Arg) -> Callable[[Action], Action]:
        """Register a coroutine as the command ``name``; underscores in the names of arguments stand for dashes."""

        def register(action: Action) -> Action:
            self[name] = Command(name, action, {arg.replace("_", "-"): kind for arg, kind in args.items()}, machine)
            return action

        return register
