"""The matrix of a campaign: which values its seed and its parameters take, and the instances that makes.

The grammar, where KEY is ``seed`` (or ``seeds``) or a parameter that the scenario declares::

    MATRIX  = KEY=VALUES[,KEY=VALUES...]
    VALUES  = VALUE[|VALUE...]
    VALUE   = a text without , and |     or FIRST..LAST[..STEP], whole numbers

The invariant: instances come in the same order each time, and nothing is run when one of them would be wrong.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Self

from avmm.control.config import ConfigError
from avmm.testing import params

SEED = "seed"
LIMIT = 1_000_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?")
_WHOLE = re.compile(r"-?\d+")
HOW = "write KEY=VALUES, with values as a|b|c or 1..100"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A test of the scenario's file: its id, as pytest takes it from the folder we are in, and its parameters' defaults."""

    id: str
    parameters: dict[str, params.Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of one test."""

    number: int
    test: str
    seed: int
    parameters: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Return what :meth:`as_dict` made it of."""
        return cls(value["number"], value["test"], value["seed"], dict(value["parameters"]))

    @property
    def variant(self) -> str:
        """The parameters and the seed, such as ``fault=torn seed=7``."""
        return " ".join([*(f"{name}={value}" for name, value in self.parameters.items()), f"seed={self.seed}"])

    @property
    def command(self) -> str:
        """The shell command that runs this instance alone, from the folder we are in."""
        return params.replay_command(self.test, Path.cwd(), self.seed, self.parameters)


def parse(texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the values of each key. Raises ConfigError."""
    matrix: dict[str, list[str]] = {}
    for piece in itertools.chain.from_iterable(text.split(",") for text in texts):
        key, equals, values = (part.strip() for part in piece.partition("="))
        if not equals or not key:
            raise ConfigError(f"cannot read {piece.strip()!r} in the matrix: {HOW}")
        if key == "seeds":
            key = SEED
        if key in matrix:
            raise ConfigError(f"the matrix has {key} twice: {HOW}")
        matrix[key] = list(itertools.chain.from_iterable(_values(key, value.strip()) for value in values.split("|")))
    count = prod(map(len, matrix.values()))
    if count > LIMIT:
        raise ConfigError(f"the matrix has {count} instances of each test, which is more than {LIMIT}")
    return matrix


def _values(key: str, text: str) -> Sequence[str]:
    if not text:
        raise ConfigError(f"{key} has an empty value in the matrix: {HOW}")
    found = _RANGE.fullmatch(text)
    if found is None:
        if key == SEED and not _WHOLE.fullmatch(text):
            raise ConfigError(f"a seed is a whole number, not {text!r}: write seeds=1..100 or seeds=1|5|9")
        return [text]
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if last < first or step < 1:
        raise ConfigError(f"the range {text} of {key} is empty: write FIRST..LAST or FIRST..LAST..STEP, upwards")
    if (last - first) // step >= LIMIT:
        raise ConfigError(f"the range {text} of {key} has more than {LIMIT} values")
    return [str(value) for value in range(first, last + 1, step)]


def instances(tests: Sequence[Scenario], matrix: Mapping[str, Sequence[str]]) -> list[Instance]:
    """Return the instances: each test with all combinations of the seed and of those parameters that it declares.

    Raises ConfigError for a parameter that no test has, and for a value that does not fit.
    """
    params.check([key for key in matrix if key != SEED], [test.parameters for test in tests])
    made: list[Instance] = []
    for test in tests:
        keys = [key for key in matrix if key == SEED or key in test.parameters]
        for key in keys:
            for value in matrix[key] if key != SEED else ():
                params.convert(key, value, test.parameters[key])
        for values in itertools.product(*(matrix[key] for key in keys)):
            given = dict(zip(keys, values, strict=True))
            seed = int(given.pop(SEED, "0"))
            made.append(Instance(len(made), test.id, seed, given))
    return made
