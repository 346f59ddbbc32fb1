"""Other people's software that the tests boot: Debian packages, downloaded and unpacked without root into a cache folder.

``python tests/third_party.py`` fetches everything (``make test`` does); in a test ``third_party.file(...)`` gives a path, or
skips with the reason where apt is missing. Under ``CI=true`` a missing guest is a failure, not a skip.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("AVMM_GUEST_CACHE", ROOT / ".cache" / "guests"))
UNPACKED = CACHE / "root"
STAMP = CACHE / "packages"
"""Names what has been unpacked, a package a line."""

PACKAGES = (
    "linux-image-cloud-amd64", "busybox-static", "seabios", "memtest86+", "syslinux", "syslinux-common", "mtools", "dosfstools",
    "grub-pc-bin", "grub-rescue-pc", "ipxe", "grub-invaders", "nasm", "e2fsprogs", "libext2fs2", "libss2", "libcom-err2",
    "gdb-minimal",
)  # fmt: skip


class Unavailable(Exception):
    """A guest cannot be had here; one sentence says why."""


def _apt(*arguments: str, cwd: Path | None = None) -> str:
    """Run apt with lists and caches of our own: no root, and the system's stay as they are."""
    state = CACHE / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    options = [
        "-o", f"Dir::State::Lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}", "-o", "Debug::NoLocking=1",
        "-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none",
    ]  # fmt: skip
    done = subprocess.run([arguments[0], *options, *arguments[1:]], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(arguments[:2])} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return done.stdout


def _resolve(package: str) -> list[str]:
    """Return the package, or what a metapackage for the kernel stands for; gdb with the libraries that this system does not have."""
    if package == "gdb-minimal":
        return [package, *_missing_libraries(package)]
    if package != "linux-image-cloud-amd64":
        return [package]
    depends = _apt("apt-cache", "depends", "--no-recommends", "--no-suggests", package)
    return [line.split()[-1] for line in depends.splitlines() if "linux-image-" in line and "Depends:" in line]


def _missing_libraries(package: str) -> list[str]:
    kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    depends = _apt("apt-cache", "depends", "--recurse", *(f"--no-{kind}" for kind in kinds), package)
    names = {line for line in depends.splitlines() if line.startswith(("lib", "zlib"))}
    installed = subprocess.run(["dpkg-query", "-W", "-f", "${Package}\n"], capture_output=True, text=True, check=True).stdout
    return sorted(names - set(installed.splitlines()))


def fetch() -> None:
    """Download and unpack everything that is not there yet."""
    unpacked = STAMP.read_text().split() if STAMP.exists() else []
    missing = [package for package in PACKAGES if package not in unpacked]
    if not missing:
        return
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is missing here, and the guests come from Debian packages")
    UNPACKED.mkdir(parents=True, exist_ok=True)
    debs = CACHE / "debs"
    debs.mkdir(exist_ok=True)
    print("fetching Debian packages with guests for the tests ...", flush=True)
    _apt("apt-get", "update")
    names = [name for package in missing for name in _resolve(package)]
    _apt("apt-get", "download", *names, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(deb), str(UNPACKED)], check=True)
        deb.unlink()
    STAMP.write_text("\n".join([*unpacked, *missing]))


@functools.cache
def _available() -> str:
    try:
        fetch()
    except Unavailable as reason:
        return str(reason)
    return ""


def file(pattern: str) -> Path:
    """Return the one file of the packages that matches ``pattern`` (a glob below the root). Skips, or fails under CI, without it."""
    import pytest

    reason = _available()
    found = sorted(UNPACKED.glob(pattern)) if not reason else []
    if found:
        return found[-1]
    reason = reason or f"no file {pattern} in the Debian packages"
    if os.environ.get("CI") == "true":
        pytest.fail(f"a guest is missing under CI: {reason}")
    pytest.skip(reason)


def tool(name: str) -> str:
    """Return the path of a program: the system's, or the one from the packages."""
    installed = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if installed:
        return installed
    for folder in ("usr/bin", "usr/sbin", "sbin", "bin"):
        if (UNPACKED / folder / name).exists():
            return str(UNPACKED / folder / name)
    return str(file(f"*/{name}"))


def tool_environment() -> dict[str, str]:
    """Return an environment in which programs from the packages find their libraries and each other."""
    lib = UNPACKED / "usr/lib/x86_64-linux-gnu"
    lib2 = UNPACKED / "lib/x86_64-linux-gnu"
    bins = ":".join(str(UNPACKED / folder) for folder in ("usr/bin", "usr/sbin", "sbin", "bin"))
    return {**os.environ, "LD_LIBRARY_PATH": f"{lib}:{lib2}", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{bins}"}


if __name__ == "__main__":
    try:
        fetch()
    except Unavailable as problem:
        print(f"guests for the tests are not available: {problem}", file=sys.stderr)
        sys.exit(1 if os.environ.get("CI") == "true" else 0)
