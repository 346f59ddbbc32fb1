"""Anything as JSON."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any


def jsonable(value: object) -> Any:
    """Return ``value`` made of what JSON has: dataclasses as objects, enums as their values, anything odd as its text."""
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    return f"{len(value)} bytes" if isinstance(value, (bytes, bytearray)) else str(value)
