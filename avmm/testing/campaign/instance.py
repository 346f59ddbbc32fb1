"""What a worker does: find the tests of a scenario's file, and run one instance of one of them, with pytest in this process.

The invariant: what an instance's result says depends on the instance only, except for ``host_seconds``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from avmm.control.config import ConfigError
from avmm.testing import params
from avmm.testing.campaign.matrix import Instance, Scenario

REPORT_KEPT = 100_000
ALWAYS = ("-q", "--no-header", "-p", "no:cacheprovider", "--color=no", "--capture=sys")
ONE_BY_ONE = ("-n0",) if importlib.util.find_spec("xdist") is not None else ()
"""Whatever the scenario's pytest.ini says: the campaign is what runs things beside each other."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # of Python objects: different each time


class _Collected:
    """Hears what pytest finds."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []
        self.errors: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.longreprtext)


def collect(scenario: str) -> list[Scenario]:
    """Return the tests of a file, or the one that is named as FILE::TEST. Raises ConfigError."""
    path = scenario.partition("::")[0]
    if not Path(path).is_file():
        raise ConfigError(f"there is no scenario {path}: name a Python file with tests, or one of its tests as FILE::TEST")
    heard = _Collected()
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        pytest.main([*ALWAYS, *ONE_BY_ONE, "--collect-only", scenario], plugins=[heard])
    if heard.errors:
        raise ConfigError(f"{scenario} cannot be read: {_last_line(heard.errors[0])} (python -m pytest {scenario} shows more)")
    if not heard.items:
        raise ConfigError(f"{scenario} names no test: write a function test_... (python -m pytest {scenario} shows more)")
    return [Scenario(_id(item), params.declared(item)) for item in heard.items]


def _id(item: pytest.Item) -> str:
    """Return the test's id from the folder we are in, which need not be pytest's root."""
    return os.path.relpath(item.path) + item.nodeid[item.nodeid.index("::") :]


class _Heard:
    """Hears how a test ends."""

    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)


def run(instance: Instance, artefacts: str | None = None) -> dict[str, Any]:
    """Run an instance and return its outcome: ``passed``, ``failed``, ``skipped`` or ``error``, with what a person wants to know."""
    heard = _Heard()
    output = io.StringIO()
    options = [*ALWAYS, *ONE_BY_ONE, instance.test, "--avmm-seed", str(instance.seed)]
    for name, value in instance.parameters.items():
        options += ["--avmm-param", f"{name}={value}"]
    if artefacts is not None:
        options += ["--avmm-artefacts", artefacts]
    began = time.monotonic()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main(options, plugins=[heard])
    outcome, message, text = _outcome(heard.reports, output.getvalue(), int(status))
    return {
        "outcome": outcome,
        "message": message,
        "report": _ADDRESS.sub(" at 0x...>", text)[-REPORT_KEPT:],
        "machine_seconds": _machine_seconds(heard.reports),
        "host_seconds": round(time.monotonic() - began, 3),
    }


def _outcome(reports: Sequence[pytest.TestReport], output: str, status: int) -> tuple[str, str, str]:
    for report in reports:
        if report.failed:
            sections = "\n".join(f"--- {title}\n{text}" for title, text in report.sections)
            kind = "failed" if report.when == "call" else "error"
            return kind, _message(report), f"{report.longreprtext}\n{sections}"
    if any(report.skipped for report in reports):
        return "skipped", next(_reason(report) for report in reports if report.skipped), ""
    if not reports or status:
        return "error", f"pytest ended with status {status}: {_last_line(output)}", output
    return "passed", "", ""


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longreprtext).strip().split("\n")[0]


def _reason(report: pytest.TestReport) -> str:
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", ""))


def _machine_seconds(reports: Sequence[pytest.TestReport]) -> float | None:
    found = [value for report in reports for name, value in report.user_properties if name == "avmm_machine_seconds"]
    return float(str(found[-1])) if found else None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1].removeprefix("E ").strip()
