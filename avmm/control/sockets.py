"""Where the control sockets are, for those who make them and those who look for them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from avmm.control.config import ConfigError

SUFFIX = ".qmp"
CONSOLE_SUFFIX = ".console"


def runtime_folder() -> Path:
    """Return where control sockets are: $XDG_RUNTIME_DIR/avmm, or a folder in /tmp that only this user can enter."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base, "avmm") if base else Path("/tmp", f"avmm-{os.getuid()}")


def make_private(folder: Path) -> Path:
    """Make a folder for sockets. ConfigError when it cannot be made, or belongs to somebody else."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
    except OSError as error:
        raise ConfigError(f"cannot make {folder} for the control sockets: {error.strerror}") from None
    if folder == runtime_folder() and (found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode)):
        raise ConfigError(f"{folder} belongs to somebody else: set XDG_RUNTIME_DIR to a folder of yours")
    return folder
