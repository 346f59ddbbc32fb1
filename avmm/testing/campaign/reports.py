"""What a campaign leaves for other programs: JSON, and JUnit's XML as CI systems read it.

The invariant: both list the instances in their order; nothing in them but host times differs between two runs of one campaign.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

from avmm.testing.campaign.campaign import Campaign, Result

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")


def summary(campaign: Campaign) -> dict[str, int]:
    """Return how many ended how, and how many did not run."""
    counts = Counter(result.outcome for result in campaign.results.values())
    missing = len(campaign.instances) - len(campaign.results)
    return dict(sorted(counts.items())) | ({"not run": missing} if missing else {})


def as_json(campaign: Campaign, scenario: str, matrix: dict[str, list[str]]) -> dict[str, Any]:
    """Return everything as JSON-ready types."""
    return {
        "scenario": scenario,
        "matrix": matrix,
        "summary": summary(campaign),
        "results": [_entry(result) for _, result in sorted(campaign.results.items())],
        "not run": [instance.as_dict() for instance in campaign.instances if instance.number not in campaign.results],
        "lost workers": campaign.lost,
    }


def _entry(result: Result) -> dict[str, Any]:
    entry = result.instance.as_dict() | {
        "outcome": result.outcome,
        "machine_seconds": result.machine_seconds,
        "host_seconds": result.host_seconds,
        "attempts": result.attempts,
    }
    if not result.good:
        entry |= {"message": result.message, "report": result.report, "command": result.instance.command}
    return entry


def as_junit(campaign: Campaign, scenario: str) -> str:
    """Return a JUnit file: a test case for each instance that has a result."""
    results = [result for _, result in sorted(campaign.results.items())]
    suite = ElementTree.Element(
        "testsuite", name=scenario, tests=str(len(results)),
        failures=str(sum(result.outcome == "failed" for result in results)),
        errors=str(sum(not result.good and result.outcome != "failed" for result in results)),
        skipped=str(sum(result.outcome == "skipped" for result in results)),
        time=f"{sum(result.host_seconds for result in results):.3f}",
    )  # fmt: skip
    for result in results:
        file, _, name = result.instance.test.partition("::")
        case = ElementTree.SubElement(
            suite, "testcase", classname=file, name=f"{name}[{result.instance.variant}]", time=f"{result.host_seconds:.3f}"
        )
        if result.good and result.outcome != "skipped":
            continue
        kind = {"failed": "failure", "skipped": "skipped"}.get(result.outcome, "error")
        entry = ElementTree.SubElement(case, kind, message=_clean(result.message))
        if not result.good:
            entry.text = _clean(f"{result.instance.command}\n\n{result.report}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    text: str = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
    return text


def _clean(text: str) -> str:
    """Leave out what XML cannot hold."""
    return _NOT_XML.sub("?", text)
