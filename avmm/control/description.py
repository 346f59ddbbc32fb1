"""``machine.toml``: a host and its machines, described in one file.

::

    [host]                       # all optional
    metrics_port = 9464          # Prometheus metrics on 127.0.0.1
    threads = 2                  # on how many processors guests run at once

    [vm.try]                     # nothing to boot named: the built-in guest

    [vm.linux]
    memory = "256M"
    kernel = "vmlinuz"
    disks = ["root.img", { path = "data.img", mode = "overlay" }]
    weight = 200
    placement = { pit = "service" }

The keys of a machine are the fields of :class:`~avmm.control.config.VmConfig` and ``qmp``, the path of its control
socket. Paths are relative to the file. Unlike elsewhere the clock is ``real`` by default: these machines are for people.

The invariant: nothing is opened or made before the whole file has been checked; an error is one sentence that names the
file, the line and the reason.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from avmm.control import toml_lines
from avmm.control.config import THREADS, Clock, ConfigError, Disk, VmConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PLACES = ("hypervisor", "service", "kernel")
_HOST_KEYS = {"structure": "text", "runtime": "a path", "qmp": "a path", "metrics_port": "a whole number",
              "threads": "a whole number"}  # fmt: skip
_VM_KEYS = {
    "memory": "a size such as 64M", "code_cache": "a size such as 64M", "disks": "a list of disks", "floppies": "a list of disks",
    "cdrom": "a path", "kernel": "a path", "initrd": "a path", "append": "text", "bios": "text", "vgabios": "a path", "boot": "text",
    "clock": "text", "seed": "a whole number", "epoch": "a whole number", "slice_us": "a whole number", "weight": "a whole number",
    "cap": "a number", "placement": "a table of devices", "devices": "a list of names", "auto_placement": "true or false",
    "acpi": "true or false", "on_triple_fault": "text", "qmp": "a path", "physical": "a list of names", "hyperv": "true or false",
    "hyperv_disks": "true or false", "hyperv_ide": "true or false", "resolution": "text", "gdb": "text", "gdb_wait": "true or false",
    "gdb_reverse": "true or false",
}  # fmt: skip
_CHOICES = {
    "structure": ("hybrid", "host"), "clock": ("real", "virtual"), "on_triple_fault": ("reset", "stop"), "mode": ("rw", "ro", "overlay"),
}  # fmt: skip
_DISK_KEYS = {"path": "a path", "mode": "text", "overlay": "a path"}
_KINDS: dict[str, tuple[type, ...]] = {
    "a path": (str,), "text": (str,), "a whole number": (int,), "a number": (int, float), "true or false": (bool,),
    "a size such as 64M": (str, int), "a list of disks": (list, str), "a table of devices": (dict,),
    "a list of names": (list,),
}  # fmt: skip


class DescriptionError(ConfigError):
    """A description is wrong; the sentence names the file, the line and the reason."""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What the description says about the host."""

    runtime: Path | None = None
    """Where the control sockets are; None for $XDG_RUNTIME_DIR/avmm."""
    qmp: Path | None = None
    """The socket that controls every machine; by default ``@`` and the file's name, in ``runtime``."""
    metrics_port: int | None = None
    """The TCP port on 127.0.0.1 for Prometheus; 0 chooses one; None for none."""
    structure: str = "hybrid"
    """How the host is built: ``hybrid`` (hypervisor and service OS) or ``host`` (kernel VMM and user-mode VMM)."""
    threads: int = 1
    """On how many of the host's processors the guests of different machines run at once."""


@dataclass(frozen=True, slots=True)
class Description:
    """A host and its machines."""

    path: Path
    host: HostConfig
    vms: tuple[VmConfig, ...]
    sockets: dict[str, Path] = field(default_factory=dict)
    """Control sockets that have a path of their own, by machine."""
    lines: dict[toml_lines.Path, int] = field(default_factory=dict)

    def wrong(self, reason: str, *path: str | int) -> DescriptionError:
        """Return the error for what ``path`` leads to, such as ("vm", "linux", "placement", "pit")."""
        while path and path not in self.lines:
            path = path[:-1]
        return DescriptionError(f"{self.path}, line {self.lines.get(path, 1)}: {reason}")


def load(path: str | Path, clock: Clock = "real") -> Description:
    """Read and check a description; ``clock`` is that of machines that name none. Raises DescriptionError."""
    path = Path(path)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise DescriptionError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DescriptionError(f"{path}, line {line}: this is not UTF-8 text") from None
    return parse(text, path, clock)


