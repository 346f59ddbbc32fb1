"""A run without a console: the steps one after another, in machine time.

The invariant: the machine is shut down and its images are closed before the process ends, however the run ends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import click

import avmm

from . import serial_io
from .make import begin, make, recorded_input
from .recording import logged
from .request import Request
from .results import Status, final_state, print_json, print_stats, save_files, say
from .steps import Step

PATIENCE = 1.0
"""Seconds of the host's time before progress is shown, if standard error is a terminal."""


class NothingBooted(click.ClickException):
    """The built-in BIOS found nothing to boot."""

    exit_code = 2


class HeadlessRun:
    """One machine and the steps it goes through."""

    def __init__(self, vm: avmm.Vm, request: Request) -> None:
        self.vm = vm
        self.request = request
        self.done = 0
        """Steps done so far."""
        self._on_serial = request.type_to == "serial"

    async def go(self) -> tuple[Status, str]:
        """Go through all steps, or until the guest powers off. Returns the exit status and a sentence about it."""
        vm = self.vm
        try:
            await begin(vm)
            for server in vm.gdb_servers:
                say(f"gdb: target remote {server.address}")
            for step in self.request.steps:
                await (self._expect(step) if step.kind == "expect" else self._type(step))
                self.done += 1
            if not self.request.steps:
                await vm.wait_until(self._booted_nothing, self.request.limit, "the guest powered off")
        except avmm.GuestFailure as failure:
            return Status.FAILED, str(failure)
        except avmm.WaitTimeout as timeout:
            return Status.TIMEOUT, self._step_sentence(str(timeout).partition("; ")[0])
        except avmm.MachineEnded:
            return self._ended()
        return Status.DONE, "all steps done"

    def _step_sentence(self, what: str) -> str:
        steps = self.request.steps
        return f"step {self.done + 1} of {len(steps)}, {steps[self.done]}: {what}" if steps else what

    def _ended(self) -> tuple[Status, str]:
        """The guest is off, in the middle of a step or because there was nothing else to wait for."""
        reason = self.vm.partition.off_reason
        if reason == "triple fault":
            return Status.FAILED, self.vm.report("triple fault")
        if self.request.steps:
            return Status.TIMEOUT, self._step_sentence(f"the guest went off first ({reason})")
        return Status.DONE, f"the guest went off ({reason})"

    def _booted_nothing(self) -> bool:
        if self.vm.boot_failure:
            raise_nothing_booted(self.vm, self.request)
        return False

    async def _expect(self, step: Step) -> None:
        """Look on the screen and in what came over the serial line since the last match."""
        vm = self.vm
        found: list[str] = []
        length = -1

        def met() -> bool:
            nonlocal length
            written = vm.serial.dropped + len(vm.serial.output)
            if written != length:
                length = written
                if vm.serial.take(step.text) is not None:
                    found.append("serial")
            if on_screen(vm, step.text):
                found.append("screen")
            return bool(found) or self._booted_nothing()

        await vm.wait_until(met, self.request.limit, f"the screen or the serial line showed {step.text!r}")
        if self.request.type_to == "auto":
            self._on_serial = "screen" not in found

    async def _type(self, step: Step) -> None:
        if self._on_serial:
            self.vm.serial.write(step.text.replace("\n", "\r"))
        else:
            await self.vm.keyboard.type(step.text)


def on_screen(vm: avmm.Vm, text: str) -> bool:
    """Whether the screen shows ``text``. Blanks at the end of a line may be in it or not: a screen is full of them."""
    return text in vm.screen.text() or text in "\n".join(vm.screen.display.text_rows())


def raise_nothing_booted(vm: avmm.Vm, request: Request) -> None:
    """Say that the BIOS found nothing to boot."""
    raise NothingBooted(f"{request.boots} is not bootable: {vm.boot_failure}")


async def run_headless(request: Request) -> Status:
    """Make the machine, run it, and print what was asked for."""
    async with avmm.Host() as host:
        vm = await make(host, request)
        run = HeadlessRun(vm, request)
        with serial_io.connected(vm, request.serial), logged(vm, request.log):
            async with recorded_input(vm, request.record_input, by_person=request.talks), _progress(run):
                status, outcome = await run.go()
        save_files(vm, request)
        if request.json:
            print_json(vm, request, status, outcome, run.done)
        else:
            if status is not Status.DONE:
                say(f"avmm: {outcome}")
                say(final_state(vm))
            if request.print_screen:
                click.echo(vm.screen.text())
            if request.stats:
                print_stats(vm.stats)
    return status


@asynccontextmanager
async def _progress(run: HeadlessRun) -> AsyncIterator[None]:
    """Show on a terminal how far the run is, if it takes longer than a moment."""
    if not sys.stderr.isatty() or run.request.talks:
        yield
        return
    task = asyncio.get_running_loop().create_task(_show_progress(run), name="progress")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _show_progress(run: HeadlessRun) -> None:
    began = time.monotonic()
    await asyncio.sleep(PATIENCE)
    steps = run.request.steps
    try:
        while True:
            doing = f"step {run.done + 1}/{len(steps)}: {steps[run.done]}" if run.done < len(steps) else "running until power-off"
            line = f"{doing}  ({run.vm.now:.1f} s of machine time, {time.monotonic() - began:.0f} s here)"
            sys.stderr.write(f"\r\x1b[K{line[:79]}")
            sys.stderr.flush()
            await asyncio.sleep(0.25)
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
