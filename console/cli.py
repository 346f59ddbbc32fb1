"""The command line: ``avmm``.

Exit statuses: 0 done, 1 it did not come out as asked (a time-out, a refusal, another run than the recorded one; each command's help
says what), 2 bad usage or a file that cannot be used, 3 the guest or a device failed, 130 Ctrl-C. The invariant: with status 2 one
sentence was printed and nothing written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import avmm
from avmm.control.demo_storage import DemoError
from avmm.control.record import RecordError

from . import __version__, lifetime
from .attach import attach
from .campaign import campaign
from .ctl import ctl
from .ctl_physical import COMMANDS as PHYSICAL_COMMANDS
from .demo import demo
from .outputs import check_writable
from .request import TIMEOUT, Request
from .steps import StepCommand, steps_in_order
from .symbols import symbols
from .top import top
from .trace import trace
from .up import up

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(invoke_without_command=True, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="avmm")
@click.pass_context
def group(ctx: click.Context) -> None:
    """Run real, unmodified x86 software on virtual machines.

    \b
      avmm run                       the built-in guest, here in the terminal
      avmm run linux.iso             somebody else's disk, CD-ROM, floppy or kernel
      avmm run disk.img --headless --expect "login:" --screenshot login.png
      avmm up machine.toml           several machines, controlled with avmm ctl and avmm top
      avmm attach                    a console on machines that run
      avmm trace                     one disk request's whole way, by each path
      avmm doctor                    what works on this machine

    `avmm COMMAND --help` explains each command with examples.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@group.command("run", cls=StepCommand, context_settings=CONTEXT)
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
        from .headless import run_headless

        return lifetime.run(run_headless(request))
    from .app import check_terminal
    from .local import run_console

    check_terminal("use --headless")
    return lifetime.run(run_console(request))


@group.command("replay", context_settings=CONTEXT)
@click.argument("file")
@click.option("--print-screen", is_flag=True, help="Print the screen's text at the end.")
@click.option("--screenshot", metavar="F.png", help="Save the screen at the end.")
@click.option("--stats", is_flag=True, help="Print at the end what the machine did.")
def replay(file: str, print_screen: bool, screenshot: str | None, stats: bool) -> int:
    """Make a recorded run again.

    FILE is from avmm run --record-input FILE.

    The same machine gets the same input at the same moments, and does the same to the byte, also when it failed. Exit status 1:
    it did something else, and where first is said; 2: the file, or an image of the machine, cannot be used.
    """
    from .replay import run_replay

    if screenshot is not None:
        check_writable("--screenshot", screenshot)
    return lifetime.run(run_replay(file, print_screen, screenshot, stats))


@group.command("doctor", context_settings=CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def doctor(as_json: bool) -> int:
    """Tell what works on this machine, and what to do about the rest.

    Exit status 1 if something essential is missing.
    """
    from .doctor import examine, print_checks

    return print_checks(examine(), as_json=as_json)


for command in PHYSICAL_COMMANDS:
    ctl.add_command(command)
for command in (up, attach, campaign, ctl, top, symbols, trace, demo):
    group.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        status = group.main(arguments, prog_name="avmm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        _complain(error.format_message(), error.ctx if isinstance(error, click.UsageError) else None)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except (avmm.ConfigError, avmm.BootError, avmm.ImageError, avmm.ProcessorError, avmm.SnapshotError, RecordError, DemoError) as error:
        _complain(str(error))
        sys.exit(2)
    except avmm.WaitTimeout as late:
        _complain(str(late))
        sys.exit(1)
    except (avmm.MachineEnded, avmm.GuestFailure) as ended:
        _complain(str(ended))
        sys.exit(3)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        sys.exit(0)
    sys.exit(int(status or 0))


def _complain(sentence: str, ctx: click.Context | None = None) -> None:
    """Print one sentence, and for bad usage where to read more. Those of click begin with a capital; ours never with a name."""
    sentence = sentence.strip()
    hint = f" ({ctx.command_path} --help explains)" if ctx is not None else ""
    click.echo(f"avmm: {sentence[:1].lower() + sentence[1:] if ctx is not None else sentence}".rstrip(".") + hint, err=True)
