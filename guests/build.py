"""Builds the guest's disk image from nub/ and files/ with nasm, gcc, ld and objcopy: `make -C guests`, or `python -m guests.build`.

The same tools give the same bytes: no debug information, build ids, dates or paths go into the image.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .filearea import SECTOR, format_area

HERE = Path(__file__).resolve().parent
IMAGE = HERE / "avmm-guest.img"
IMAGE_SIZE = 2 * 1024 * 1024
KERNEL_LBA = 1
DUMP_LBA = 240
"""The kernel must end before the crash dump area (nub/kernel/crash.c)."""
MODIFIED = 1767225600
"""2026-01-01 00:00: the time all files of a fresh image carry."""

TOOLS = ("nasm", "gcc", "ld", "objcopy")
CFLAGS = shlex.split(
    "-m32 -march=i486 -std=gnu11 -Os -ffreestanding -nostdlib -fno-pic -fno-pie -fno-stack-protector -fno-builtin -fno-common "
    "-fno-asynchronous-unwind-tables -fno-unwind-tables -fno-ident -fno-tree-loop-distribute-patterns -fcf-protection=none "
    "-fno-delete-null-pointer-checks -fno-strict-aliasing -fno-toplevel-reorder -mno-sse -mno-mmx -mno-80387 "
    "-mpreferred-stack-boundary=2 --param=min-pagesize=0 -Wall -Wextra -Werror -Wno-main -I."
)


def pattern_text(size: int) -> bytes:
    """Text whose every 64-byte line tells its own offset: a sector read from the wrong place shows."""
    return b"".join(b"%08x %s\n" % (at, b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQR") for at in range(0, size, 64))


def missing_tools() -> list[str]:
    """The tools a build needs and this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def files() -> list[tuple[str, bytes]]:
    """What the file area of a fresh image holds."""
    texts = [(path.name, path.read_bytes()) for path in sorted((HERE / "files").iterdir()) if path.suffix == ".txt"]
    return [*texts, ("pattern.txt", pattern_text(64 * 1024)), ("bytes.bin", bytes(range(256)) * 16 + b"odd")]


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=HERE / "nub", capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(str(part) for part in command)}\n{done.stdout}{done.stderr}")


def _link(folder: str, script: Path, work: Path, *defines: str) -> bytes:
    """Compile and link one program (its folder and lib/) into a flat binary."""
    objects: list[Path] = []
    sources = [*sorted((HERE / "nub" / folder).glob("*.asm")), *sorted((HERE / "nub" / folder).glob("*.c"))]
    for source in [*sources, *sorted((HERE / "nub" / "lib").glob("*.c"))]:
        target = work / f"{folder}-{source.parent.name}-{source.name}.o"
        relative = source.relative_to(HERE / "nub")
        if source.suffix == ".asm":
            _run("nasm", "-f", "elf32", *defines, relative, "-o", target)
        else:
            _run("gcc", *CFLAGS, "-c", relative, "-o", target)
        objects.append(target)
    elf, binary = work / f"{folder}.elf", work / f"{folder}.bin"
    _run("ld", "-m", "elf_i386", "--build-id=none", "--no-warn-rwx-segments", "-T", script, "-o", elf, *objects)
    _run("objcopy", "-O", "binary", elf, binary)
    return binary.read_bytes()


def _flat(source: str, work: Path, *defines: str) -> bytes:
    target = work / f"{Path(source).name}.bin"
    _run("nasm", "-f", "bin", *defines, source, "-o", target)
    return target.read_bytes()


def build(output: Path = IMAGE) -> Path:
    """Build the image into `output`; RuntimeError with the tool's own words if a step fails."""
    if missing := missing_tools():
        raise RuntimeError(f"not installed: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="avmm-guest-") as name:
        work = Path(name)
        _link("shell", Path("shell/shell.ld"), work)
        shell = work / "shell.bin"
        kernel = _flat("boot/setup.asm", work) + _link("kernel", Path("kernel/kernel.ld"), work, f'-DSHELL_BINARY="{shell}"')
        sectors = -(-len(kernel) // SECTOR)
        if KERNEL_LBA + sectors > DUMP_LBA:
            raise RuntimeError(f"the kernel is too large: {sectors} sectors")
        disk = bytearray(IMAGE_SIZE)
        disk[:SECTOR] = _flat("boot/mbr.asm", work, f"-DKERNEL_SECTORS={sectors}", f"-DIMAGE_SECTORS={IMAGE_SIZE // SECTOR}")
        disk[KERNEL_LBA * SECTOR : KERNEL_LBA * SECTOR + len(kernel)] = kernel
        format_area(disk, files(), MODIFIED)
        output.write_bytes(disk)
    return output


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGE))
