"""What the commands of one QMP socket act on: one machine, or the host with all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from avmm.control.commands.command import REFUSALS, Call, Command
from avmm.control.host import Host
from avmm.control.qmp import Publish, QmpError
from avmm.control.vm import Vm
from avmm.hypervisor.partition import RunState
from avmm.hypervisor.trace import Event

Quit = Callable[[Vm | None], Awaitable[None]]
"""Ends a machine, or with None all of them and the host."""


class Target:
    """One machine, or with ``vm`` None the host, whose commands take the machine's name as an argument ``vm``.

    Events of the machines go to ``listeners``; those of the host's socket say which machine they are of.
    """

    def __init__(self, host: Host, commands: dict[str, Command], quit: Quit, vm: Vm | None = None) -> None:
        self.host = host
        self.commands = commands
        self.quit = quit
        self.vm = vm
        self.listeners: list[Publish] = []
        self._watches: dict[str, Watch] = {}
        if vm is not None:
            self.watch(vm)

    def watch(self, vm: Vm) -> None:
        """Pass a machine's events on."""
        name = {"vm": vm.name} if self.vm is None else {}
        self._watches[vm.name] = Watch(vm, lambda event, data: self.publish(event, {**data, **name}))

    def unwatch(self, vm: Vm) -> None:
        """Do not any more."""
        watch = self._watches.pop(vm.name, None)
        if watch is not None:
            watch.close()

    def announce(self, vm: Vm, event: str, **data: object) -> None:
        """Send an event that a command causes to everybody who watches the machine, here or on another socket."""
        for watcher in Watch.of(vm):
            watcher.publish(event, dict(data))

    def publish(self, event: str, data: dict[str, Any]) -> None:
        """Send an event to those who listen."""
        for listener in list(self.listeners):
            listener(event, data)

    async def execute(self, name: str, arguments: dict[str, Any]) -> object:
        """Carry out a command and return its result, ready for JSON. Raises QmpError."""
        command = self.commands.get(name)
        if command is None:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        given = dict(arguments)
        chosen = self.vm
        if "vm" in given or (self.vm is None and command.machine):
            chosen = self._find(given.pop("vm", None))
        call = Call(self, command.check(given), chosen)
        if chosen is not None and chosen.name not in self.host.vms:
            raise QmpError(f"'{chosen.name}' is gone")
        try:
            return await command.action(call)
        except QmpError:
            raise
        except REFUSALS as error:
            raise QmpError(str(error)) from None

    def _find(self, name: object) -> Vm:
        if name is None:
            raise QmpError("Parameter 'vm' is missing: say which machine")
        vm = self.host.vms.get(name) if isinstance(name, str) else None
        if vm is None:
            raise QmpError(f"There is no machine called {name!r}", "DeviceNotFound")
        if self.vm not in (None, vm):
            raise QmpError(f"This is the socket of {self.vm.name}, not of {vm.name}")
        return vm


class Watch:
    """Turns what happens to a machine into QMP events."""

    _all: ClassVar[WeakKeyDictionary[Vm, list[Watch]]] = WeakKeyDictionary()
    """Who watches each machine, so that what is commanded on one socket is heard on the others."""

    def __init__(self, vm: Vm, publish: Publish) -> None:
        self.vm = vm
        self.publish = publish
        self._before = vm.state
        vm.partition.observers.append(self._state)
        vm.partition.trace_log.subscribers.append(self._traced)
        self._all.setdefault(vm, []).append(self)

    @classmethod
    def of(cls, vm: Vm) -> list[Watch]:
        """Return everybody who watches a machine."""
        return list(cls._all.get(vm, ()))

    def close(self) -> None:
        """Look away."""
        with suppress(ValueError):
            self.vm.partition.observers.remove(self._state)
            self.vm.partition.trace_log.subscribers.remove(self._traced)
        self._all[self.vm].remove(self)

    def _state(self, state: RunState) -> None:
        before, self._before = self._before, state
        if state is RunState.PAUSED:
            self.publish("STOP", {})
        elif state is RunState.RUNNING and before is RunState.PAUSED:
            self.publish("RESUME", {})
        elif state is RunState.OFF:
            reason = self.vm.partition.off_reason
            by_host = reason in ("stopped", "quit", "")
            self.publish("SHUTDOWN", {"guest": not by_host, "reason": "host-qmp-quit" if by_host else "guest-shutdown"})
        elif state is RunState.FAILED:
            self.publish("SHUTDOWN", {"guest": False, "reason": "host-error"})

    def _traced(self, event: Event) -> None:
        if event.name == "reset":
            by_host = event.fields.get("reason") == "reset button"
            self.publish("RESET", {"guest": not by_host, "reason": "host-qmp-system-reset" if by_host else "guest-reset"})
