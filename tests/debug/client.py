"""A client of the GDB Remote Serial Protocol, for tests: packets by hand, and a few of gdb's commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import avmm
from avmm.debug.packets import Decoder, Mark, encode


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.console = ""
        self._decoder = Decoder()
        self._found: list[bytes | Mark] = []

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> bytes:
        """Return the next packet; acknowledgements are left out, console output is kept apart."""
        while True:
            while self._found:
                found = self._found.pop(0)
                if isinstance(found, bytes):
                    if found[:1] != b"O" or found == b"OK":
                        return found
                    self.console += bytes.fromhex(found[1:].decode()).decode()
            data = await self.reader.read(4096)
            if not data:
                raise EOFError
            self._found += self._decoder.feed(data)

    async def ask(self, packet: str | bytes) -> str:
        self.send(encode(packet.encode("latin-1") if isinstance(packet, str) else packet))
        return (await self.receive()).decode("latin-1")

    async def registers(self) -> dict[str, int]:
        """Return all of them by name, as target.xml orders them."""
        import re

        document, offset = "", 0
        while True:
            part = await self.ask(f"qXfer:features:read:target.xml:{offset:x},fff")
            document += part[1:]
            offset = len(document)
            if part[0] == "l":
                break
        data = bytes.fromhex(await self.ask("g"))
        values, at = {}, 0
        for name, bits in re.findall(r'<reg name="(\w+)" bitsize="(\d+)"', document):
            values[name] = int.from_bytes(data[at : at + int(bits) // 8], "little")
            at += int(bits) // 8
        assert at == len(data)
        return values


@asynccontextmanager
async def connected(vm: avmm.Vm) -> AsyncIterator[Client]:
    address = vm.gdb_servers[0].address
    if address.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        await wait_for(writer.transport.is_closing)


async def wait_for(met: object, turns: int = 20_000) -> None:
    """Give the event loop its turn until ``met()``: no time of the host's is waited for."""
    assert callable(met)
    for _ in range(turns):
        if met():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")
