"""``limit``: a token bucket for bytes and one for requests, in machine time."""

from __future__ import annotations

from avmm.clock import SECOND, Clock
from avmm.devices.block import SECTOR
from avmm.interpose.interposers.stack import Below, Request, pause


class LimitLayer:
    """A token bucket in machine time for bytes, and one for requests."""

    def __init__(self, clock: Clock, bytes_per_s: float = 0, requests_per_s: float = 0, burst: float = 0.01) -> None:
        if bytes_per_s < 0 or requests_per_s < 0 or burst <= 0 or not (bytes_per_s or requests_per_s):
            raise ValueError("a limit needs bytes or requests per second, and a burst of more than no seconds")
        self._clock = clock
        self._rates = bytes_per_s, requests_per_s
        self._burst = int(burst * SECOND)
        self._free_at = [0, 0]
        """When the bucket would be full again."""
        self.waited = 0
        """Machine time that requests waited, ns."""

    async def perform(self, request: Request, below: Below) -> bytes:
        """Pass it on when it may."""
        now = self._clock.now()
        wait = 0
        for i, amount in enumerate((request.count * SECTOR, 1)):
            if self._rates[i]:
                self._free_at[i] = max(self._free_at[i], now) + int(amount * SECOND / self._rates[i])
                wait = max(wait, self._free_at[i] - self._burst - now)
        if wait > 0:
            self.waited += wait
            await pause(self._clock, wait)
        return await below(request)

    def status(self) -> dict[str, object]:
        """What it has done so far."""
        return {"waited_ns": self.waited}

    def close(self) -> None:
        """Nothing is kept."""

    def end(self) -> None:
        """Nothing is kept."""
