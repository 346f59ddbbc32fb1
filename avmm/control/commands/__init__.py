"""The commands of the control panel's QMP sockets, by subject."""

from avmm.control.commands.block import TABLE as BLOCK
from avmm.control.commands.command import Command
from avmm.control.commands.extensions import TABLE as EXTENSIONS
from avmm.control.commands.machine import TABLE as MACHINE
from avmm.control.commands.physical import TABLE as PHYSICAL
from avmm.control.commands.plug import TABLE as PLUG
from avmm.control.commands.snapshots import TABLE as SNAPSHOTS
from avmm.control.commands.target import Target, Watch
from avmm.control.commands.user import TABLE as USER

COMMANDS: dict[str, Command] = {**MACHINE, **USER, **BLOCK, **PLUG, **PHYSICAL, **EXTENSIONS, **SNAPSHOTS}

__all__ = ["COMMANDS", "Command", "Target", "Watch"]
