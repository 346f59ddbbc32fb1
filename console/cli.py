"""The command line: ``avmm``.

Exit statuses: 0 done, 1 it did not come out as asked (a time-out, a refusal, another run than the recorded one; each command's help
says what), 2 bad usage or a file that cannot be used, 3 the guest or a device failed, 130 Ctrl-C. The invariant: with status 2 one
sentence was printed and nothing written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from .group import CONTEXT, LazyGroup

COMMANDS = {
    "attach": (".attach", "Open a console on machines that run."),
    "campaign": (".campaign", "Run a scenario many times, over a matrix of parameters."),
    "ctl": (".ctl", "Control a running machine."),
    "demo": (".demo", "Measure what the machine's structure costs and gains."),
    "doctor": (".doctor", "Tell what works on this machine, and what to do about the rest."),
    "replay": (".replay", "Make a recorded run again."),
    "run": (".run", "Start a machine, in a full-screen console or without one."),
    "symbols": (".symbols", "Make a symbol file for gdb of a kernel's own list."),
    "top": (".top", "Watch the machines that run."),
    "trace": (".trace", "Follow one disk request by each path."),
    "up": (".up", "Start the machines that a file describes."),
}


@click.group(cls=LazyGroup, later=COMMANDS, invoke_without_command=True, context_settings=CONTEXT)
@click.version_option(package_name="avmm", prog_name="avmm")
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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        status = group.main(arguments, prog_name="avmm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        sentence = " ".join(error.format_message().split())  # click lists choices one a line
        _complain(sentence, error.ctx if isinstance(error, click.UsageError) else None)
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        found = _status_of(error)
        if found is None:
            raise
        _complain(str(error))
        sys.exit(found)
    sys.exit(int(status or 0))


def _status_of(error: Exception) -> int | None:
    """The exit status for what is no fault of ours; None for a bug. A wrong name is told without loading all that may raise the others."""
    if isinstance(error, ImportError) and error.name == "avmm":  # there is no loading it
        return 2
    from avmm.control.config import ConfigError

    if isinstance(error, ConfigError):
        return 2
    import avmm
    from avmm.control.demo_storage import DemoError
    from avmm.control.record import RecordError

    if isinstance(error, (avmm.BootError, avmm.ImageError, avmm.ProcessorError, avmm.SnapshotError, RecordError, DemoError)):
        return 2
    if isinstance(error, avmm.WaitTimeout):
        return 1
    return 3 if isinstance(error, (avmm.MachineEnded, avmm.GuestFailure)) else None


def _complain(sentence: str, ctx: click.Context | None = None) -> None:
    """Print one sentence, and for bad usage where to read more. Those of click begin with a capital; ours never with a name."""
    sentence = sentence.strip()
    hint = f" ({ctx.command_path} --help explains)" if ctx is not None else ""
    click.echo(f"avmm: {sentence[:1].lower() + sentence[1:] if ctx is not None else sentence}".rstrip(".") + hint, err=True)
