"""Machine code for tests, assembled from source by nasm and kept in pytest's cache folder by the hash of the source."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from tests import third_party

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "avmm-asm"


@functools.cache
def assemble(source: str, bits: int = 16, org: int = 0x1000) -> bytes:
    """Return the flat binary of ``source``. Without nasm the test is skipped; under CI=true it fails."""
    text = f"BITS {bits}\norg {org:#x}\n{source}\n"
    kept = CACHE / hashlib.sha256(text.encode()).hexdigest()[:32]
    if kept.is_file():
        return kept.read_bytes()
    nasm = third_party.tool("nasm")
    with tempfile.TemporaryDirectory() as folder:
        code, listing = Path(folder, "a.s"), Path(folder, "a.bin")
        code.write_text(text)
        done = subprocess.run([nasm, "-O1", "-f", "bin", "-o", listing, code], capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"nasm: {done.stderr}")
        data = listing.read_bytes()
    CACHE.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_bytes(data)
    part.replace(kept)
    return data


def labels(source: str, bits: int = 16, org: int = 0x1000) -> dict[str, int]:
    """Return the addresses of the labels in ``source`` that are lines of their own and begin with a letter."""
    names = [line.split(":")[0] for line in source.splitlines() if ":" in line and line.split(":")[0].isidentifier()]
    table = "".join(f"\n dd {name}" for name in names)
    data = assemble(source + "\nalign 4" + table, bits, org)
    tail = data[len(data) - 4 * len(names) :]
    return {name: int.from_bytes(tail[4 * i : 4 * i + 4], "little") for i, name in enumerate(names)}
