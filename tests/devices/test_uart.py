"""The 16550A by its data sheet, and by what Linux' 8250 driver does to find out what it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avmm.devices.uart import GAP, Uart
from tests.devices.bench import Bench

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7


class Port:
    """A port with the registers by number."""

    def __init__(self, **options):
        self.bench = Bench()
        self.uart = Uart(self.bench, **options)
        self.sent = bytearray()
        self.uart.on_output = self.sent.append
        self.line = self.bench.line(4)

    def get(self, register):
        return self.bench.read(self.uart, 0x3F8 + register)

    def put(self, register, value):
        self.bench.write(self.uart, 0x3F8 + register, value)

    def open(self, fcr=0x01, ier=0x01, divisor=1):
        """8N1 as a driver sets it up."""
        self.put(LCR, 0x83)
        self.put(DLL, divisor & 0xFF)
        self.put(DLM, divisor >> 8)
        self.put(LCR, 0x03)
        self.put(FCR, fcr)
        self.put(MCR, 0x0B)
        self.put(IER, ier)

    def drain(self):
        out = bytearray()
        while self.get(LSR) & 1:
            out.append(self.get(RBR))
        return bytes(out)


@pytest.fixture
def port():
    return Port()


def test_reset_values(port):
    assert [port.get(r) for r in (IER, IIR, LCR, MCR, LSR, MSR, SCR)] == [0, 1, 0, 0, 0x60, 0xB0, 0]
    assert port.uart.ports[0].first == 0x3F8
    assert port.uart.ports[0].count == 8


def test_latches(port):
    port.put(LCR, 0x83)
    port.put(DLL, 0x34)
    port.put(DLM, 0x12)
    assert (port.get(DLL), port.get(DLM), port.uart.divisor) == (0x34, 0x12, 0x1234)
    port.put(LCR, 0x03)
    assert port.get(IER) == 0
    port.put(SCR, 0xA5)
    port.put(IER, 0xFF)
    port.put(MCR, 0xFF)
    assert (port.get(SCR), port.get(IER), port.get(MCR), port.get(LCR)) == (0xA5, 0x0F, 0x1F, 0x03)
    assert port.sent == b""


def test_bytes_are_out_at_once(port):
    port.open(ier=0)
    for byte in b"Linux version\n":
        assert port.get(LSR) & 0x60 == 0x60
        port.put(THR, byte)
    assert port.sent == b"Linux version\n"
    assert not port.line.level


def test_transmitter_empty_interrupt(port):
    port.open(ier=0)
    port.put(IER, 2)
    assert port.line.level
    assert port.get(IIR) == 0xC2
    assert not port.line.level
    assert port.get(IIR) == 0xC1
    edges = port.line.edges
    port.put(THR, 0x41)
    assert port.line.level
    port.put(THR, 0x42)  # without reading IIR: the write lowers the pin too
    assert port.line.edges == edges + 2
    port.put(IER, 0)
    assert not port.line.level
    port.put(IER, 2)
    assert port.line.level


def test_out2_gates_the_line(port):
    port.open(ier=2)
    assert port.line.level
    port.put(MCR, 0x03)
    assert not port.line.level
    assert port.get(IIR) == 0xC2


@pytest.mark.parametrize(("code", "trigger"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_level(port, code, trigger):
    port.open(fcr=code << 6 | 1)
    port.uart.receive(bytes(trigger - 1))
    assert not port.line.level
    port.uart.receive(b"!")
    assert port.line.level
    assert port.get(IIR) == 0xC4
    port.get(RBR)
    assert not port.line.level


def test_character_timeout(port):
    port.open(fcr=0xC1, divisor=12)  # 9600 baud, ten bits: 1.04 ms a character
    port.uart.receive(b"ab")
    port.bench.pass_time(4_100_000)
    assert not port.line.level
    port.uart.receive(b"c")  # starts the time anew
    port.bench.pass_time(4_100_000)
    assert not port.line.level
    port.bench.pass_time(100_000)
    assert port.line.level
    assert port.get(IIR) == 0xCC
    assert port.get(RBR) == ord("a")
    assert not port.line.level
    port.bench.pass_time(4_300_000)
    assert port.line.level
    assert port.drain() == b"bc"
    assert not port.line.level
    port.bench.pass_time(10_000_000)
    assert port.get(IIR) == 0xC1


@pytest.mark.parametrize("fcr", [0x00, 0x01, 0x41, 0x81, 0xC1])
@pytest.mark.parametrize("paced", [False, True])
def test_any_amount_reaches_an_interrupt_driven_reader(fcr, paced):
    """The handler runs on rising edges only, as behind an edge-triggered 8259."""
    port = Port(paced=paced)
    port.open(fcr=fcr)
    text = bytes(range(256)) * 3
    got = bytearray()
    port.line.connect(lambda level: level and got.extend(port.drain()))
    port.uart.receive(text)
    port.bench.pass_time(1_000_000_000)
    assert bytes(got) == text
    assert port.uart.idle
    assert port.uart.queued == 0


def test_without_fifo_one_edge_a_byte(port):
    port.open(fcr=0)
    port.uart.receive(b"xyz")
    assert port.uart.queued == 2
    for count, char in enumerate(b"xyz", 1):
        assert port.line.edges == count
        assert port.get(IIR) == 0x04
        assert port.get(RBR) == char
        assert not port.line.level
        port.bench.pass_time(GAP)
    assert port.get(RBR) == ord("z")


def test_a_full_fifo_waits_but_a_wire_overruns():
    port = Port()
    port.open(ier=5)
    port.uart.receive(bytes(40))
    assert (port.uart.queued, port.get(LSR)) == (24, 0x61)
    wire = Port(overrun=True)
    wire.open(ier=5)
    wire.uart.receive(bytes(range(17)))
    assert wire.get(IIR) == 0xC6
    assert wire.get(LSR) == 0x63
    assert wire.get(LSR) == 0x61
    assert wire.get(IIR) == 0xC4
    assert wire.drain() == bytes(range(16))


def test_break_is_a_line_status_interrupt(port):
    port.open(ier=5)
    port.uart.receive(b"a")
    port.uart.receive_break()
    assert port.get(IIR) == 0xC4  # the mark belongs to the second character
    assert port.get(LSR) == 0xE1
    port.get(RBR)
    assert port.get(IIR) == 0xC6
    assert port.get(LSR) == 0xF9
    assert port.get(IIR) == 0xC4
    assert port.get(LSR) == 0x61
    assert port.get(RBR) == 0


def test_priority_of_causes(port):
    port.open(ier=0x0F)
    port.uart.set_modem(cts=False)
    port.uart.receive_break()
    seen = []
    for clear in (LSR, RBR, IIR, MSR):
        seen.append(port.get(IIR))
        if clear != IIR:
            port.get(clear)
    assert seen == [0xC6, 0xC4, 0xC2, 0xC0]
    assert port.get(IIR) == 0xC1
    assert not port.line.level


def test_modem_status_changes(port):
    port.open(ier=8)
    port.uart.set_modem(dcd=False, ri=True)
    assert port.line.level
    assert port.get(MSR) == 0x78  # no delta for the ring's leading edge
    assert not port.line.level
    port.uart.set_modem(ri=False)
    assert port.get(MSR) == 0x34
    assert port.get(MSR) == 0x30


def test_fifo_reset(port):
    port.open(ier=1)
    port.uart.receive(b"abc")
    port.put(FCR, 0x03)
    assert port.get(LSR) == 0x60
    assert not port.line.level
    port.uart.receive(b"d")
    port.put(FCR, 0x00)
    assert port.get(IIR) == 0x01
    assert port.get(LSR) == 0x60


def test_loopback(port):
    port.open(ier=0)
    port.put(MCR, 0x1A)  # Linux: LOOP, OUT2, RTS
    assert port.get(MSR) & 0xF0 == 0x90
    port.put(MCR, 0x15)
    assert port.get(MSR) & 0xF0 == 0x60
    port.put(THR, 0xAE)
    assert port.get(LSR) & 1
    assert port.get(RBR) == 0xAE
    assert port.sent == b""
    port.uart.receive(b"later")
    assert port.get(LSR) & 1 == 0
    port.put(LCR, 0x43)
    assert port.get(LSR) & 0x11 == 0x11
    port.get(RBR)
    port.put(MCR, 0x0B)
    port.bench.pass_time(GAP)
    assert port.drain() == b"later"
    for count in range(17):
        port.put(MCR, 0x10)
        port.put(THR, count)
    assert port.get(LSR) & 2


def test_linux_autoconfig(port):
    """drivers/tty/serial/8250: a still 16550A, not one of its faster successors, and no known bug."""
    port.put(IER, 0)
    assert port.get(IER) & 0x0F == 0
    port.put(IER, 0x0F)
    assert port.get(IER) & 0x0F == 0x0F
    port.put(IER, 0)
    port.put(LCR, 0xBF)
    port.put(2, 0)
    port.put(LCR, 0)
    port.put(FCR, 1)
    assert port.get(IIR) >> 6 == 3  # 16550A
    port.put(LCR, 0x80)
    assert port.get(2) != 0  # no EFR: not a 16650
    port.put(LCR, 0xBF)
    assert port.get(2) != 0
    port.put(LCR, 0)
    port.put(FCR, 0x21)
    assert port.get(IIR) >> 5 == 6
    port.put(LCR, 0x80)
    port.put(FCR, 0x21)
    assert port.get(IIR) >> 5 == 6  # not 7: no 64-byte FIFO
    port.put(LCR, 0)
    port.put(IER, 0x40)
    assert port.get(IER) == 0  # no UUE: not an XScale
    port.put(FCR, 1)
    port.put(MCR, 0x10)  # how many bytes fit
    port.put(LCR, 3)
    for count in range(256):
        port.put(THR, count)
    assert len(port.drain()) == 16
    port.put(MCR, 0x0B)
    port.put(IER, 2)
    first = port.get(IIR)
    port.put(IER, 0)
    port.put(IER, 2)
    assert (first, port.get(IIR)) == (0xC2, 0xC2)  # neither UART_BUG_TXEN nor UART_BUG_THRE
    assert port.sent == b""


def test_paced_output():
    port = Port(paced=True)
    port.open(ier=2, divisor=12)
    assert port.line.level
    for byte in b"hello":
        port.put(THR, byte)
    assert not port.line.level  # filling the FIFO answers the interrupt, without a look at IIR
    assert port.get(LSR) & 0x60 == 0
    port.bench.pass_time(1_050_000)
    assert port.sent == b"h"
    port.bench.pass_time(3_150_000)
    assert port.sent == b"hell"
    assert port.get(LSR) & 0x60 == 0x20
    assert port.line.level
    port.bench.pass_time(1_050_000)
    assert port.sent == b"hello"
    assert port.get(LSR) & 0x60 == 0x60
    for byte in range(30):
        port.put(THR, byte)
    port.bench.pass_time(1_000_000_000)
    assert len(port.sent) == 5 + 17  # FIFO and shift register; the rest was written into a full FIFO
    assert port.uart.idle


@pytest.mark.parametrize("paced", [False, True])
def test_save_and_restore_in_the_middle(paced):
    port = Port(paced=paced)
    port.open(fcr=0x81, ier=0x0F, divisor=3)
    port.uart.receive(bytes(range(50)))
    port.uart.set_modem(dsr=False)
    for byte in b"out":
        port.put(THR, byte)
    port.get(RBR)
    port.bench.pass_time(50_000)
    twin = Port(paced=paced)
    twin.bench.time = port.bench.time
    state = port.uart.save()
    twin.uart.restore(state)
    assert twin.uart.save() == state
    twin.sent[:] = port.sent
    for _ in range(60):
        for one in (port, twin):
            one.bench.pass_time(170_000)
        assert [port.get(r) for r in (IIR, LSR, RBR, MSR)] == [twin.get(r) for r in (IIR, LSR, RBR, MSR)]
        assert port.line.level == twin.line.level
        assert port.uart.save() == twin.uart.save()
    assert port.sent == twin.sent == b"out"
    with pytest.raises(ValueError, match="serial port"):
        twin.uart.restore(None)


def test_reset(port):
    port.open(ier=3)
    port.uart.receive(bytes(20))
    port.uart.reset()
    assert not port.line.level
    port.bench.pass_time(1_000_000_000)
    assert [port.get(r) for r in (IER, IIR, LCR, MCR, LSR, MSR)] == [0, 1, 0, 0, 0x60, 0xB0]


traffic = st.one_of(
    st.tuples(st.just("get"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("put"), st.integers(0, 7), st.integers(0, 255)),
    st.tuples(st.just("rx"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("time"), st.integers(0, 50_000_000), st.just(0)),
    st.tuples(st.just("modem"), st.booleans(), st.booleans()),
    st.tuples(st.just("break"), st.just(0), st.just(0)),
)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.lists(traffic, max_size=60), st.booleans(), st.booleans())
def test_random_traffic_never_raises(steps, paced, overrun):
    port = Port(paced=paced, overrun=overrun)
    for what, a, b in steps:
        match what:
            case "get":
                port.get(a)
            case "put":
                port.put(a, b)
            case "rx":
                port.uart.receive(bytes(a))
            case "time":
                port.bench.pass_time(a)
            case "modem":
                port.uart.set_modem(cts=a, ri=b)
            case _:
                port.uart.receive_break()
        assert len(port.uart._rx) <= 16
        assert len(port.uart._tx) <= 16
        assert port.line.level == (port.uart.mcr & 8 != 0 and port.uart._cause() != 1)
    twin = Port(paced=paced, overrun=overrun)
    twin.uart.restore(port.uart.save())
    assert twin.uart.save() == port.uart.save()
