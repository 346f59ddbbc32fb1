"""``avmm run``: its options."""

from __future__ import annotations

from typing import Any

import click

from . import lifetime
from .app import check_terminal
from .group import CONTEXT
from .headless import run_headless
from .local import run_console
from .request import TIMEOUT, Request
from .steps import StepCommand, steps_in_order


@click.command("run", cls=StepCommand, context_settings=CONTEXT)
@click.argument("image", required=False)
@click.option("--floppy", metavar="F", multiple=True, help="A floppy image; twice for drive B.")
@click.option("--cdrom", metavar="F", help="A CD-ROM image (ISO 9660).")
@click.option("--disk", metavar="F", multiple=True, help="A hard disk image, raw; up to four.")
@click.option("--kernel", metavar="F", help="Start this Linux (bzImage, vmlinux) or multiboot kernel.")
@click.option("--initrd", metavar="F", help="The initial RAM disk, or the multiboot kernel's module.")
@click.option("--append", metavar="S", default="", help="The kernel's command line.")
@click.option("--bios", metavar="builtin|seabios|FILE", default="builtin", show_default=True, help="Firmware.")
@click.option("--memory", metavar="SIZE", default="64M", show_default=True, help="RAM: 1M to 3G.")
@click.option(
    "--clock", type=click.Choice(["real", "virtual"]),
    help="Machine time: the host's, or computed from the work done, so that runs are identical. "
    "By default real, with --headless virtual (but real with --serial stdio).",
)  # fmt: skip
@click.option("--restore", metavar="F", help="Go on from a snapshot (avmm ctl snapshot VM F) instead of starting a machine.")
@click.option("--record-input", metavar="F", help="Record what reaches the machine; avmm replay F makes the same run again.")
@click.option("--overlay", is_flag=True, help="Keep the guest's writes apart and forget them at the end; the images stay as they are.")
@click.option("--read-only", is_flag=True, help="Give the guest its disks and floppies write-protected.")
@click.option("--headless", is_flag=True, help="No console: do the steps, then end.")
@click.option("--expect", metavar="TEXT", multiple=True, help="Step: wait until TEXT is on the screen or came over the serial line.")
@click.option("--type", metavar="TEXT", multiple=True, help=r"Step: type TEXT; \n is Enter, \t Tab, \e Escape, \b Backspace, \\ itself.")
@click.option(
    "--type-to", type=click.Choice(["auto", "keyboard", "serial"]), default="auto", show_default=True,
    help="Where --type types; auto: where the last --expect was found, at first the keyboard.",
)  # fmt: skip
@click.option(
    "--timeout", metavar="S", type=float,
    help=f"Seconds of machine time that each step may take, or the whole run without steps.  [default: {TIMEOUT:g}]",
)  # fmt: skip
@click.option("--screenshot", metavar="F.png", help="Save the screen at the end.")
@click.option("--print-screen", is_flag=True, help="Print the screen's text at the end.")
@click.option("--serial", metavar="stdio|FILE", help="Connect the serial line to standard input and output, or append it to a file.")
@click.option("--record", metavar="F.cast", help="Record the console as an asciicast (asciinema plays it).")
@click.option("--log", metavar="F.txt", help="Write the serial line's output and the machine's events as plain text.")
@click.option("--speaker", metavar="F.wav", help="Save what the PC speaker played.")
@click.option("--stats", is_flag=True, help="Print at the end what the machine did.")
@click.option("--json", is_flag=True, help="Print the result, the screen and the statistics as JSON.")
@click.option("--hyperv", is_flag=True, help="An enlightened machine: Hyper-V's interface, and disks, keyboard and monitor on VMBus.")
@click.option(
    "--triple-fault", type=click.Choice(["reset", "stop"]), default="reset", show_default=True,
    help="What a triple fault does: reset, as a PC does, or stop with a report and exit status 3.",
)  # fmt: skip
@click.option(
    "--gdb", metavar="ADDRESS",
    help="Let a gdb debug the machine at HOST:PORT, PORT (on this host) or unix:PATH: `target remote ADDRESS` in gdb.",
)  # fmt: skip
@click.option("--gdb-wait", is_flag=True, help="Do not start before a gdb says continue.")
@click.option("--gdb-reverse", is_flag=True, help="Keep a history, so that gdb can run the machine backwards; with the virtual clock.")
@click.option("--prefix", metavar="KEY", default="Ctrl-a", show_default=True, help="The key before the console's own commands.")
@click.option("--name", metavar="NAME", default="vm", show_default=True, help="What the machine is called.")
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> int:
    """Start a machine, in a full-screen console or without one.

    IMAGE is recognised by its content: CD-ROM, floppy, kernel or hard disk. Without an image the built-in guest starts.

    \b
      avmm run                                          try it: type help
      avmm run disk.img --overlay                       look around, change nothing
      avmm run --kernel vmlinuz --initrd initrd.img --append "console=ttyS0" --headless --serial stdio
      avmm run boot.img --headless --expect "boot:" --type "linux\\n" --expect "ready" --screenshot ready.png

    In the console Ctrl-a is the prefix: Ctrl-a x quits, Ctrl-a c is a command line, Ctrl-a d draws
    what happens, Ctrl-a [ scrolls back, Ctrl-a h lists the others.

    With --headless, --expect and --type are steps in the order given. Exit status 0: all steps done, or without steps the
    guest powered off; 1: a step timed out (the screen and the serial line are printed); 2: bad usage, or an image that
    cannot be used; 3: the guest or a device failed (registers, disassembly and the last exits are printed).
    """
    values = {kind: given.pop(kind) for kind in ("expect", "type")}
    request = Request(steps=steps_in_order(ctx, values), **given)
    request.check()
    if request.headless:
        return lifetime.run(run_headless(request))
    check_terminal("use --headless")
    return lifetime.run(run_console(request))
