"""The machines of other processes, found by the sockets that they have in the runtime folder.

The invariant: a socket whose name begins with @ is the control panel of a whole host, not a machine's.
"""

from __future__ import annotations

from pathlib import Path

from avmm.control.config import ConfigError
from avmm.control.sockets import SUFFIX, runtime_folder


def sockets(folder: Path, suffix: str = SUFFIX) -> list[Path]:
    """Return the machines' sockets of one kind in a folder."""
    return sorted(folder.glob(f"[!@]*{suffix}"))


def socket_of(vm: str, suffix: str) -> Path:
    """Return a machine's socket of one kind. ConfigError with the names that there are when there is none."""
    path = runtime_folder() / f"{vm}{suffix}"
    if path.exists():
        return path
    names = ", ".join(found.name.removesuffix(suffix) for found in sockets(runtime_folder(), suffix))
    raise ConfigError(f"no machine called {vm} runs ({f'running: {names}' if names else 'none does'}): see avmm up")
