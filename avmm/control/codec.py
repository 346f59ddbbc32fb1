"""Saved states as bytes: frozen dataclasses of plain values, in MessagePack (msgpack.org), and back again.

What MessagePack has no type for is a map with one key that begins with ``@``: a dataclass or an enum by its module and name, a named
tuple, a list (its arrays are tuples here), a mapping, a set, a path, a large integer. Decoding makes only frozen dataclasses,
enums and named tuples, of avmm's own modules and of those that are loaded already: bytes from anywhere run no code of their
own choosing.

The invariant: ``decode(encode(x)) == x``, types included, for everything that ``encode`` takes.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from pathlib import PurePath
from typing import Any

import msgpack

SMALL = range(-(1 << 63), 1 << 64)
DEEPEST = 100
OWN = "avmm."


class CodecError(ValueError):
    """Something is no plain value, or bytes are no encoded ones; one sentence says what."""


def encode(value: object) -> bytes:
    """Return ``value`` as bytes."""
    data: bytes = msgpack.packb(_plain(value), use_bin_type=True)
    return data


def decode(data: bytes) -> Any:
    """Return what was encoded. CodecError for anything else."""
    try:
        return msgpack.unpackb(data, use_list=False, raw=False, strict_map_key=False, object_hook=_object)
    except CodecError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # msgpack's own are ValueErrors
        raise CodecError(f"these are not encoded values ({str(error) or type(error).__name__})") from None


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise CodecError("values are nested too deeply")
    kind, below = type(value), depth + 1
    if value is None or kind in (bool, float, str, bytes):
        return value
    if kind is int:
        return value if value in SMALL else {"@int": hex(value)}
    if kind is tuple:
        return tuple(_plain(item, below) for item in value)
    if kind is list:
        return {"@list": tuple(_plain(item, below) for item in value)}
    if kind is dict:
        return {"@dict": tuple((_plain(key, below), _plain(item, below)) for key, item in value.items())}
    if kind in (set, frozenset):
        return {"@set": (kind is frozenset, tuple(sorted((_plain(item, below) for item in value), key=repr)))}
    if isinstance(value, enum.Enum):
        return {"@enum": (_name(kind), value.name)}
    if isinstance(value, PurePath):
        return {"@path": str(value)}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return {"@tuple": (_name(kind), tuple(_plain(item, below) for item in value))}
    if _is_state(kind):
        fields = {field.name: _plain(getattr(value, field.name), below) for field in dataclasses.fields(value) if field.init}
        return {"@state": (_name(kind), fields)}
    what = f"the class {value.__qualname__}" if isinstance(value, type) else kind.__qualname__
    raise CodecError(f"{what} is no plain value and no frozen dataclass")


def _object(found: dict[Any, Any]) -> Any:
    """Make what a map stands for; a dataclass's fields are a map without marks."""
    if len(found) != 1 or not str(mark := next(iter(found))).startswith("@"):
        return found
    value = found[mark]
    match mark:
        case "@int":
            return int(value, 16)
        case "@list":
            return list(value)
        case "@dict":
            return dict(value)
        case "@set":
            return frozenset(value[1]) if value[0] else set(value[1])
        case "@path":
            from pathlib import Path

            return Path(value)
        case "@enum":
            return _class(value[0], lambda kind: issubclass(kind, enum.Enum))[value[1]]
        case "@tuple":
            return _class(value[0], lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields"))(*value[1])
        case "@state":
            return _class(value[0], _is_state)(**value[1])
    raise CodecError(f"there are no values marked {mark}")


def _is_state(kind: type) -> bool:
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str, suits: Any) -> Any:
    module, _, path = name.partition(":")
    if module.startswith(OWN) and module not in sys.modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise CodecError(f"this avmm has no {module}") from None
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not suits(found):
        raise CodecError(f"no class {name} for saved values is loaded here")
    return found
