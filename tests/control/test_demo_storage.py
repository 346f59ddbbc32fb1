"""``avmm demo storage``: the figures that can be known beforehand, the document, and the chart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from avmm.control.demo_linux import find_files
from avmm.control.demo_storage import Counters, DemoError, Segment
from avmm_console.cli import group, main
from tests import third_party

FIELDS = ["path", "op", "size", "depth", "mb_s", "iops", "p50_us", "p99_us", "exits", "irps", "signals", "interrupts", "copied"]


def demo(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(group, ["demo", "storage", "--quick", "--json", *arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for one in found:
        assert list(one) == FIELDS
        assert one["mb_s"] == pytest.approx(one["iops"] * one["size"] / 1e6, rel=0.01, abs=0.002)
        assert 1 < one["p50_us"] <= one["p99_us"]
    return found  # type: ignore[no-any-return]


def check_paths(found: list[dict[str, Any]]) -> None:
    """What makes the paths different: port accesses by the dozen here, one signal there; a buffer between, or none."""
    for one in found:
        size = one["size"]
        if one["path"] in ("pio", "dma"):
            times = 1 if one["path"] == "dma" else 2 if one["op"] == "read" else 3
            assert one["copied"] >= times * size, "straight by DMA, unless the page cache was not ready; else through buffers"
            assert one["exits"] > 10
            assert one["irps"] > 1
            assert one["signals"] == 0
        elif one["depth"] == 1:
            assert one["signals"] == pytest.approx(1, abs=0.1)
            assert 0.9 < one["exits"] < 8, "and the timer's"
            assert size < one["copied"] < 2 * size + 1200, "two packets, and the data: once, twice where the page cache was not ready for them"
        if one["path"] == "pio" and one["size"] == 65536:
            assert one["interrupts"] > 7, "one for each 16 sectors"


def test_the_built_in_guest_goes_four_ways(tmp_path: Path) -> None:
    found = demo("--plot", str(tmp_path / "chart.html"))
    assert [(one["path"], one["size"]) for one in found] == [
        (path, size) for path in ("pio", "dma", "shunt", "enlightened") for size in (512, 4096, 65536)
    ]
    check_paths(found)
    page = (tmp_path / "chart.html").read_text()
    assert page.count("<i ") == len(found)
    shown = [float(value.replace(",", "")) for value in re.findall(r"</i>([\d.,]+)</div>", page)]
    assert sorted(shown) == pytest.approx(sorted(one["mb_s"] for one in found), abs=0.06)


@pytest.mark.linux
@pytest.mark.guests
def test_linux_goes_three_ways(tmp_path: Path) -> None:
    third_party.file("boot/vmlinuz-*")
    found = demo("--linux", "--plot", str(tmp_path / "chart.png"))
    assert {(one["path"], one["op"], one["size"], one["depth"]) for one in found} == {
        (path, op, size, depth)
        for path in ("pio", "dma", "enlightened") for op in ("read", "write") for size in (512, 4096, 65536) for depth in (1, 8)
    }  # fmt: skip
    assert len(found) == 36
    check_paths(found)
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width == 900
        assert len(chart.getcolors(1 << 16) or []) > 4


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AVMM_GUEST_CACHE", str(tmp_path))
    with pytest.raises(DemoError, match="There is no Linux kernel .* name one with --kernel, or have `make test` fetch"):
        find_files()
    with pytest.raises(SystemExit) as ended:
        main(["demo", "storage", "--linux", "--kernel", str(tmp_path / "none")])
    assert ended.value.code == 2
    assert re.fullmatch(r"avmm: There is no Linux kernel [^\n]+\n", capsys.readouterr().err)
    result = CliRunner().invoke(group, ["demo", "storage", "--plot", "chart.jpg"])
    assert (result.exit_code, "a .png or a .html file" in result.output) == (2, True)
    result = CliRunner().invoke(group, ["demo", "storage", "--kernel", "k"])
    assert (result.exit_code, "go with --linux" in result.output) == (2, True)


def test_a_request_in_pieces_counts_once_and_depth_is_taken_into_account() -> None:
    segment = Segment(4096, 8)
    segment.first, segment.last = Counters(10, 0, 0, 5, 0), Counters(24, 7, 14, 5, 700)
    segment.pieces = [(0, 0, 4096)]
    for i in range(1, 8):  # two halves each, 10 us and 20 us apart
        segment.pieces += [(i * 30_000 - 20_000, i * 4096, 2048), (i * 30_000, i * 4096 + 2048, 2048)]
    one = segment.measurement("pio", "read", 1)
    assert one.iops == pytest.approx(33333.3, rel=1e-5)
    assert one.mb_s == pytest.approx(136.533, rel=1e-5)
    assert (one.p50_us, one.p99_us) == (30, 30)
    assert (one.exits, one.irps, one.signals, one.interrupts, one.copied) == (2, 1, 2, 0, 100)
    assert segment.measurement("pio", "read", 4).p50_us == 120


def test_only_the_time_in_which_all_processes_ran_counts() -> None:
    segment = Segment(512, 64)
    segment.first = segment.last = Counters(0, 0, 0, 0, 0)
    # Two processes of 32 requests: the second starts after 8 of the first, and is alone for the last 8.
    for i in range(32):
        segment.pieces += [(i * 1000, i * 512, 512), (i * 1000 + 8500, (32 + i) * 512, 512)]
    segment.pieces.sort()
    times = segment.finished(2)
    assert (times[0], times[-1]) == (8500, 31_000)
    assert segment.measurement("dma", "read", 2, streams=2).p50_us == 1
    assert segment.measurement("dma", "read", 2, streams=2).iops == pytest.approx(2e6, rel=0.05)
