"""Snapshots as files. All numbers little-endian::

    0      8  magic "AVMMSNAP"
    8      4  version, 1
    12     4  0
    16     8  length of the state
    24        the state: a Snapshot without its RAM (see avmm.control.codec)
              any number of pieces of RAM: offset (8), length (8), data; what no piece says is zero, later ones count
              ff ff ff ff ff ff ff ff
              32 bytes: SHA-256 of everything before

A file is written beside its place, synchronized and renamed, so that under a snapshot's name there is always a whole one.
The digest finds damage. It is no signature: a snapshot is as trusted as the machine it starts.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import IO, TypeVar

from avmm.control import codec
from avmm.control.snapshot import VERSION, Snapshot, SnapshotError
from avmm.hypervisor.ram import MemoryFile, RamImage

T = TypeVar("T")
MAGIC = b"AVMMSNAP"
HEAD = struct.Struct("<8sIIQ")
PIECE = struct.Struct("<QQ")
END = (1 << 64) - 1
DIGEST = 32
STATE_LIMIT = 1 << 32


async def save(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot. SnapshotError in one sentence, and no file is left, when that fails."""
    saved = {field.name: getattr(snapshot, field.name) for field in fields(Snapshot) if field.name != "ram"}
    try:
        state = codec.encode(saved | {"memory": snapshot.ram.size})
    except codec.CodecError as error:
        raise SnapshotError(f"the snapshot of {snapshot.config.name} cannot be a file: {error}") from None
    await _in_thread(lambda: _write(path, state, snapshot.ram))


async def load(path: Path) -> Snapshot:
    """Read a snapshot. SnapshotError in one sentence for a file that is none, or not whole."""
    return await _in_thread(lambda: _read(path))


async def _in_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1, "avmm-snapshot") as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, work)


def _write(path: Path, state: bytes, ram: RamImage) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with open(beside, "xb") as file:
                _fill(file, state, ram)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            _sync_folder(path.parent)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SnapshotError(f"cannot write the snapshot {path}: {error.strerror}; nothing of it was left") from None


def _fill(file: IO[bytes], state: bytes, ram: RamImage) -> None:
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    put(HEAD.pack(MAGIC, VERSION, 0, len(state)))
    put(state)
    for offset, data in ram.runs():
        put(PIECE.pack(offset, len(data)))
        put(data)
    put(END.to_bytes(8, "little"))
    file.write(digest.digest())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: Path) -> Snapshot:
    try:
        with open(path, "rb") as file:
            return _Reader(path, file).snapshot()
    except OSError as error:
        raise SnapshotError(f"cannot read the snapshot {path}: {error.strerror}") from None


class _Reader:
    """One file on its way in."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._digest = hashlib.sha256()

    def snapshot(self) -> Snapshot:
        """Return it, checked."""
        head = self._file.read(HEAD.size)
        if head[: len(MAGIC)] != MAGIC[: len(head)] or not head:
            raise SnapshotError(f"{self._path} is not a snapshot of avmm")
        if len(head) < HEAD.size:
            raise self._short()
        _, version, _, length = HEAD.unpack(head)
        if version != VERSION:
            raise SnapshotError(f"{self._path} is a snapshot of version {version}, and this avmm reads version {VERSION}")
        if length > STATE_LIMIT:
            raise self._damaged()
        self._digest.update(head)
        state = self._take(length)
        ram = self._memory()
        if self._file.read(1):
            raise self._damaged()
        return self._made(state, ram)

    def _take(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise self._short()
        self._digest.update(data)
        return data

    def _memory(self) -> list[tuple[int, bytes]]:
        pieces = []
        while (offset := int.from_bytes(self._take(8), "little")) != END:
            length = int.from_bytes(self._take(8), "little")
            if length > STATE_LIMIT:
                raise self._damaged()
            pieces.append((offset, self._take(length)))
        digest = self._file.read(DIGEST)
        if len(digest) < DIGEST:
            raise self._short()
        if digest != self._digest.digest():
            raise self._damaged()
        return pieces

    def _made(self, state: bytes, pieces: list[tuple[int, bytes]]) -> Snapshot:
        """Make a snapshot of what is whole; whether its values make sense is for the machine to say."""
        try:
            saved = codec.decode(state)
            memory = MemoryFile(saved.pop("memory"))
            for offset, data in pieces:
                if offset + len(data) > memory.size:
                    raise codec.CodecError("there is more RAM in it than the machine has")
                memory.write(offset, data)
            return Snapshot(ram=RamImage(memory), **saved)
        except (codec.CodecError, TypeError, AttributeError, KeyError) as error:
            raise SnapshotError(f"{self._path} cannot be used by this avmm: {error}") from None

    def _short(self) -> SnapshotError:
        return SnapshotError(f"the snapshot {self._path} has been cut short")

    def _damaged(self) -> SnapshotError:
        return SnapshotError(f"the snapshot {self._path} is damaged")
