"""Guest software that comes with avmm: our own small operating system, built by build.py into avmm-guest.img (README.md)."""

from __future__ import annotations

from pathlib import Path


def image() -> Path:
    """Path of the built disk image. It is shared and read-only by convention: give a guest that writes its own copy or an overlay."""
    path = Path(__file__).resolve().parent / "avmm-guest.img"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: build it with `make -C guests`")
    return path
