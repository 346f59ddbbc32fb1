"""The backing file: locks, overlays, durability, errors, and random requests against a bytearray."""
# ruff: noqa: ASYNC220, ASYNC240 - a test may block its own loop

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import itertools
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avmm.devices.block import BlockError, BlockFault
from avmm.host import backing, holes, throttle
from avmm.host.backing import BackingFile
from avmm.host.opening import ImageError, Mode
from avmm.host.overlay import PAGE, Overlay
from tests.host.leaks import nothing_left

SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(n % 251 for n in range(64 * SECTOR)))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the host answer like one whose page cache is empty: RWF_NOWAIT reads give EAGAIN."""
    real = os.preadv

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "not cached")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)


@pytest.mark.asyncio
async def test_read_write_flush_close(image: Path) -> None:
    before = image.read_bytes()
    with nothing_left():
        file = await BackingFile.open(image)
        assert (file.size, file.read_only) == (64 * SECTOR, False)
        assert await file.read(3 * SECTOR, 2 * SECTOR) == before[3 * SECTOR : 5 * SECTOR]
        await file.write(4 * SECTOR, b"w" * SECTOR)
        assert await file.read(3 * SECTOR, 2 * SECTOR) == before[3 * SECTOR : 4 * SECTOR] + b"w" * SECTOR
        await file.flush()
        assert await file.read(0, 0) == b""
        await file.close()
        await file.close()
    assert image.read_bytes() == before[: 4 * SECTOR] + b"w" * SECTOR + before[5 * SECTOR :]
    with pytest.raises(BlockError) as caught:
        await file.read(0, SECTOR)
    assert caught.value.fault is BlockFault.NO_MEDIUM


@pytest.mark.asyncio
async def test_cached_requests_need_no_thread_and_others_do(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await BackingFile.open(image)
    assert isinstance(file.start_read(0, 4096), bytearray)
    assert file.start_write(0, bytes(4096)) is None
    assert file.start_write(512, bytes(512)) is None  # the page around it is cached
    large = file.start_write(0, bytes(0))
    assert large is None
    uncached(monkeypatch)
    answer = file.start_read(8 * SECTOR, SECTOR)
    assert isinstance(answer, asyncio.Future)
    assert await answer == image.read_bytes()[8 * SECTOR : 9 * SECTOR]
    part = file.start_write(SECTOR, b"p" * SECTOR)  # the kernel would have to read the page: not on the loop's time
    assert part is not None
    begins = file.start_write(4096 - SECTOR, b"b" * SECTOR)
    ends = file.start_write(4096, b"e" * SECTOR)
    assert begins is not None
    assert ends is not None
    assert file.start_write(8192, b"q" * 4096) is None
    await asyncio.gather(part, begins, ends)
    assert await file.read(4096 - SECTOR, 2 * SECTOR) == b"b" * SECTOR + b"e" * SECTOR
    assert await file.read(SECTOR, SECTOR) == b"p" * SECTOR
    await file.close()


@pytest.mark.asyncio
async def test_a_file_system_without_nowait_is_not_asked_again(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    real = os.preadv

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        nonlocal asked
        if flags:
            asked += 1
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    file = await BackingFile.open(image, "ro")
    for _ in range(3):
        assert await file.read(0, SECTOR) == image.read_bytes()[:SECTOR]
    assert asked == 1
    await file.close()


@pytest.mark.asyncio
async def test_a_slow_write_sends_the_next_ones_to_the_threads(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = itertools.count()
    monkeypatch.setattr(throttle, "SLOW", -1)
    monkeypatch.setattr(resource, "getrusage", lambda who: resource.struct_rusage((0.0, 0.0, *[0] * 12, next(sleeps), 0)))
    file = await BackingFile.open(image)
    assert file.start_write(0, bytes(4096)) is None
    assert file.start_write(0, bytes(4096)) is None  # the first during which it is known that the thread slept
    later = [file.start_write(0, bytes(4096)) for _ in range(throttle.FIRST)]
    assert None not in later
    assert file.start_write(4096, bytes(4096)) is None
    await file.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("mode", "second", "works"),
    [
        ("rw", "rw", False),
        ("rw", "ro", False),
        ("ro", "rw", False),
        ("ro", "ro", True),
        ("overlay", "rw", False),
        ("overlay", "overlay", True),
    ],
)
async def test_locks_within_one_process(image: Path, mode: Mode, second: Mode, works: bool) -> None:
    first = await BackingFile.open(image, mode)
    with nothing_left():
        if works:
            await (await BackingFile.open(image, second)).close()
        else:
            with pytest.raises(ImageError, match=r"is in use: another machine has locked it\.$"):
                await BackingFile.open(image, second)
    await first.close()
    await (await BackingFile.open(image)).close()


HOLD = """
import asyncio, sys
from avmm.host.backing import BackingFile
async def main():
    file = await BackingFile.open(sys.argv[1])
    await file.write(0, b"K" * 512)
    await file.write(1024, b"L" * 200 * 1024)
    await file.flush()
    await file.write(512, b"M" * 512)
    print("flushed", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_second_process_and_kill_after_flush(tmp_path: Path) -> None:
    path = tmp_path / "big.img"
    path.write_bytes(bytes(1 << 20))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"flushed\n"
        with pytest.raises(ImageError, match="is in use"):
            await BackingFile.open(path)
        holder.send_signal(signal.SIGKILL)
    assert path.read_bytes()[:512] == b"K" * 512
    assert path.read_bytes()[1024 : 1024 + 200 * 1024] == b"L" * 200 * 1024
    file = await BackingFile.open(path)  # the lock died with its holder
    await file.close()


OVERLAY = HOLD.replace("sys.argv[1])", "sys.argv[1], 'overlay', sys.argv[2])")


@pytest.mark.asyncio
async def test_kill_after_flush_of_an_overlay(tmp_path: Path) -> None:
    path, changes = tmp_path / "big.img", tmp_path / "changes"
    path.write_bytes(bytes(1 << 20))
    with subprocess.Popen([sys.executable, "-c", OVERLAY, str(path), str(changes)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"flushed\n"
        holder.kill()
    assert path.read_bytes() == bytes(1 << 20)
    file = await BackingFile.open(path, "overlay", changes)
    assert await file.read(0, 512) == b"K" * 512
    assert await file.read(1024, 200 * 1024) == b"L" * 200 * 1024
    assert await file.read(512, 512) == bytes(512)  # not flushed: its bit never reached the file
    await file.close()


@pytest.mark.asyncio
async def test_image_errors(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"x" * 511)
    os.mkfifo(tmp_path / "pipe")
    cases: list[tuple[Path, Mode, int | None, str]] = [
        (tmp_path / "none", "rw", None, r"none does not exist\."),
        (tmp_path / "none", "ro", 4096, r"none does not exist\."),
        (image / "below", "rw", None, r"does not exist\."),
        (tmp_path, "rw", None, r"is a directory, not a disk image\."),
        (tmp_path, "ro", None, r"is a directory|not a file that can hold"),
        (tmp_path / "pipe", "ro", None, r"not a file that can hold a disk image\."),
        (short, "rw", None, r"too short for a disk image: 511 bytes, a sector has 512\."),
        (image, "rw", 4096, r"has 32768 bytes, not the 4096 asked for\."),
        (tmp_path / "tiny", "rw", 100, r"cannot be 100 bytes long"),
    ]
    with nothing_left():
        for path, mode, size, message in cases:
            with pytest.raises(ImageError, match=message):
                await BackingFile.open(path, mode, None, size)
        denied = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(denied))
        with pytest.raises(ImageError, match=r"is not writable; open it read-only or with an overlay\."):
            await BackingFile.open(image)
        with pytest.raises(ImageError, match=r"cannot be read: permission denied\."):
            await BackingFile.open(image, "ro")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.asyncio
async def test_made_with_a_size(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    file = await BackingFile.open(path, size=1 << 30)
    assert file.size == 1 << 30
    assert await file.read((1 << 30) - SECTOR, SECTOR) == bytes(SECTOR)
    await file.write((1 << 30) - SECTOR, b"z" * SECTOR)
    await file.close()
    assert path.stat().st_size == 1 << 30
    assert path.stat().st_blocks * 512 < 1 << 20


@pytest.mark.asyncio
@pytest.mark.parametrize("slow", [False, True])
async def test_a_tail_is_padded_like_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(b"a" * 1300)
    if slow:
        uncached(monkeypatch)
    file = await BackingFile.open(path)
    assert file.size == 1536
    assert await file.read(512, 1024) == b"a" * 788 + bytes(236)
    await file.write(1024, b"b" * 512)
    assert await file.read(512, 1024) == b"a" * 512 + b"b" * 512
    await file.close()
    assert path.stat().st_size == 1536


@pytest.mark.asyncio
async def test_range_and_read_only(image: Path) -> None:
    file = await BackingFile.open(image, "ro")
    for offset, length in [(64 * SECTOR, SECTOR), (63 * SECTOR, 2 * SECTOR), (-SECTOR, SECTOR), (1 << 60, SECTOR)]:
        with pytest.raises(BlockError) as caught:
            await file.read(offset, length)
        assert caught.value.fault is BlockFault.RANGE
    with pytest.raises(BlockError) as caught:
        await file.write(SECTOR, bytes(SECTOR))
    assert (caught.value.fault, caught.value.lba) == (BlockFault.READ_ONLY, 1)
    with pytest.raises(ValueError, match="not whole sectors"):
        await file.read(0, 100)
    await file.flush()
    await file.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("length", [SECTOR, backing.WRITE_NOW + SECTOR])
async def test_host_errors_are_medium_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    path = tmp_path / "d"
    path.write_bytes(bytes(1 << 20))
    file = await BackingFile.open(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(BlockError, match="No space left") as caught:
            await file.write(5 * SECTOR, bytes(length))
        assert (caught.value.fault, caught.value.lba) == (BlockFault.MEDIUM, 5)
    await file.write(5 * SECTOR, bytes(length))
    os.truncate(path, SECTOR)
    with pytest.raises(BlockError, match="shorter") as caught:
        await file.read(4 * SECTOR, SECTOR)
    assert (caught.value.fault, caught.value.lba) == (BlockFault.MEDIUM, 4)
    await file.close()


@pytest.mark.asyncio
async def test_after_a_failed_flush_none_succeeds(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_left():
        file = await BackingFile.open(image)

        def broken(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(BlockError, match="Input/output error"):
                await file.flush()
        with pytest.raises(BlockError, match="earlier flush"):
            await file.flush()
        with pytest.raises(BlockError, match="earlier flush"):
            await file.close()


@pytest.mark.asyncio
async def test_flush_syncs_once_for_what_was_written(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        synced.append(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    file = await BackingFile.open(image)
    await file.flush()  # whatever an earlier process left in the page cache
    await file.flush()
    assert len(synced) == 1
    await file.write(0, bytes(SECTOR))
    await file.flush()
    assert len(synced) == 2
    await file.write(0, bytes(SECTOR))
    await file.close()
    assert len(synced) == 3


@pytest.mark.asyncio
async def test_a_cancelled_write_is_performed_before_close(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "WRITE_NOW", 0)
    file = await BackingFile.open(image)
    writer = asyncio.create_task(file.write(0, b"c" * SECTOR))
    await asyncio.sleep(0)
    writer.cancel()
    await asyncio.wait({writer})
    assert writer.cancelled()
    await file.close()
    assert image.read_bytes()[:SECTOR] == b"c" * SECTOR


@pytest.mark.asyncio
@pytest.mark.parametrize("permanent", [False, True])
async def test_overlay_never_touches_the_base(image: Path, tmp_path: Path, permanent: bool) -> None:
    before, base = digest(image), image.read_bytes()
    changes = tmp_path / "changes" if permanent else None
    with nothing_left():
        file = await BackingFile.open(image, "overlay", changes)
        assert not file.read_only
        await file.write(SECTOR, b"x" * (3 * SECTOR))
        await file.write(10 * SECTOR, b"y" * SECTOR)
        expected = bytearray(base)
        expected[SECTOR : 4 * SECTOR] = b"x" * (3 * SECTOR)
        expected[10 * SECTOR : 11 * SECTOR] = b"y" * SECTOR
        assert await file.read(0, file.size) == expected
        await file.close()
        assert digest(image) == before
        again = await BackingFile.open(image, "overlay", changes)
        assert await again.read(0, again.size) == (expected if permanent else base)
        await again.close()
    assert digest(image) == before


@pytest.mark.asyncio
async def test_commit_writes_the_overlay_into_the_image_if_nobody_else_has_it(image: Path) -> None:
    before = image.read_bytes()
    file = await BackingFile.open(image, "overlay")
    other = await BackingFile.open(image, "overlay")
    try:
        await file.write(3 * SECTOR, b"\x01" * SECTOR)
        await file.write(60 * SECTOR, b"\x02" * 4 * SECTOR)
        with pytest.raises(ImageError, match="is in use"):
            await file.commit()
        assert image.read_bytes() == before
        await other.close()
        assert await file.commit() == 5
        assert image.read_bytes() == before[: 3 * SECTOR] + b"\x01" * SECTOR + before[4 * SECTOR : 60 * SECTOR] + b"\x02" * 4 * SECTOR
        assert await file.read(3 * SECTOR, SECTOR) == b"\x01" * SECTOR
        third = await BackingFile.open(image, "overlay")  # the lock is shared again
        await third.close()
    finally:
        await file.close()
    rw = await BackingFile.open(image)
    assert await rw.commit() == 0
    await rw.close()


@pytest.mark.asyncio
async def test_overlay_errors(image: Path, tmp_path: Path) -> None:
    other, foreign, changes = tmp_path / "other", tmp_path / "foreign", tmp_path / "changes"
    other.write_bytes(bytes(SECTOR))
    foreign.write_bytes(b"something else entirely" * 40)
    await (await BackingFile.open(image, "overlay", changes)).close()
    with nothing_left():
        with pytest.raises(ImageError, match="belongs to a disk of another size"):
            await BackingFile.open(other, "overlay", changes)
        with pytest.raises(ImageError, match="is not an overlay of avmm"):
            await BackingFile.open(image, "overlay", foreign)
        with pytest.raises(ImageError, match="in use"):
            await BackingFile.open(image, "overlay", image)
        os.truncate(changes, PAGE + 10)
        with pytest.raises(ImageError, match="has been cut short"):
            await BackingFile.open(image, "overlay", changes)


def test_overlay_writes_its_bitmap_after_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    with open(tmp_path / "o", "wb+", buffering=0) as file:
        overlay = Overlay.load(file.fileno(), 100)
        overlay.mark(3, 5)

        def fdatasync(_: int) -> None:
            events.append("sync")
            overlay.mark(50, 1)

        def pwrite(_: int, data: bytes, at: int) -> int:
            assert at == PAGE
            events.append(f"bitmap {data[0]:#x} {data[6]:#x}")
            return len(data)

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        monkeypatch.setattr(os, "pwrite", pwrite)
        overlay.sync()
        # Sector 50 was written while the data were being synchronized: its bit has to wait for the next time.
        assert events == ["sync", "bitmap 0xf8 0x0", "sync"]
        overlay.sync()
        assert events[3:] == ["sync", "bitmap 0xf8 0x4", "sync"]


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 100)), max_size=12), st.integers(0, 99), st.integers(1, 100))
def test_overlay_runs(marks: list[tuple[int, int]], first: int, count: int) -> None:
    overlay = Overlay(-1, 200, permanent=False)
    model = [False] * 200
    for start, length in marks:
        overlay.mark(start, length)
        model[start : start + length] = [True] * length
    runs = overlay.runs(first, count)
    assert [inside for inside, _, length in runs for _ in range(length)] == model[first : first + count]
    assert all(a[0] != b[0] and a[1] + a[2] == b[1] for a, b in itertools.pairwise(runs))


Step = tuple[str, int, int, int]
OPS = st.sampled_from(["read", "write", "write", "discard", "flush", "reopen"])
STEPS = st.lists(st.tuples(OPS, st.integers(0, 39), st.integers(1, 24), st.integers(0, 255)))


@settings(derandomize=True, max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, overlaid=st.booleans(), small=st.booleans(), prompt=st.booleans())
def test_random_requests_against_a_bytearray(tmp_path: Path, steps: list[Step], overlaid: bool, small: bool, prompt: bool) -> None:
    path, changes = tmp_path / "r.img", tmp_path / "r.overlay"
    path.write_bytes(bytes(40 * SECTOR))
    changes.unlink(missing_ok=True)
    model = bytearray(40 * SECTOR)

    async def open_it() -> BackingFile:
        return await BackingFile.open(path, "overlay" if overlaid else "rw", changes if overlaid else None)

    async def main() -> None:
        file = await open_it()
        for op, lba, wanted, value in steps:
            count = min(wanted, 40 - lba)
            place = slice(lba * SECTOR, (lba + count) * SECTOR)
            length = count * SECTOR
            if op == "read":
                buffer = memoryview(bytearray(length))
                if prompt and file.read_now(place.start, length, [buffer[:100], buffer[100:]]):
                    assert buffer == model[place]
                assert await file.read(place.start, length) == model[place]
            elif op == "write":
                data = memoryview(bytes([value]) * length)
                if not prompt or not file.write_now(place.start, length, [data[:10], data[10:]]):
                    await file.write(place.start, data)
                model[place] = data
            elif op == "discard":
                await file.start_discard(place.start, length)
                model[place] = bytes(length)
            elif op == "flush":
                await file.flush()
            else:
                await file.close()
                file = await open_it()
        assert await file.read(0, file.size) == model
        await file.close()

    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(backing, "WRITE_NOW", 4 * SECTOR)  # the rest takes the threads
            patch.setattr(backing, "READ_NOW", 4 * SECTOR)
        asyncio.run(main())
    assert not overlaid or path.read_bytes() == bytes(40 * SECTOR)


@pytest.mark.asyncio
@pytest.mark.parametrize("overlaid", [False, True])
async def test_the_host_gets_the_room_of_discarded_sectors_back(tmp_path: Path, overlaid: bool) -> None:
    base, changes = tmp_path / "base.img", tmp_path / "changes"
    base.write_bytes(b"b" * (4 << 20))
    file = await BackingFile.open(base, "overlay" if overlaid else "rw", changes if overlaid else None)
    await file.write(0, b"w" * (2 << 20))
    await file.flush()
    taken = (changes if overlaid else base).stat()
    await file.start_discard(SECTOR, (1 << 20) - 2 * SECTOR)  # no whole pages at its ends
    found = await file.read(0, 4 << 20)
    assert found == b"w" * SECTOR + bytes((1 << 20) - 2 * SECTOR) + b"w" * (SECTOR + (1 << 20)) + b"b" * (2 << 20)
    await file.start_discard(3 << 20, 1 << 20)
    await file.flush()
    assert await file.read(3 << 20, 1 << 20) == (b"b" if overlaid else b"\0") * (1 << 20), "what the overlay does not hold is the image's"
    left = (changes if overlaid else base).stat()
    assert left.st_size == taken.st_size
    assert (taken.st_blocks - left.st_blocks) * 512 > (1 << 20) - (64 << 10)
    await file.close()
    assert not overlaid or base.read_bytes() == b"b" * (4 << 20)


@pytest.mark.asyncio
async def test_where_nothing_can_be_discarded_nothing_is(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, codes = image.read_bytes(), [errno.EOPNOTSUPP, errno.EINTR, errno.ENOSYS, errno.EIO]

    def refuse(fd: int, mode: int, offset: int, length: int) -> int:
        ctypes.set_errno(codes.pop(0))
        return -1

    monkeypatch.setattr(holes, "_fallocate", refuse)
    file = await BackingFile.open(image)
    await file.start_discard(0, SECTOR)
    await file.start_discard(0, SECTOR)  # interrupted, and asked again
    with pytest.raises(BlockError, match="Input/output error") as caught:
        await file.start_discard(5 * SECTOR, SECTOR)
    assert (caught.value.fault, caught.value.lba, codes) == (BlockFault.MEDIUM, 5, [])
    await file.start_discard(0, 0)
    await file.close()
    assert image.read_bytes() == before


@pytest.mark.asyncio
async def test_what_an_overlay_holds_is_saved_and_put_back(tmp_path: Path) -> None:
    """Runs of sectors, also across the bytes of the bitmap; a permanent overlay holds the same when it is opened again."""
    base = tmp_path / "base.img"
    base.write_bytes(b"b" * (SECTOR * 40_000))
    async with asyncio.timeout(20):
        file = await BackingFile.open(base, "overlay", tmp_path / "changes")
        assert await file.changes() == ()
        for first, count in ((0, 1), (5, 20), (31, 2), (39_990, 10), (1000, 4200)):
            await file.write(first * SECTOR, bytes([first % 251 + 1]) * (count * SECTOR))
        held = await file.changes()
        assert sum(len(data) for _, data in held) == SECTOR * (1 + 20 + 2 + 10 + 4200)
        before = await file.read(0, 40_000 * SECTOR)
        await file.write(7 * SECTOR, b"x" * SECTOR)
        await file.write(20_000 * SECTOR, b"y" * SECTOR)
        await file.replace_changes(held)
        assert await file.read(0, 40_000 * SECTOR) == before
        await file.close()
        file = await BackingFile.open(base, "overlay", tmp_path / "changes")
        assert await file.read(0, 40_000 * SECTOR) == before
        await file.close()
        other = tmp_path / "other.img"
        other.write_bytes(b"b" * (SECTOR * 40_000 - 1) + b"c")
        prints = []
        for path in (base, base, other):
            file = await BackingFile.open(path, "ro")
            prints.append(await file.fingerprint())
            await file.close()
        assert prints[0] == prints[1] != prints[2]
