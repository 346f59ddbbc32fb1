"""Initrds for the tests: Debian's busybox and the modules of Debian's kernel; see ``avmm.boot.initrd``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avmm.boot import initrd
from tests import third_party


def kernel() -> Path:
    """Return Debian's kernel image."""
    return third_party.file("boot/vmlinuz-*")


def modules(names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return (file name, content) of modules with what they depend on, in the order to load them."""
    return initrd.modules(third_party.file("lib/modules/*/kernel").parent, names)


def build(
    init: str, module_names: Iterable[str] = (), files: dict[str, bytes] | None = None, parameters: dict[str, str] | None = None
) -> bytes:
    """Return an initrd whose /init runs the shell lines ``init`` after mounting proc, sys and dev and loading modules.

    ``parameters`` are those of modules, by file name without ``.ko``: a module takes none from the kernel's command line here.
    """
    names = list(module_names)
    return initrd.build(init, third_party.file("bin/busybox").read_bytes(), modules(names) if names else (), files, parameters)
