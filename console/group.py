"""A group of commands that are imported when they are used: asking for help, or for one command, does not wait for the others' modules.

The invariant: what the group says of a command is the first sentence of that command's own help.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""How the help of every command is asked for, and how wide it is."""


class LazyGroup(click.Group):
    """``later`` names each command's module, where it is called as the command, and its first sentence."""

    def __init__(self, *args: Any, later: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.later = later

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return sorted(self.later)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.later:
            return None
        command = getattr(import_module(self.later[cmd_name][0], __package__), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their sentences."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.later[name][1]) for name in self.list_commands(ctx)])
