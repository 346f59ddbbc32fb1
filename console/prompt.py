"""The line at the bottom in which commands to the machine are typed, with completion, history and a hint.

The invariant: keys go to the guest or into this line, never into both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.application import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import BufferControl, ConditionalContainer, FormattedTextControl, HSplit, Window
from prompt_toolkit.layout.processors import BeforeInput

from .commands import Interpreter, hint

MOST = 8
"""Candidates shown at once."""


class _Words(Completer):
    def __init__(self, interpreter: Callable[[], Interpreter]) -> None:
        self._interpreter = interpreter

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        for word, about in self._interpreter().candidates(line):
            yield Completion(word, -len(line.rpartition(" ")[2]), display_meta=about)


class Prompt:
    """The line, its container for a layout, and whether it is open. ``entered`` hears each line, ``left`` that it was closed."""

    def __init__(self, interpreter: Callable[[], Interpreter], entered: Callable[[str], None], left: Callable[[], None]) -> None:
        self.open = False
        self._entered = entered
        self._left = left
        self._before: list[str] = []  # the lines entered; prompt_toolkit's own history is there some turns of the loop after the line
        self._recalled = 0
        self.buffer = Buffer(completer=_Words(interpreter), complete_while_typing=False, multiline=False, accept_handler=self._accept)
        control = BufferControl(self.buffer, input_processors=[BeforeInput("avmm> ")], key_bindings=self._bindings())
        self.window = Window(control, height=1, style="class:prompt")
        candidates = Window(FormattedTextControl(self._candidates), dont_extend_height=True, style="class:hint")
        completing = Condition(lambda: self.buffer.complete_state is not None)
        helped = Window(FormattedTextControl(lambda: f" {hint(self.buffer.text)}"), height=1, style="class:hint")
        self.container = ConditionalContainer(
            HSplit([ConditionalContainer(candidates, completing), helped, self.window]), Condition(lambda: self.open)
        )

    def _candidates(self) -> StyleAndTextTuples:
        """What Tab goes through, a line each, the chosen one among them."""
        state = self.buffer.complete_state
        if state is None:
            return []
        at = state.complete_index or 0
        first = max(0, min(at - MOST // 2, len(state.completions) - MOST))
        width = get_app().output.get_size().columns
        made: StyleAndTextTuples = []
        for number, completion in enumerate(state.completions[first : first + MOST], first):
            chosen = number == state.complete_index
            line = f" {completion.text:<18} {completion.display_meta_text}"[:width]
            made.append(("class:tab.current" if chosen else "", f"{line:<{width}}\n"))
        return [*made[:-1], (made[-1][0], made[-1][1].rstrip("\n"))] if made else []

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("escape", eager=True)
        @bindings.add("c-c", eager=True)
        def leave(event: KeyPressEvent) -> None:
            self.close()

        bindings.add("up", filter=~has_completions)(lambda event: self._recall(-1))
        bindings.add("down", filter=~has_completions)(lambda event: self._recall(1))
        return bindings

    def _recall(self, step: int) -> None:
        """Show an earlier line, or a later one; behind the last one is an empty one."""
        lines = [*self._before, ""]
        self._recalled = max(0, min(self._recalled + step, len(lines) - 1))
        self.buffer.document = Document(lines[self._recalled])

    def begin(self) -> None:
        """Take the keys; the line is empty."""
        self.open = True
        self._recalled = len(self._before)
        self.buffer.reset()

    def _accept(self, buffer: Buffer) -> bool:
        self.open = False
        if buffer.text and self._before[-1:] != [buffer.text]:
            self._before.append(buffer.text)
        self._left()
        self._entered(buffer.text)
        return False  # the line is emptied

    def close(self) -> None:
        """Give the keys back to the guest."""
        self.open = False
        self.buffer.reset()
        self._left()
