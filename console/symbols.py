"""``avmm symbols``: a kernel's own list of its symbols, as a file for gdb."""

from __future__ import annotations

from pathlib import Path

import click

from avmm.debug.symbols import SymbolsError, elf

from .group import CONTEXT


@click.command("symbols", context_settings=CONTEXT)
@click.argument("listing", metavar="LIST")
@click.argument("output", metavar="FILE")
def symbols(listing: str, output: str) -> None:
    """Make a symbol file for gdb of a kernel's own list.

    The list is its System.map or /proc/kallsyms; then `gdb FILE`.

    Read /proc/kallsyms as root; its addresses hold until the guest is started again, unless it has `nokaslr` on its command line.
    """
    try:
        lines = Path(listing).read_text(errors="replace").splitlines()
        Path(output).write_bytes(elf(lines))
    except OSError as error:
        raise click.UsageError(f"cannot use {error.filename}: {error.strerror}") from None
    except SymbolsError as error:
        raise click.UsageError(f"in {listing} {error}") from None
    click.echo(f"{output}: {sum(1 for line in lines if line.strip())} symbols")