def parse(text: str, path: Path, clock: Clock = "real") -> Description:
    """Check a description's text; ``path`` is what errors call it, and what relative paths start from."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+)", place)
        line = int(found[1]) if found else text.count("\n") + (not text.endswith("\n"))
        raise DescriptionError(f"{path}, line {line}: {(reason or str(error)).rstrip('.')}") from None
    except RecursionError:
        raise DescriptionError(f"{path}, line 1: this is nested too deeply") from None
    return _Reader(Description(path, HostConfig(), (), {}, toml_lines.find_lines(text.replace("\r\n", "\n"))), clock).read(tree)


class _Reader:
    """Turns the tree that tomllib made into a description."""

    def __init__(self, description: Description, clock: Clock) -> None:
        self.description = description
        self.clock = clock
        self.folder = description.path.parent
        self.sockets: dict[str, Path] = {}

    def wrong(self, reason: str, *path: str | int) -> NoReturn:
        raise self.description.wrong(reason, *path)

    def read(self, tree: dict[str, Any]) -> Description:
        for key in tree:
            if key not in ("host", "vm"):
                self.wrong(f"{key!r} is not known here{_meant(key, ('host', 'vm'))}: write [host] or [vm.NAME]", key)
        host, vms = tree.get("host", {}), tree.get("vm", {})
        if not isinstance(host, dict):
            self.wrong("host is a table: write [host]", "host")
        if not isinstance(vms, dict) or not all(isinstance(vm, dict) for vm in vms.values()):
            self.wrong("each machine is a table with a name: write [vm.NAME]", "vm")
        if not vms:
            self.wrong("there is no machine: write [vm.NAME]")
        config = self.host(host)
        made = tuple(self.vm(name, vm) for name, vm in vms.items())
        return Description(self.description.path, config, made, self.sockets, self.description.lines)

    def keys(self, table: dict[str, Any], known: dict[str, str], *path: str | int) -> None:
        """Check that a table has only known keys, with values of the right kind."""
        for key, value in table.items():
            if key not in known:
                self.wrong(f"there is no key {key!r}{_meant(key, known)}", *path, key)
            kind = _KINDS[known[key]]
            if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
                self.wrong(f"{key} is {known[key]}, not {_shown(value)}", *path, key)
            if key in _CHOICES and value not in _CHOICES[key]:
                self.wrong(f"{key} is {_either(_CHOICES[key])}, not {value!r}", *path, key)

    def host(self, table: dict[str, Any]) -> HostConfig:
        self.keys(table, _HOST_KEYS, "host")
        port = table.get("metrics_port")
        if port is not None and not 0 <= port <= 65535:
            self.wrong(f"metrics_port is a port number up to 65535, not {port}", "host", "metrics_port")
        threads = table.get("threads", 1)
        if not 1 <= threads <= THREADS:
            self.wrong(f"threads is a number from 1 to {THREADS}, not {threads}", "host", "threads")
        runtime, qmp = (self.folder / table[key] if table.get(key) else None for key in ("runtime", "qmp"))
        return HostConfig(runtime, qmp, port, table.get("structure", "hybrid"), threads)

    def vm(self, name: str, table: dict[str, Any]) -> VmConfig:
        here = ("vm", name)
        if not NAME.fullmatch(name):
            self.wrong(f"{name!r} is no name for a machine: use letters, digits, dots, - and _", *here)
        self.keys(table, _VM_KEYS, *here)
        values = {"clock": self.clock} | table
        for key in ("kernel", "initrd", "cdrom", "vgabios"):
            if key in values:
                values[key] = self.file(values[key], *here, key)
        if values.get("bios", "builtin") not in ("builtin", "seabios"):
            values["bios"] = self.file(values["bios"], *here, "bios")
        for key in ("disks", "floppies"):
            if key in values:
                values[key] = self.disks(values[key], *here, key)
        self.check_choices(values, *here)
        if "qmp" in values:
            self.sockets[name] = self.folder / values.pop("qmp")
        if not any(values.get(key) for key in ("disks", "floppies", "cdrom", "kernel", "initrd")):
            values["disks"] = (Disk(self.built_in_guest(*here), "overlay"),)
        return self.config(name, values, *here)

    def check_choices(self, values: dict[str, Any], *here: str | int) -> None:
        for device, place in values.get("placement", {}).items():
            if place not in PLACES:
                self.wrong(f"{device} can be placed in {_either(PLACES)}, not {_shown(place)}", *here, "placement", device)
        for number, device in enumerate(values.get("devices", ())):
            if not isinstance(device, str):
                self.wrong(f"a device is the name of an entry point, not {_shown(device)}", *here, "devices", number)
        if not set(values.get("boot", "")) <= set("acd"):
            self.wrong("boot is made of the letters a (floppy), c (disk) and d (CD-ROM)", *here, "boot")

    def config(self, name: str, values: dict[str, Any], *here: str | int) -> VmConfig:
        assert values.keys() <= {f.name for f in fields(VmConfig)}
        try:
            return VmConfig(name=name, **values)
        except ConfigError as error:
            self.wrong(str(error), *here, *self.culprit(name, values))

    def culprit(self, name: str, values: dict[str, Any]) -> tuple[str, ...]:
        """Return the key without which the description would do."""
        for key in values:
            try:
                VmConfig(name=name, **{other: value for other, value in values.items() if other != key})
            except ConfigError:
                continue
            return (key,)
        return ()

    def disks(self, value: Any, *here: str | int) -> tuple[Disk, ...]:
        return tuple(self.disk(entry, *here, i) for i, entry in enumerate(value if isinstance(value, list) else [value]))

    def disk(self, entry: Any, *here: str | int) -> Disk:
        if isinstance(entry, str):
            return Disk(self.file(entry, *here))
        if not isinstance(entry, dict) or "path" not in entry:
            self.wrong(f'a disk is a path or a table such as {{ path = "disk.img", mode = "overlay" }}, not {_shown(entry)}', *here)
        self.keys(entry, _DISK_KEYS, *here)
        overlay = entry.get("overlay")
        mode = entry.get("mode", "overlay" if overlay else "rw")
        if overlay and mode != "overlay":
            self.wrong(f"a disk with an overlay has the mode overlay, not {mode!r}", *here, "mode")
        return Disk(self.file(entry["path"], *here, "path"), mode, self.folder / overlay if overlay else None)

    def file(self, path: str, *here: str | int) -> Path:
        found = self.folder / path
        if not found.exists():
            self.wrong(f"there is no file {found}", *here)
        if found.is_dir():
            self.wrong(f"{found} is a directory, not a file", *here)
        return found

    def built_in_guest(self, *here: str | int) -> Path:
        import avmm_guests

        try:
            return Path(avmm_guests.image())
        except FileNotFoundError as error:
            self.wrong(f"nothing to boot is named, and there is no built-in guest: {error}", *here)


def _meant(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join((", ".join(choices[:-1]), choices[-1]))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
