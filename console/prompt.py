"""The line at the bottom in which commands to the machine are typed, with completion, history and a hint.

The invariant: keys go to the guest or into this line, never into both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, ConditionalContainer, FormattedTextControl, HSplit, Window
from prompt_toolkit.layout.processors import BeforeInput

from .commands import Interpreter, hint


class _Words(Completer):
    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        for word, about in self._interpreter.candidates(line):
            yield Completion(word, -len(line.rpartition(" ")[2]), display_meta=about)


class Prompt:
    """The line, its container for a layout, and whether it is open. ``entered`` hears each line, ``left`` that it was closed."""

    def __init__(self, interpreter: Interpreter, entered: Callable[[str], None], left: Callable[[], None]) -> None:
        self.open = False
        self._entered = entered
        self._left = left
        self.buffer = Buffer(
            completer=_Words(interpreter), complete_while_typing=False, history=InMemoryHistory(), multiline=False,
            accept_handler=self._accept,
        )  # fmt: skip
        control = BufferControl(self.buffer, input_processors=[BeforeInput("avmm> ")], key_bindings=self._bindings())
        self.window = Window(control, height=1, style="class:prompt")
        helped = Window(FormattedTextControl(lambda: f" {hint(self.buffer.text)}"), height=1, style="class:hint")
        self.container = ConditionalContainer(HSplit([helped, self.window]), Condition(lambda: self.open))

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("escape", eager=True)
        @bindings.add("c-c", eager=True)
        def leave(event: KeyPressEvent) -> None:
            self.close()

        return bindings

    def _accept(self, buffer: Buffer) -> bool:
        self.open = False
        self._left()
        self._entered(buffer.text)
        return False  # the line is remembered, then emptied

    def close(self) -> None:
        """Give the keys back to the guest."""
        self.open = False
        self.buffer.reset()
        self._left()
