"""``fault``: requests fail, come late or are torn, by rules.

The invariant: the same rules, seed and requests give the same faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avmm.clock import SECOND, Clock
from avmm.devices.block import SECTOR, BlockError, BlockFault
from avmm.interpose.interposers.stack import Below, Request, pause

_SETTINGS: dict[str, Callable[[str], Any]] = {"op": str, "times": int, "probability": float, "seconds": float}


@dataclass(frozen=True, slots=True)
class Rule:
    """What goes wrong, and for which requests."""

    action: str
    """``error``; ``delay``, by ``seconds``; ``torn``: the first half of a write is done, then it fails."""
    op: str = ""
    """``read``, ``write`` or ``flush``; empty for all."""
    first: int = 0
    last: int = (1 << 48) - 1
    probability: float = 1.0
    times: int = 0
    """How often at most; 0 for no limit."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in ("error", "delay", "torn"):
            raise ValueError(f"there is no fault {self.action!r}: choose error, delay or torn")
        if self.op not in ("", "read", "write", "flush"):
            raise ValueError(f"there is no request {self.op!r}: choose read, write or flush")
        if not 0 <= self.probability <= 1 or self.times < 0 or self.seconds < 0:
            raise ValueError("a probability is 0 to 1, and times and seconds are not below 0")
        if not 0 <= self.first <= self.last:
            raise ValueError(f"there are no sectors from {self.first} to {self.last}")
        if self.action == "torn" and self.op not in ("", "write"):
            raise ValueError(f"a {self.op} cannot be torn: only a write is done by halves")
        if self.action == "delay" and not self.seconds:
            raise ValueError("a delay has seconds, more than 0")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``ACTION[,op=read][,lba=100-199][,times=3][,probability=0.5][,seconds=0.01]``. ValueError says what is wrong."""
        action, *settings = (part.strip() for part in text.split(","))
        given: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            try:
                if name == "lba":
                    first, _, last = value.partition("-")
                    given["first"], given["last"] = int(first, 0), int(last or first, 0)
                else:
                    given[name] = _SETTINGS[name](value)
            except KeyError:
                raise ValueError(f"a rule has no {name!r}: choose of op, lba, {', '.join(list(_SETTINGS)[1:])}") from None
            except ValueError:
                raise ValueError(f"cannot read {setting!r} in the rule {text!r}") from None
        return cls(action, **given)

    def concerns(self, request: Request) -> bool:
        """Whether the rule is about this request."""
        if self.op and self.op != request.op:
            return False
        return request.lba <= self.last and request.lba + max(request.count, 1) > self.first


class FaultLayer:
    """Makes requests fail by rules; the same seed fails the same requests."""

    def __init__(self, clock: Clock, rules: list[Rule], seed: int = 0) -> None:
        self._clock = clock
        self._rules = rules
        self._random = random.Random(seed)
        self.hits = [0] * len(rules)

    async def perform(self, request: Request, below: Below) -> bytes:
        """Pass it on, late or not at all."""
        for number, rule in enumerate(self._rules):
            if not rule.concerns(request) or (rule.times and self.hits[number] >= rule.times):
                continue
            if rule.probability < 1 and self._random.random() >= rule.probability:
                continue
            self.hits[number] += 1
            if rule.action == "delay":
                await pause(self._clock, int(rule.seconds * SECOND))
                continue
            bad = max(request.lba, rule.first)
            if rule.action == "torn" and request.op == "write":
                half = request.count // 2
                bad = request.lba + half
                if half:
                    await below(Request("write", request.drive, request.lba, half, request.data[: half * SECTOR]))
            raise BlockError(BlockFault.MEDIUM, bad)
        return await below(request)

    def status(self) -> dict[str, object]:
        """What it has done so far."""
        return {"hits": list(self.hits)}

    def close(self) -> None:
        """Nothing is kept."""

    def end(self) -> None:
        """Nothing is kept."""
