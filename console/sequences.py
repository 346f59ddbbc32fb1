"""Escape sequences that switch a terminal to a style, as prompt_toolkit would write them, each made once.

The invariant: what a sequence looks like does not depend on what was written before it.
"""

from __future__ import annotations

import io

from prompt_toolkit.data_structures import Size
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

PLAIN = "\x1b[0m"
"""No colours and no attributes."""


class Sequences(dict[str, str]):
    """The sequence of each style in prompt_toolkit's words, on terminals of one depth of colours; ``style`` has classes that are meant."""

    def __init__(self, depth: ColorDepth, style: Style | None = None) -> None:
        super().__init__()
        self._depth = depth
        self._styles = style or Style([])
        self._written = io.StringIO()
        self._scratch = Vt100_Output(self._written, lambda: Size(1, 1))

    def __missing__(self, style: str) -> str:
        """Let prompt_toolkit write it."""
        self._scratch.set_attributes(self._styles.get_attrs_for_style_str(style), self._depth)
        self._scratch.flush()
        made = self[style] = self._written.getvalue()
        self._written.seek(0)
        self._written.truncate()
        return made
