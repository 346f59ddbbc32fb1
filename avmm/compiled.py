"""Whether the compiled modules (compiled.txt, setup.py) are those of the sources beside them.

A compiled module is imported instead of its source, so an edit, or another branch, would change nothing and say nothing. Hence each
process compares them once, before it imports the first: sources of some 200 KiB take about a millisecond.

The invariant: no module runs compiled whose source says something else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


class StaleError(ImportError):
    """A source has changed since it was compiled."""


def modules(root: Path = ROOT) -> dict[str, str]:
    """Return the sources that were compiled, and the digest of each as it was then; none where everything is interpreted."""
    try:
        found: dict[str, str] = json.loads((root / "avmm/compiled.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def check(root: Path = ROOT) -> None:
    """Raise StaleError if a source has changed since it was compiled."""
    for path, digest in modules(root).items():
        try:
            same = hashlib.sha256((root / path).read_bytes()).hexdigest() == digest
        except FileNotFoundError:
            same = False
        if not same:
            sentence = f"{path} has changed since it was compiled: run `make compiled`, or `make interpreted` to do without."
            raise StaleError(sentence, name="avmm")
