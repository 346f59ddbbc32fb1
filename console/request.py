"""What ``avmm run`` was asked for, checked, and the machine it describes.

The invariant: everything that can be known to be wrong is said before a file is opened for writing or a machine is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

import avmm
import avmm_guests
from avmm.control.description import NAME

from .images import recognise
from .keys import parse_prefix
from .outputs import check_writable
from .steps import Step, check_typable

TIMEOUT = 60.0
"""Seconds of machine time for each step, by default."""
FOR_EVER = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command line of ``avmm run``, one field for each option."""

    image: str | None
    floppy: tuple[str, ...]
    cdrom: str | None
    disk: tuple[str, ...]
    kernel: str | None
    initrd: str | None
    append: str
    bios: str
    memory: str
    clock: Literal["real", "virtual"] | None
    overlay: bool
    read_only: bool
    name: str
    hyperv: bool
    triple_fault: Literal["reset", "stop"]
    restore: str | None
    record_input: str | None
    gdb: str | None
    gdb_wait: bool
    gdb_reverse: bool
    prefix: str
    headless: bool
    steps: tuple[Step, ...]
    type_to: Literal["auto", "keyboard", "serial"]
    timeout: float | None
    screenshot: str | None
    speaker: str | None
    serial: str | None
    record: str | None
    log: str | None
    print_screen: bool
    stats: bool
    json: bool

    @property
    def talks(self) -> bool:
        """Whether somebody talks to the guest's serial line through standard input and output."""
        return self.serial == "stdio"

    @property
    def limit(self) -> float:
        """Seconds of machine time for each step, or for the whole run if there are none."""
        if self.timeout is not None:
            return self.timeout
        return FOR_EVER if self.talks and not self.steps else TIMEOUT

    @property
    def boots(self) -> str:
        """What is booted, as a message names it."""
        named = self.image or self.kernel or next(iter((*self.floppy, *self.disk)), None) or self.cdrom
        return named if named is not None else self.restore or "the built-in guest"

    def check(self) -> None:
        """UsageError for combinations that make no sense, and for files that could not be written later."""
        needs_headless = {
            "a step (--expect, --type)": bool(self.steps), "--timeout": self.timeout is not None, "--serial stdio": self.talks,
            "--print-screen": self.print_screen, "--json": self.json,
        }  # fmt: skip
        for option, given in needs_headless.items():
            if given and not self.headless:
                raise click.UsageError(f"{option} only works with --headless: the console has the terminal otherwise")
        if not NAME.fullmatch(self.name):
            raise click.UsageError(f"--name: {self.name!r} is no name for a machine: use letters, digits, dots, - and _")
        self.check_restore()
        if self.record_input is not None and self.clock == "real":
            raise click.UsageError("--record-input needs virtual time, where a run can be repeated: leave --clock real away")
        if self.record_input is not None and self.restore is not None:
            raise click.UsageError("--record-input begins at power-on: leave --restore away")
        if self.overlay and self.read_only:
            raise click.UsageError("choose one of --overlay and --read-only")
        if self.talks and (self.json or self.print_screen or self.stats):
            raise click.UsageError("--serial stdio needs standard output for the guest: leave --json, --stats and --print-screen away")
        if self.timeout is not None and not 0 < self.timeout <= FOR_EVER:
            raise click.UsageError("--timeout is a number of seconds above 0")
        if self.type_to != "serial":
            for step in self.steps:
                if step.kind == "type":
                    check_typable(step)
        try:
            parse_prefix(self.prefix)
        except ValueError as error:
            raise click.UsageError(f"--prefix: {error}") from None
        if self.record is not None and self.headless:
            raise click.UsageError("--record records the console: leave --headless away, or use --log")
        for option, path in (
            ("--screenshot", self.screenshot), ("--speaker", self.speaker), ("--serial", self.serial),
            ("--record", self.record), ("--log", self.log), ("--record-input", self.record_input),
        ):  # fmt: skip
            if path is not None and not (option == "--serial" and self.talks):
                check_writable(option, path)

    def check_restore(self) -> None:
        """UsageError for what a snapshot says itself."""
        given = {
            "IMAGE": self.image, "--floppy": self.floppy, "--cdrom": self.cdrom, "--disk": self.disk, "--kernel": self.kernel,
            "--initrd": self.initrd, "--append": self.append, "--clock": self.clock, "--overlay": self.overlay,
            "--read-only": self.read_only,
        }  # fmt: skip
        for option, value in given.items():
            if self.restore is not None and value:
                raise click.UsageError(f"the machine of a snapshot is in the snapshot: leave {option} away")

    def machine(self) -> avmm.VmConfig:
        """Return the machine described. UsageError, or ConfigError with one sentence."""
        mode: Literal["rw", "ro", "overlay"] = "overlay" if self.overlay else "ro" if self.read_only else "rw"
        disks = [avmm.Disk(path, mode) for path in self.disk]
        floppies = [avmm.Disk(path, mode) for path in self.floppy]
        cdrom, kernel, boot = self.cdrom, self.kernel, ""
        if self.image is not None:
            match recognise(self.image):
                case "cdrom":
                    cdrom, boot = _only_one(self.image, cdrom, "a CD-ROM", "--cdrom"), "d"
                case "kernel":
                    kernel = _only_one(self.image, kernel, "a kernel", "--kernel")
                case "floppy":
                    floppies.insert(0, avmm.Disk(self.image, mode))
                    boot = "a"
                case "disk":
                    disks.insert(0, avmm.Disk(self.image, mode))
                    boot = "c"
        elif not (disks or floppies or cdrom or kernel or self.initrd or self.append):
            disks = [avmm.Disk(_built_in_guest(), "ro" if self.read_only else "overlay")]
        return avmm.VmConfig(
            name=self.name, memory=self.memory, disks=disks, floppies=floppies, cdrom=cdrom, kernel=kernel, initrd=self.initrd,
            append=self.append, bios=self.bios, boot=boot, clock=self._clock(), on_triple_fault=self.triple_fault,
            hyperv=self.hyperv,
            gdb=self.gdb or "", gdb_wait=self.gdb_wait, gdb_reverse=self.gdb_reverse,
        )  # fmt: skip

    def _clock(self) -> Literal["real", "virtual"]:
        if self.clock is not None:
            return self.clock
        return "virtual" if self.record_input is not None or (self.headless and not self.talks) else "real"


def _only_one(image: str, other: str | None, what: str, option: str) -> str:
    if other is not None:
        raise click.UsageError(f"choose one of {image} and {option} {other}: each is {what}")
    return image


def _built_in_guest() -> Path:
    try:
        return Path(avmm_guests.image())
    except FileNotFoundError as error:
        raise avmm.ConfigError(f"there is no built-in guest: {error}") from None
