"""``avmm demo devirtualize`` (H13: again and again, and nothing is left behind)."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from avmm_console.demo_devirtualize import devirtualize


@pytest.mark.parametrize("bound", ["1s", "1us"])
def test_figures(bound: str) -> None:
    """However short the bound, it comes to its end."""
    done = CliRunner().invoke(devirtualize, ["--json", "--cycles", "3", "--bound", bound], standalone_mode=False)
    assert done.exception is None
    figures = json.loads(done.output)
    assert (figures["cycles"], figures["errors"], figures["lost"]) == (3, 0, 0)
    assert figures["exits_per_request_direct"] == 0
    assert figures["exits_per_request_virtualized"] > 5
    assert 0 < figures["pause_p50_us"] <= figures["pause_p99_us"] <= figures["pause_max_us"]
    assert min(figures["direct_mb_s"], figures["virtualized_mb_s"]) > 0
    assert set(figures) == {
        "cycles", "errors", "lost", "pause_p50_us", "pause_p99_us", "pause_max_us", "bound_us", "direct_mb_s", "virtualized_mb_s",
        "exits_per_request_direct", "exits_per_request_virtualized",
    }  # fmt: skip
