"""A keyboard controller on a bench, with a driver's primitives."""

from __future__ import annotations

from avmm.devices.i8042 import I8042
from avmm.devices.keys import for_text
from tests.devices.bench import Bench

MS = 1_000_000


class Pc:
    """The controller with a driver's primitives."""

    def __init__(self, **options):
        self.bench = Bench()
        self.kbc = I8042(self.bench, **options)
        self.irq1, self.irq12 = self.bench.line(1), self.bench.line(12)

    def status(self):
        return self.bench.read(self.kbc, 0x64)

    def data(self):
        return self.bench.read(self.kbc, 0x60)

    def command(self, value, *operands):
        self.bench.write(self.kbc, 0x64, value)
        for operand in operands:
            self.bench.write(self.kbc, 0x60, operand)

    def poll(self):
        """Wait for a byte; None when there is none for a millisecond."""
        for _ in range(100):
            if self.status() & 1:
                return self.data()
            self.bench.pass_time(10_000)
        return None

    def drain(self):
        out = bytearray()
        while (byte := self.poll()) is not None:
            out.append(byte)
        return bytes(out)

    def ask(self, value):
        self.command(value)
        return self.poll()

    def keyboard(self, *values):
        """Send bytes to the keyboard, waiting for what each one brings."""
        out = b""
        for value in values:
            self.bench.write(self.kbc, 0x60, value)
            out += self.drain()
        return out

    def mouse(self, *values):
        out = b""
        for value in values:
            self.command(0xD4, value)
            out += self.drain()
        return out

    def raw(self):
        """No translation, both interfaces and interrupts on."""
        self.command(0x60, 0x03)

    def type(self, text):
        for key, down in for_text(text):
            assert (self.kbc.press if down else self.kbc.release)(key)

    def awake(self, ident=0):
        """Knock for a kind of mouse, as psmouse does, and enable it. No translation, both interrupts."""
        self.raw()
        knock = {0: (), 3: (200, 100, 80), 4: (200, 200, 80)}[ident]
        for rate in (*knock, 100):
            assert self.mouse(0xF3, rate) == b"\xfa\xfa"
        assert self.mouse(0xF2) == bytes([0xFA, ident])
        assert self.mouse(0xF4) == b"\xfa"
        self.bench.pass_time(100 * MS)
