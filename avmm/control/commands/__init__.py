"""The commands of the control panel's QMP sockets, by subject."""

from avmm.control.commands import block, extensions, machine, plug, user
from avmm.control.commands.command import Command
from avmm.control.commands.target import Target, Watch

COMMANDS: dict[str, Command] = {**machine.TABLE, **user.TABLE, **block.TABLE, **plug.TABLE, **extensions.TABLE}

__all__ = ["COMMANDS", "Command", "Target", "Watch"]
