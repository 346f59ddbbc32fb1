"""Saved states as bytes: what comes back is what went in, and nothing else can be made to come back."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avmm.control.codec import CodecError, decode, encode


@dataclass(frozen=True)
class Point:
    x: int
    y: object = None


@dataclass
class Open:
    x: int


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    a: int
    b: object


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.just(Colour.RED)
keys = st.integers(0, 1 << 70) | st.text() | st.tuples(st.integers(), st.text())
values: st.SearchStrategy[Any] = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | st.sets(st.integers())
    | st.frozensets(st.text()) | st.builds(Point, st.integers(), inner) | st.builds(Pair, st.integers(), inner),
    max_leaves=20,
)  # fmt: skip


@given(values)
def test_everything_comes_back_with_its_type(value: object) -> None:
    back = decode(encode(value))
    assert back == value
    assert type(back) is type(value)


def test_a_path_and_large_numbers() -> None:
    assert decode(encode((Path("a/b"), 1 << 200, -(1 << 200)))) == (Path("a/b"), 1 << 200, -(1 << 200))


@pytest.mark.parametrize("value", [Open(1), object(), print, Point, {1: Open(1)}, memoryview(b"")])
def test_what_is_no_plain_value_is_refused(value: object) -> None:
    with pytest.raises(CodecError, match="is no plain value and no frozen dataclass"):
        encode(value)


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: object = 1
    for _ in range(600):
        value = (value,)
    with pytest.raises(CodecError, match="too deeply"):
        encode(value)


@pytest.mark.parametrize("found", [
    {"@state": ("os:system", {"command": "true"})}, {"@state": (f"{__name__}:Open", {"x": 1})}, {"@state": ("subprocess:Popen", {})},
    {"@enum": ("builtins:int", "x")}, {"@tuple": ("builtins:tuple", (1,))}, {"@state": ("avmm.nowhere:State", {})}, {"@what": 1},
    {"@state": (f"{__name__}:Point", {"z": 1})}, {"@state": 5}, {"@int": "x"}, {"@list": 1}, {"@enum": (f"{__name__}:Colour", "BLUE")},
])  # fmt: skip
def test_bytes_make_nothing_but_saved_values(found: object) -> None:
    with pytest.raises(CodecError):
        decode(msgpack.packb(found))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(data: bytes) -> None:
    try:
        decode(data)
    except CodecError:
        pass
