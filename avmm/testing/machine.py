"""The machine of a scenario: what the marker ``avmm`` and the ini option ``avmm_machine`` say about it.

::

    @pytest.mark.avmm(memory="16M")                          # fields of VmConfig
    @pytest.mark.avmm("machine.toml", vm="linux", seed=3)    # a machine of a file, with a field changed

A file is looked for beside the test. Markers of the class and the module count too, the nearest one wins field by field.
The invariant: a mistake is one sentence, and nothing has been made then.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from avmm.control.config import ConfigError, Disk, VmConfig
from avmm.control.description import Description, load

BOOTABLE = frozenset({"disks", "floppies", "cdrom", "kernel"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the markers of a test add up to."""

    file: Path | None = None
    vm: str | None = None
    """The machine's name in the file, if it has several."""
    fields: dict[str, Any] = field(default_factory=dict)


def wanted(item: pytest.Item, seed: int) -> Wanted:
    """Return what a test's markers say. ``seed`` is the machine's unless they name one. Raises ConfigError."""
    file: str | Path | None = None
    given: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("avmm"))):
        if len(marker.args) > 1:
            raise ConfigError(f"the marker avmm takes one machine.toml and fields of VmConfig by name, not {marker.args!r}")
        file = marker.args[0] if marker.args else file
        given |= marker.kwargs
    folder = item.path.parent
    if file is None and (named := item.config.getini("avmm_machine")):
        file, folder = named, item.config.rootpath
    vm = given.pop("vm", None)
    known = [one.name for one in fields(VmConfig)]
    for name in given:
        if name not in known:
            raise ConfigError(f"the marker avmm has no field {name!r}{meant(name, known)}: fields are those of avmm.VmConfig")
    return Wanted(folder / file if file is not None else None, vm, {"seed": seed} | given)


def description(want: Wanted) -> Description | None:
    """Return the file that a test names, if it names one. Time is virtual in it unless it says otherwise."""
    return load(want.file, clock="virtual") if want.file is not None else None


def machine(want: Wanted) -> VmConfig:
    """Return the machine; without a file and anything to boot it has the built-in guest on an overlay of its disk."""
    described = description(want)
    if described is None:
        if want.vm is not None:
            raise ConfigError(f"vm={want.vm!r} is a machine of a file: name the machine.toml in the marker avmm")
        found = want.fields
        if not found.keys() & BOOTABLE:
            import avmm_guests

            found = {"disks": [Disk(avmm_guests.image(), "overlay")]} | found
        return VmConfig(**found)
    return replace(_chosen(described, want.vm), **want.fields)


def _chosen(described: Description, name: str | None) -> VmConfig:
    names = [vm.name for vm in described.vms]
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        wrong = "" if name is None else f", not {name!r}{meant(name, names)}"
        raise ConfigError(f"{described.path} has the machines {', '.join(names)}{wrong}: name one as vm=... in the marker avmm")
    return described.vms[names.index(name)]


def meant(name: str, known: Iterable[str]) -> str:
    """Return a hint at what was meant by a name that is not known, if something is close."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
