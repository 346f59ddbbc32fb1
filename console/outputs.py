"""Files that a command is to write at its end, looked at before it begins.

The invariant: looking changes nothing.
"""

from __future__ import annotations

import os

import click


def check_writable(option: str, path: str | os.PathLike[str]) -> None:
    """UsageError when the file that an option names could not be written."""
    parent = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise click.UsageError(f"{option} {path}: this is a directory")
    if not os.path.isdir(parent):
        raise click.UsageError(f"{option} {path}: there is no directory {parent}")
    if not os.access(path if os.path.exists(path) else parent, os.W_OK):
        raise click.UsageError(f"{option} {path}: permission denied")
