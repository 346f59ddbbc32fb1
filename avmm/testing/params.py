"""A scenario's parameters: what it declares, what was given for it, and the command that runs it the same way again.

::

    @pytest.mark.avmm_params(fault="none", sectors=8)        # names with their defaults
    async def test_it(avmm_vm, avmm_param, avmm_seed): ...   # avmm_param["fault"], avmm_param["sectors"] == 8

Values come with ``--avmm-param fault=torn``, or from a campaign's matrix, as text; each becomes what its default is.
The invariant: a parameter that nobody declared, or a value that does not fit, is one sentence before anything runs.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from avmm.control.config import ConfigError
from avmm.testing.machine import meant

Value = str | int | float | bool
MARKER = "avmm_params"
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def declared(item: pytest.Item) -> dict[str, Value]:
    """Return the parameters of a test with their defaults; the nearest marker wins. Raises ConfigError."""
    found: dict[str, Value] = {}
    for marker in reversed(list(item.iter_markers(MARKER))):
        if marker.args:
            raise ConfigError(f"the marker {MARKER} takes names with their defaults, such as {MARKER}(fault='none'), not {marker.args!r}")
        found |= marker.kwargs
    for name, default in found.items():
        if not isinstance(default, str | int | float):
            raise ConfigError(f"the default of the parameter {name} is a text, a number or true or false, not {default!r}")
    return found


def parse(options: Iterable[str]) -> dict[str, str]:
    """Return what ``--avmm-param NAME=VALUE`` gave."""
    given: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise ConfigError(f"cannot read the parameter {option!r}: write NAME=VALUE")
        given[name] = value
    return given


def values(defaults: Mapping[str, Value], given: Mapping[str, str]) -> dict[str, Value]:
    """Return the parameters that a test gets. What it does not declare is not for it. Raises ConfigError."""
    return {name: convert(name, given[name], default) if name in given else default for name, default in defaults.items()}


def convert(name: str, text: str, default: Value) -> Value:
    """Return ``text`` as the kind of value that the default is."""
    try:
        if isinstance(default, bool):
            return _TRUTH[text.lower()]
        return type(default)(text)
    except (ValueError, KeyError):
        kind = "true or false" if isinstance(default, bool) else "a whole number" if isinstance(default, int) else "a number"
        raise ConfigError(f"the parameter {name} is {kind}, not {text!r}") from None


def check(given: Iterable[str], known: Iterable[Mapping[str, Any]]) -> None:
    """Raise ConfigError when a parameter was given that none of the tests has."""
    names = sorted({name for one in known for name in one})
    for name in given:
        if name not in names:
            there = f"there are: {', '.join(names)}" if names else f"declare it with @pytest.mark.{MARKER}({name}=...)"
            raise ConfigError(f"no test has the parameter {name!r}{meant(name, names)}; {there}")


def replay_command(test: str, root: Path, seed: int, given: Mapping[str, Value]) -> str:
    """Return the shell command that runs a test the same way again, from the folder we are in."""
    words = ["python", "-m", "pytest", test]
    if seed:
        words += ["--avmm-seed", str(seed)]
    for name, value in given.items():
        words += ["--avmm-param", f"{name}={value}"]
    command = shlex.join(words)
    return command if root == Path.cwd() else f"cd {shlex.quote(os.path.relpath(root))} && {command}"
