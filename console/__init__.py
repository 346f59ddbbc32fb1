"""The command line and the console of avmm: the guest's screen and keyboard in a terminal. Uses avmm's public API only."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("avmm")
