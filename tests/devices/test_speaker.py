"""What the PC speaker plays, from the port writes of real programs."""

from __future__ import annotations

import wave
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.clock import MILLISECOND, SECOND
from avmm.devices.pit import HZ, Pit, tick_at, tick_start
from avmm.devices.speaker import AMPLITUDE, Speaker
from tests.devices.bench import Bench

Script = list[tuple[int, int, int]]


class Rig:
    def __init__(self) -> None:
        self.bench = Bench()
        self.pit = Pit(self.bench)
        self.speaker = Speaker(self.bench, self.pit)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bench.write(self.pit, port, value)

    def tone(self, count: int) -> None:
        self.out(0x43, 0xB6)
        self.out(0x42, count & 0xFF, count >> 8)

    def samples(self, path: Path, rate: int = 44100, start: int | None = None, end: int | None = None) -> list[int]:
        self.speaker.save_wav(path, rate, start, end)
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
            data = file.readframes(file.getnframes())
        return [int.from_bytes(data[i : i + 2], "little", signed=True) for i in range(0, len(data), 2)]


def test_a_melody_has_its_tones_with_their_times() -> None:
    rig = Rig()
    rig.bench.pass_time(50 * MILLISECOND)
    for count in (2712, 1356):
        rig.tone(count)
        rig.out(0x61, 3)
        rig.bench.pass_time(100 * MILLISECOND)
        rig.out(0x61, 0)
        rig.bench.pass_time(20 * MILLISECOND)
    tones = rig.speaker.tones()
    assert [round(hz, 1) for _, _, hz in tones] == [round(HZ / 2712, 1), round(HZ / 1356, 1)]
    for (start, end, _), begin in zip(tones, (50, 170), strict=True):
        assert start == pytest.approx(begin * MILLISECOND, abs=2000)
        assert end == pytest.approx((begin + 100) * MILLISECOND, abs=2000)


def test_a_new_count_changes_the_tone_at_the_half_cycle() -> None:
    rig = Rig()
    rig.tone(2000)
    rig.out(0x61, 3)
    rig.bench.pass_time(tick_start(4500) - rig.bench.time)
    rig.out(0x42, 0xE8, 0x03)  # 1000
    rig.bench.pass_time(10 * MILLISECOND)
    first, second = rig.speaker.tones()
    assert (first[2], second[2]) == (HZ / 2000, HZ / 1000)
    assert tick_at(first[1]) == tick_at(second[0])
    assert (tick_at(second[0]) - tick_at(first[0])) % 1000 == 0


def test_gate_without_data_and_data_without_gate_are_silent() -> None:
    rig = Rig()
    rig.tone(1000)
    for value in (1, 2, 0):
        rig.out(0x61, value)
        rig.bench.pass_time(50 * MILLISECOND)
    assert rig.speaker.tones() == []


def test_bit_banged_tone() -> None:
    rig = Rig()
    rig.tone(100)  # the gate stays low: OUT is high, and the data bit moves the cone
    for _ in range(100):
        rig.out(0x61, 2)
        rig.bench.pass_time(500_000)
        rig.out(0x61, 0)
        rig.bench.pass_time(500_000)
    rig.bench.pass_time(SECOND)
    ((start, end, hz),) = rig.speaker.tones()
    assert hz == pytest.approx(1000, rel=0.001)
    assert start == pytest.approx(0, abs=2000)
    assert end == pytest.approx(100 * MILLISECOND, abs=2000)


def test_wav_is_the_square_wave(tmp_path: Path) -> None:
    rig = Rig()
    rig.bench.pass_time(SECOND)
    rig.tone(11932)  # 100 Hz
    rig.out(0x61, 3)
    rig.bench.pass_time(SECOND)
    samples = rig.samples(tmp_path / "tone.wav")
    assert len(samples) == pytest.approx(44100, abs=2), "from the first movement of the cone"
    rises = [i for i in range(1, len(samples)) if samples[i - 1] < AMPLITUDE // 2 <= samples[i]]
    assert len(rises) in (99, 100)
    assert all(b - a in (440, 441, 442) for a, b in pairwise(rises))
    assert max(samples) == AMPLITUDE
    assert min(samples) == 0
    assert sum(samples) / len(samples) == pytest.approx(AMPLITUDE / 2, rel=0.01)
    assert len(rig.samples(tmp_path / "part.wav", 8000, SECOND, SECOND + SECOND // 2)) == pytest.approx(4000, abs=1)


def test_pulse_widths_become_levels(tmp_path: Path) -> None:
    """Speech by one-shots: mode 0 with a short count keeps the cone in for a part of each sample."""
    rig = Rig()
    rig.out(0x43, 0x90)
    rig.out(0x61, 3)
    for width in (16, 48) * 100:
        rig.out(0x42, width)
        rig.bench.pass_time(tick_start(tick_at(rig.bench.time) + 64) - rig.bench.time)
    end = rig.bench.time
    samples = rig.samples(tmp_path / "speech.wav", HZ // 128, 0, end)
    assert sum(samples) / len(samples) == pytest.approx(AMPLITUDE * (48 + 16 - 2) / 128, rel=0.05)


def test_silence_is_an_empty_file_and_clear_forgets(tmp_path: Path) -> None:
    rig = Rig()
    assert rig.samples(tmp_path / "a.wav") == []
    rig.tone(1000)
    rig.out(0x61, 3)
    rig.bench.pass_time(SECOND)
    rig.speaker.clear()
    rig.bench.pass_time(MILLISECOND)
    ((start, _, _),) = rig.speaker.tones()
    assert start == pytest.approx(SECOND, abs=2000), "a tone that goes on is in the new recording"


scripts = st.lists(st.tuples(st.sampled_from([0x42, 0x43, 0x61]), st.integers(0, 255), st.integers(0, 2_000_000)), max_size=30)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(scripts, st.integers(0, 30))
def test_random_traffic_and_restore_in_the_middle(script: Script, cut: int) -> None:
    rig = other = Rig()
    for step, (port, value, pause) in enumerate(script):
        if step == cut:
            other = Rig()
            other.bench.time = rig.bench.time
            other.speaker.restore(rig.speaker.save())
            other.pit.restore(rig.pit.save())
        for each in {id(rig): rig, id(other): other}.values():
            each.out(port, value)
            each.bench.pass_time(pause)
    assert rig.speaker.save() == other.speaker.save()
    tones = rig.speaker.tones()
    assert tones == other.speaker.tones()
    assert all(0 <= start < end <= rig.bench.time + 10**8 and hz > 0 for start, end, hz in tones)
    ends = [stroke.at for stroke in rig.speaker.save().strokes]
    assert ends == sorted(ends)


def test_restore_refuses_what_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="speaker"):
        Rig().speaker.restore(object())  # type: ignore[arg-type]
