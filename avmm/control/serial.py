"""A serial line as a person or a scenario sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from avmm.control.inputs import Inputs
from avmm.control.screen import Wanted, describe, match_end
from avmm.control.watch import in_turn, wait_stable, wait_until
from avmm.devices.uart import Uart
from avmm.hypervisor.partition import Partition

KEPT = 4 << 20
TAIL = 2000


@dataclass(frozen=True, slots=True)
class SerialState:
    """What the line's user had of it: the output that is kept, how much is not, and up to where it was matched."""

    output: bytes
    dropped: int
    seen: int
    version: int = 1


class Serial:
    """What the guest wrote to a serial port, and a way to write to it."""

    def __init__(self, partition: Partition, inputs: Inputs, uart: Uart) -> None:
        self._partition = partition
        self._inputs = inputs
        inputs.handlers["serial"], inputs.handlers["break"] = self._receive, self._receive_break
        self.uart = uart
        self.output = bytearray()
        """What the guest has written; the oldest bytes go when it is more than 4 MiB."""
        self.dropped = 0
        self.listeners: list[Callable[[bytes], None]] = []
        """Called with each piece of output."""
        self._seen = 0
        uart.on_output = self._take

    def _take(self, data: int) -> None:
        self.output.append(data)
        if self.listeners:
            for listener in self.listeners:
                listener(bytes((data,)))
        if len(self.output) > KEPT:
            excess = len(self.output) // 2
            self.dropped += excess
            del self.output[:excess]
            self._seen = max(0, self._seen - excess)

    def text(self) -> str:
        """Return everything written so far that is kept."""
        return self.output.decode("utf-8", "replace")

    def tail(self, length: int = TAIL) -> str:
        """Return the last part of the output."""
        return bytes(self.output[-length:]).decode("utf-8", "replace")

    def write(self, data: str | bytes) -> None:
        """Send to the guest; it arrives as fast as the guest's driver takes it."""
        self._inputs.post("serial", data.encode() if isinstance(data, str) else bytes(data))

    def _receive(self, data: bytes) -> None:
        self.uart.receive(data)

    def _receive_break(self) -> None:
        self.uart.receive_break()

    def send_break(self) -> None:
        """Send a break to the guest."""
        self._inputs.post("break")

    def take(self, wanted: Wanted) -> str | None:
        """Return what was written since the last match if it matches, None if not. What comes behind the match is left for the next."""
        text = bytes(self.output[self._seen :]).decode("utf-8", "surrogateescape")
        end = match_end(wanted, text)
        if end is None:
            return None
        self._seen += len(text[:end].encode("utf-8", "surrogateescape"))
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    async def wait_for(self, wanted: Wanted, timeout: float = 10) -> str:
        """Wait until what was written since the last match matches, and return it; ``timeout`` in seconds of machine time."""
        found: str | None = None
        length = -1

        def met() -> bool:
            nonlocal length, found
            written = self._written()
            if found is None and written != length:
                length = written
                found = self.take(wanted)
            return found is not None

        await wait_until(self._partition, met, timeout, lambda: f"the serial line said {describe(wanted)}; {self._last_words()}")
        assert found is not None
        return found

    async def wait_stable(self, quiet: float = 0.5, timeout: float = 10) -> str:
        """Wait until nothing was written for ``quiet`` s of machine time; return everything written that is kept."""
        what = f"the serial line was quiet for {quiet:g} s"
        await wait_stable(self._partition, self._written, quiet, timeout, lambda: f"{what}; {self._last_words()}")
        return self.text()

    async def expect_sequence(self, *wanted: Wanted, timeout: float = 10) -> list[str]:
        """Wait for one after another, each behind the match before, and return the pieces; ``timeout`` is for all together."""
        return await in_turn(self._partition, [partial(self.wait_for, one) for one in wanted], timeout)

    def save(self) -> SerialState:
        """Return what there is to see."""
        return SerialState(bytes(self.output), self.dropped, self._seen)

    def restore(self, state: SerialState) -> None:
        """Show what there was to see; listeners do not hear it again."""
        self.output[:] = state.output
        self.dropped, self._seen = state.dropped, state.seen

    def _written(self) -> int:
        return self.dropped + len(self.output)

    def _last_words(self) -> str:
        return f"its last words:\n{self.tail()}"
