"""What the benchmarks share: repeated runs, medians, one table."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests import third_party


@dataclass(frozen=True, slots=True)
class Result:
    """One measured quantity: the median of ``runs`` values, its spread, and what it is compared with."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    runs: int
    reference: float | None = None
    """The other side's median, in the same unit."""
    goal: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Ours divided by the reference."""
        return self.median / self.reference if self.reference else None


def median_of(
    name: str,
    unit: str,
    values: list[float],
    *,
    reference: list[float] | None = None,
    limit: float | None = None,
    ratio: float | None = None,
    at_least: bool = False,
) -> Result:
    """Summarise ``values``; ``limit`` is a goal for the median, ``ratio`` one for ours / reference."""
    median = statistics.median(values)
    other = statistics.median(reference) if reference else None
    goal, met = "", None
    if limit is not None:
        goal, met = f"{'>=' if at_least else '<='} {limit:g} {unit}", median >= limit if at_least else median <= limit
    elif ratio is not None and other:
        got = median / other
        goal, met = f"{'>=' if at_least else '<='} {ratio:g} x", got >= ratio if at_least else got <= ratio
    return Result(name, unit, median, min(values), max(values), len(values), other, goal, met)


def show(results: list[Result], as_json: bool = False) -> None:
    """Print the results as a table, or as JSON."""
    if as_json:
        print(json.dumps([{**asdict(r), "ratio": r.ratio} for r in results], indent=1))
        return
    table = Table(title="avmm benchmarks (medians)")
    for column, justify in (("what", "left"), ("ours", "right"), ("low .. high", "right"), ("runs", "right"), ("reference", "right"),
                            ("ratio", "right"), ("goal", "left"), ("", "left")):  # fmt: skip
        table.add_column(column, justify="left" if justify == "left" else "right")
    for r in results:
        table.add_row(
            r.name, f"{r.median:.4g} {r.unit}", f"{r.low:.4g} .. {r.high:.4g}", str(r.runs),
            f"{r.reference:.4g}" if r.reference else "", f"{r.ratio:.2f}" if r.ratio else "", r.goal,
            "" if r.met is None else "met" if r.met else "missed",
        )  # fmt: skip
    Console(width=150).print(table)


def assemble(source: str, *, origin: int = 0x7C00, bits: int = 16, pad: int = 0) -> bytes:
    """Assemble with nasm; ``pad`` makes a boot sector with signature in an image of at least that many bytes."""
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder) / "a.asm", Path(folder) / "a.bin"
        text.write_text(f"bits {bits}\norg {origin:#x}\n{source}\n")
        subprocess.run([third_party.tool("nasm"), "-f", "bin", "-o", str(binary), str(text)], check=True)
        code = binary.read_bytes()
    if not pad:
        return code
    return (code.ljust(510, b"\0") + b"\x55\xaa").ljust(pad, b"\0")


def qemu() -> str | None:
    """Return QEMU's path, None (with a word to the user) when it is not here."""
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        print("qemu-system-x86_64 is not installed: no comparison (apt-get install qemu-system-x86)")
    return path


def repeat(count: int, run: Callable[[], float]) -> list[float]:
    """Return ``count`` values of ``run()``."""
    return [run() for _ in range(count)]
