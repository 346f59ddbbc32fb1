"""The guest's serial line on standard input and output, or into a file.

The invariant: a terminal that was switched to single characters is switched back, however the run ends; and a file is
opened when there is something to put into it, so that a machine that never ran leaves none.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import click

import avmm

CHUNK = 4096
ENOUGH = 64
"""Pieces that wait for a machine that stands still before no more is read."""
REST = 0.05


class SerialLog:
    """Appends what the guest sends to a file, as it is, once a turn of the event loop. A full disk does not disturb the guest:
    :meth:`close` says it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._error: OSError | None = None
        self._fd: int | None = None
        self._waiting = bytearray()
        self._loop = asyncio.get_running_loop()

    def take(self, data: bytes) -> None:
        """Take a piece of output."""
        if not self._waiting:
            self._loop.call_soon(self._write)
        self._waiting += data

    def _write(self) -> None:
        try:
            if self._waiting and self._fd is None:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            while self._fd is not None and self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting)]
        except OSError as error:
            self._error = error
            self._waiting.clear()

    def close(self) -> None:
        """Write out what is left. OSError when something could not be written."""
        self._write()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._error is not None:
            raise self._error


class SerialStdio:
    """Connects the serial line with two file descriptors. Output goes out once a turn of the event loop."""

    def __init__(self, vm: avmm.Vm, source: int, sink: int) -> None:
        self._vm = vm
        self._source = source
        self._sink = sink
        self._out = bytearray()
        self._gone = False
        self._loop = asyncio.get_running_loop()
        self._listening = False
        self._resting: asyncio.TimerHandle | None = None
        self._feeder: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start listening to the source: a terminal or a pipe as it speaks, a file at once."""
        self._vm.serial.listeners.append(self.take)
        mode = os.fstat(self._source).st_mode
        if stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(self._source)):  # epoll takes neither files nor /dev/null
            self._feeder = self._loop.create_task(self._feed_file(), name="serial:stdin")
        else:
            self._loop.add_reader(self._source, self._readable)
            self._listening = True

    async def _feed_file(self) -> None:
        while data := os.read(self._source, CHUNK):
            while self._crowded:  # noqa: ASYNC110  a paused machine says nothing when it goes on
                await asyncio.sleep(REST)
            self._vm.serial.write(data)
            await asyncio.sleep(0)

    @property
    def _crowded(self) -> bool:
        """Whether the machine, which stands still, has enough waiting for it."""
        return self._vm.inputs.waiting >= ENOUGH

    def _readable(self) -> None:
        if self._crowded:
            self._loop.remove_reader(self._source)
            self._resting = self._loop.call_later(REST, self._loop.add_reader, self._source, self._readable)
            return
        data = os.read(self._source, CHUNK)
        if data:
            self._vm.serial.write(data)
        else:
            self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listening:
            if self._resting is not None:
                self._resting.cancel()
            self._loop.remove_reader(self._source)
            self._listening = False

    def take(self, data: bytes) -> None:
        """Take a piece of output."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out += data

    def flush(self) -> None:
        """Write out what has come; a reader that went away is not an error."""
        while self._out and not self._gone:
            try:
                done = os.write(self._sink, self._out)
            except BlockingIOError:
                select.select([], [self._sink], [])  # the two ends may share a non-blocking terminal
                continue
            except (BrokenPipeError, ConnectionResetError):
                self._gone = True
                break
            del self._out[:done]
        self._out.clear()

    def close(self) -> None:
        """Stop listening, and write out what is left."""
        self._stop_listening()
        if self._feeder is not None:
            self._feeder.cancel()
        self.flush()


@contextmanager
def single_characters(fd: int) -> Iterator[None]:
    """Let a terminal pass each key at once and without echo; Ctrl-C still interrupts. Nothing happens if it is none."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def connected(vm: avmm.Vm, where: str | None) -> Iterator[None]:
    """Connect the serial line as ``--serial`` says, for the time of a with block."""
    if where is None:
        yield
    elif where == "stdio":
        source, sink = sys.stdin.fileno(), sys.stdout.fileno()
        link = SerialStdio(vm, source, sink)
        with single_characters(source):
            link.open()
            try:
                yield
            finally:
                link.close()
    else:
        log = SerialLog(where)
        vm.serial.listeners.append(log.take)
        try:
            yield
        finally:
            try:
                log.close()
            except OSError as error:
                raise click.ClickException(f"--serial {where}: {error.strerror}") from None
