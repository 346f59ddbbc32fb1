"""The PC speaker: a cone moved by (OUT of PIT counter 2) AND (data, bit 1 of port 61h).

Follows the IBM PC/AT Technical Reference, "Speaker". The speaker has no ports: it hears from the PIT whenever one of its two
inputs may have changed, writes down what they do from then on, and works out sound only when somebody asks for it.

The invariant: the recording is a list of strokes in order of time, each in force until the next; what the PIT is known to do
later is in it already, and is taken back when an access changes it first.
"""

from __future__ import annotations

import os
import struct
import wave
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from avmm.devices.device import Board, Device
from avmm.devices.pit import HZ, Pit, tick_at, tick_start
from avmm.devices.pit_counter import Run

LIMIT = 1 << 18
"""Strokes kept; older ones are forgotten."""
AMPLITUDE = 12000
LOWEST_HZ = 20
"""Bit-banged edges further apart than this are clicks, not a tone."""


@dataclass(frozen=True, slots=True)
class Stroke:
    """What moves the cone from tick ``at`` on: OUT of ``run``, or nothing while the data bit is 0."""

    at: int
    run: Run | None

    @property
    def sounds(self) -> bool:
        """Whether the cone moves by itself."""
        return self.run is not None and self.run.periodic

    def high_ticks(self, start: int, end: int) -> int:
        """Return how many ticks in [start, end) the cone is out."""
        return 0 if self.run is None else self.run.high_ticks(start, end)


class Speaker(Device):
    """Records what the guest plays: ``save_wav`` for ears, ``tones`` for tests."""

    name = "speaker"

    @dataclass(frozen=True, slots=True)
    class State:
        """The recording so far."""

        strokes: tuple[Stroke, ...]
        version: int = 1

    def __init__(self, board: Board, pit: Pit) -> None:
        super().__init__(board)
        self._strokes: deque[Stroke] = deque(maxlen=LIMIT)
        self.beeps = 0
        """How often it began to sound."""
        self.listen_to(pit)
        self._note()

    def listen_to(self, pit: Pit) -> None:
        """Be wired to this timer, which is in the state of the one before."""
        self.pit = pit
        pit.on_speaker_change = self._note

    def _note(self) -> None:
        """Write down what the speaker's inputs do from now on."""
        tick = tick_at(self.clock.now())
        strokes = self._strokes
        while strokes and strokes[-1].at >= tick:
            strokes.pop()
        data, run, following = self.pit.speaker_runs()
        self._add(Stroke(tick, run if data else None))
        if data and following is not None:
            self._add(Stroke(following.at, following))

    def _add(self, stroke: Stroke) -> None:
        last = self._strokes[-1] if self._strokes else None
        if last is None or last.run != stroke.run:
            self.beeps += stroke.sounds and not (last is not None and last.sounds)
            self._strokes.append(stroke)

    def clear(self) -> None:
        """Forget the recording and start a new one."""
        self._strokes.clear()
        self._note()

    def _spans(self) -> Iterator[tuple[Stroke, int]]:
        """Yield each stroke that has begun, with the tick at which it ends (now, for the last)."""
        now = tick_at(self.clock.now())
        strokes = [stroke for stroke in self._strokes if stroke.at < now]
        for stroke, following in pairwise(strokes):
            yield stroke, following.at
        if strokes:
            yield strokes[-1], now

    # -- tones

    def tones(self) -> list[tuple[int, int, float]]:
        """Return (start ns, end ns, Hz) of each tone so far, whether made by the counter or by flipping a bit."""
        tones: list[tuple[int, int, float]] = []
        rises: list[int] = []
        level = False
        for stroke, end in self._spans():
            if stroke.run is not None and stroke.sounds:
                tones += _banged(rises)
                rises = []
                _join(tones, tick_start(stroke.at), tick_start(end), HZ / stroke.run.n)
                level = stroke.run.out(end - 1)
                continue
            for at, high in _levels(stroke, end):
                if high and not level:
                    rises.append(at)
                level = high
        return tones + _banged(rises)

    # -- sound

    def save_wav(self, path: str | os.PathLike[str], rate: int = 44100, start: int | None = None, end: int | None = None) -> None:
        """Write what was played to a 16-bit mono WAV file.

        From ``start`` (ns of machine time; by default the first movement of the cone) to ``end`` (by default now). Each
        sample is the mean of the wave over its own time, so tones above half the rate, and speech by pulse widths, come out
        as they do from a real cone.
        """
        if start is None:
            moving = (span[0].at for span in self._spans() if span[0].run is not None and span[0].high_ticks(span[0].at, span[1]))
            start = tick_start(next(moving, tick_at(self.clock.now())))
        if end is None:
            end = self.clock.now()
        with wave.open(os.fspath(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(self._render(tick_at(start), tick_at(end), rate))

    def _render(self, start: int, end: int, rate: int) -> bytes:
        samples = max(end - start, 0) * rate // HZ
        bounds = [start + index * HZ // rate for index in range(samples + 1)]
        high = [0] * samples
        first = 0
        for stroke, last in self._spans():
            while first < samples and bounds[first + 1] <= stroke.at:
                first += 1
            if stroke.run is None:
                continue
            index = first
            while index < samples and bounds[index] < last:
                a, b = max(bounds[index], stroke.at), min(bounds[index + 1], last)
                if a < b:
                    high[index] += stroke.high_ticks(a, b)
                index += 1
        values = (AMPLITUDE * level // (bounds[index + 1] - bounds[index]) for index, level in enumerate(high))
        return struct.pack(f"<{samples}h", *values)

    # -- state

    def reset(self) -> None:
        """The speaker has no registers; what the guest has played stays on record."""

    def save(self) -> State:
        return self.State(tuple(self._strokes))

    def restore(self, state: State) -> None:
        if not isinstance(state, self.State) or state.version != 1:
            raise ValueError("not a state of the speaker, version 1")
        self._strokes = deque(state.strokes, LIMIT)


def _levels(stroke: Stroke, end: int) -> list[tuple[int, bool]]:
    """Return the changes of level within a stroke that is not a wave: (tick, level), the first at its beginning."""
    if stroke.run is None:
        return [(stroke.at, False)]
    levels = [(stroke.at, stroke.run.out(stroke.at))]
    rise = stroke.run.rise_after(stroke.at)
    if rise is not None and rise < end:
        levels += [(rise - 1, False), (rise, True)]
    return levels


def _join(tones: list[tuple[int, int, float]], start: int, end: int, hz: float) -> None:
    """Append a tone, or lengthen the last one if it simply goes on."""
    if tones and tones[-1][1] == start and tones[-1][2] == hz:
        start = tones.pop()[0]
    tones.append((start, end, hz))


def _banged(rises: list[int]) -> list[tuple[int, int, float]]:
    """Find tones in rising edges (ticks): three or more at distances that stay within an eighth of each other."""
    tones: list[tuple[int, int, float]] = []
    group: list[int] = []

    def close() -> None:
        if len(group) >= 3:
            period = (group[-1] - group[0]) / (len(group) - 1)
            tones.append((tick_start(group[0]), tick_start(group[-1] + round(period)), HZ / period))

    for rise in rises:
        if len(group) >= 2 and abs((rise - group[-1]) - (group[1] - group[0])) * 8 > group[1] - group[0]:
            close()
            group = group[-1:]
        if group and (rise - group[-1]) * LOWEST_HZ > HZ:
            close()
            group = []
        group.append(rise)
    close()
    return tones
