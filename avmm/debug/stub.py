"""The GDB Remote Serial Protocol, the machine's side (GDB manual, appendix E), as a state machine without I/O.

Bytes go in; packets to send gather in :meth:`Stub.output`, and what the machine is to do comes out as actions, one after
another. One thread, 1, is the one processor. As in QEMU, ``qqemu.PhyMemMode`` lets addresses be guest-physical and ``qqemu.sstep``
says whether steps show interrupts.

The invariant: each packet has one answer, in order; to one that lets the machine go on the answer is the next stop.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from avmm.debug.debugger import DebugError, Debugger, Stop
from avmm.debug.packets import PACKET_LIMIT, Decoder, Mark, encode
from avmm.debug.target import Layout, architecture_now, layout

OWNER = "gdb"
READ_LIMIT = PACKET_LIMIT // 2 - 16
SIGINT, SIGTRAP = 2, 5
ENABLE, NO_INTERRUPTS = 1, 2
KINDS = {"0": "code", "1": "code", "2": "write", "3": "read", "4": "access"}
_WATCHES = {"write": "watch", "read": "rwatch", "access": "awatch"}


class Do(enum.Enum):
    """What the machine is to do."""

    RESUME = "resume"
    STEP = "step"
    PAUSE = "pause"
    BACK_STEP = "reverse-step"
    BACK_RESUME = "reverse-continue"
    DETACH = "detach"
    KILL = "kill"
    MONITOR = "monitor"


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do: a step goes on inside ``inside`` and may show ``interrupts``; ``text`` is a monitor command."""

    do: Do
    inside: range = range(0)
    interrupts: bool = False
    text: str = ""


class Stub:
    """One connection to a gdb. ``reverse``: whether the machine can go back."""

    def __init__(self, debugger: Debugger, *, reverse: bool = False) -> None:
        self.debugger = debugger
        self.reverse = reverse
        self.running = False
        """Whether gdb waits for a stop."""
        self.physical = False
        self.interrupts = False
        self.layout: Layout | None = None
        self._decoder = Decoder()
        self._acknowledging = True
        self._out = bytearray()
        self._last = b""
        self._features: frozenset[str] = frozenset()
        self._told_of = ""

    def output(self) -> bytes:
        """Take the bytes to be sent."""
        taken = bytes(self._out)
        self._out.clear()
        return taken

    def feed(self, data: bytes) -> Iterator[Action | None]:
        """Take bytes from gdb and yield for each packet what is to be done, and its output sent, before the next is asked for."""
        for found in self._decoder.feed(data):
            if isinstance(found, bytes):
                self._acknowledge("+")
                yield self._packet(found)
            elif found is Mark.INTERRUPT:
                yield Action(Do.PAUSE)
            elif found is Mark.NAK:
                self._out += self._last
                yield None
            elif found is Mark.BROKEN:
                self._acknowledge("-")

    def _acknowledge(self, mark: str) -> None:
        if self._acknowledging:
            self._out += mark.encode()

    def _send(self, text: str | bytes) -> None:
        self._last = encode(text.encode("latin-1") if isinstance(text, str) else text)
        self._out += self._last

    # -- what the machine did

    def stopped(self, stop: Stop) -> None:
        """Tell gdb of a stop, if it waits for one."""
        if not self.running:
            return
        self.running = False
        self._send_hint(stop)
        self._send(self._stop_reply(stop))

    def _stop_reply(self, stop: Stop | None) -> str:
        if stop is None:
            return f"T{SIGTRAP:02x}thread:1;"
        if stop.cause == "ended":
            return "W00"
        if stop.cause == "begin":
            return f"T{SIGTRAP:02x}thread:1;replaylog:begin;"
        reason = ""
        if stop.point is not None and stop.cause == "watchpoint":
            reason = f"{_WATCHES[stop.point.kind]}:{stop.point.address:x};"
        elif stop.cause == "breakpoint" and "swbreak+" in self._features:
            reason = "swbreak:;"
        return f"T{SIGINT if stop.cause == 'pause' else SIGTRAP:02x}thread:1;{reason}"

    def _send_hint(self, stop: Stop) -> None:
        """Say so when the guest has left the mode whose registers this session shows."""
        if stop.cause == "ended" or self.layout is None:
            return
        now, shown = architecture_now(self.debugger.partition.processor), self.layout.architecture
        if now == "i386:x86-64" and now not in (shown, self._told_of):
            self.say(f"The guest is in long mode now, and this session shows the registers of {shown}: disconnect and connect again.\n")
        self._told_of = now

    def say(self, text: str) -> None:
        """Print text on gdb's console: only while it waits, for a stop or for a monitor command."""
        data = text.encode()
        for at in range(0, len(data), READ_LIMIT):
            self._send("O" + data[at : at + READ_LIMIT].hex())

    def monitor_done(self, text: str) -> None:
        """Answer a monitor command."""
        self.say(text)
        self._send("OK")

    def refuse(self, reason: str) -> None:
        """Answer the packet whose action could not be done."""
        self.running = False
        self._send(f"E.{reason}")

    # -- packets

    def _packet(self, data: bytes) -> Action | None:
        if self.running:
            self._send("E.the machine runs")
            return None
        try:
            answer = self._answer(data)
        except DebugError as error:
            answer = f"E.{error}"
        except (ValueError, IndexError, KeyError, OverflowError):
            answer = "E22"
        if isinstance(answer, Action):
            return answer
        self._send(answer)
        return None

    def _answer(self, data: bytes) -> str | Action:
        text = data.decode("latin-1")
        for name, handler in _NAMED.items():
            if text.startswith(name):
                return handler(self, text[len(name) :])
        letter = _LETTERS.get(text[:1])
        return letter(self, text[1:]) if letter is not None else ""

    def _go(self, action: Action) -> Action:
        self.running = True
        return action

    def _step(self, inside: range = range(0)) -> Action:
        return self._go(Action(Do.STEP, inside, self.interrupts))

    def _known_layout(self) -> Layout:
        if self.layout is None:
            self.layout = layout(architecture_now(self.debugger.partition.processor))
        return self.layout

    def _supported(self, text: str) -> str:
        self._features = frozenset(text.lstrip(":").split(";"))
        ours = f"PacketSize={PACKET_LIMIT:x};QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+"
        return ours + (";ReverseStep+;ReverseContinue+" if self.reverse else "")

    def _no_ack(self, text: str) -> str:
        self._acknowledging = self._decoder.checked = False
        return "OK"

    def _features_read(self, text: str) -> str:
        name, _, part = text.rpartition(":")
        offset, length = (int(number, 16) for number in part.split(","))
        if name != "target.xml":
            return "E00"
        if offset == 0:
            self.layout = None
        document = self._known_layout().description()
        piece = document[offset : offset + min(length, READ_LIMIT)]
        return ("m" if offset + len(piece) < len(document) else "l") + piece

    def _monitor(self, text: str) -> Action:
        return Action(Do.MONITOR, text=bytes.fromhex(text).decode(errors="replace"))

    def _thread_info(self, text: str) -> str:
        return f"CPU 0 [{self.debugger.partition.state.value}]".encode().hex()

    def _set_physical(self, text: str) -> str:
        self.physical = bool(int(text))
        return "OK"

    def _set_sstep(self, text: str) -> str:
        self.interrupts = not int(text, 16) & NO_INTERRUPTS
        return "OK"

    def _vcont(self, text: str) -> str | Action:
        kind, _, rest = text.partition(":")[0].partition(",")
        if kind[:1] in ("c", "C"):
            return self._go(Action(Do.RESUME))
        if kind[:1] in ("s", "S"):
            return self._step()
        if kind[:1] == "r":
            return self._step(range(int(kind[1:], 16), int(rest, 16)))
        return "E22" if kind[:1] != "t" else "OK"

    def _registers(self, text: str) -> str:
        known = self._known_layout()
        return b"".join(known.read(self.debugger, number) for number in range(len(known.registers))).hex()

    def _set_registers(self, text: str) -> str:
        data, at = bytes.fromhex(text), 0
        known = self._known_layout()
        for number, register in enumerate(known.registers):
            size = register.bits // 8
            if at + size > len(data):
                break
            known.write(self.debugger, number, data[at : at + size])
            at += size
        return "OK"

    def _register(self, text: str) -> str:
        return self._known_layout().read(self.debugger, _natural(text)).hex()

    def _set_register(self, text: str) -> str:
        number, _, value = text.partition("=")
        self._known_layout().write(self.debugger, _natural(number), bytes.fromhex(value))
        return "OK"

    def _memory(self, text: str) -> str:
        address, length = (_natural(number) for number in text.split(","))
        data = self.debugger.read(address, min(length, READ_LIMIT), physical=self.physical)
        return data.hex() if data or not length else "E14"

    def _set_memory(self, text: str) -> str:
        where, _, data = text.partition(":")
        return self._write(where, bytes.fromhex(data))

    def _set_memory_raw(self, text: str) -> str:
        where, _, data = text.partition(":")
        return self._write(where, data.encode("latin-1"))

    def _write(self, where: str, data: bytes) -> str:
        address, length = (_natural(number) for number in where.split(","))
        if len(data) != length:
            return "E22"
        self.debugger.write(address, data, physical=self.physical)
        return "OK"

    def _point(self, text: str) -> tuple[str, int, int, str] | None:
        kind, address, length = text.partition(";")[0].split(",")
        if kind not in KINDS:
            return None
        return KINDS[kind], _natural(address), 1 if kind in "01" else max(1, _natural(length)), OWNER

    def _insert(self, text: str) -> str:
        point = self._point(text)
        if point is None:
            return ""
        if point[2] > 4096:
            raise DebugError("at most 4096 bytes can be watched at a place")
        self.debugger.add_now(*point)
        return "OK"

    def _remove(self, text: str) -> str:
        point = self._point(text)
        if point is None:
            return ""
        self.debugger.remove_now(*point)
        return "OK"

    def _continue(self, text: str) -> Action:
        self._jump(text)
        return self._go(Action(Do.RESUME))

    def _single_step(self, text: str) -> Action:
        self._jump(text)
        return self._step()

    def _jump(self, address: str) -> None:
        if address:
            known = self._known_layout()
            number = next(n for n, register in enumerate(known.registers) if register.type == "code_ptr")
            known.write(self.debugger, number, _natural(address).to_bytes(known.registers[number].bits // 8, "little"))

    def _detach(self, text: str) -> Action:
        self._send("OK")
        return Action(Do.DETACH)

    def _kill(self, text: str) -> Action:
        if text:  # vKill is answered, k is not
            self._send("OK")
        return Action(Do.KILL)

    def _back(self, text: str) -> str | Action:
        if not self.reverse:
            return ""
        return self._go(Action(Do.BACK_STEP if text == "s" else Do.BACK_RESUME))

    def _last_stop(self, text: str) -> str:
        return self._stop_reply(self.debugger.last)


def _natural(text: str) -> int:
    value = int(text, 16)
    if value < 0:
        raise ValueError(text)
    return value


def _always(answer: str) -> Handler:
    return lambda stub, text: answer


Handler = Callable[[Stub, str], "str | Action"]
_NAMED: dict[str, Handler] = {
    "qSupported": Stub._supported,
    "QStartNoAckMode": Stub._no_ack,
    "qXfer:features:read:": Stub._features_read,
    "qRcmd,": Stub._monitor,
    "qC": _always("QC1"),
    "qfThreadInfo": _always("m1"),
    "qsThreadInfo": _always("l"),
    "qThreadExtraInfo,": Stub._thread_info,
    "qAttached": _always("1"),
    "qSymbol": _always("OK"),
    "qqemu.PhyMemMode": lambda stub, text: str(int(stub.physical)),
    "Qqemu.PhyMemMode:": Stub._set_physical,
    "qqemu.sstepbits": _always(f"ENABLE={ENABLE:x},NOIRQ={NO_INTERRUPTS:x}"),
    "qqemu.sstep": lambda stub, text: f"{ENABLE | (0 if stub.interrupts else NO_INTERRUPTS):#x}",
    "Qqemu.sstep:": Stub._set_sstep,
    "Qqemu.sstep=": Stub._set_sstep,
    "vCont?": _always("vCont;c;C;s;S;t;r"),
    "vCont;": Stub._vcont,
    "vKill": Stub._kill,
}
_LETTERS: dict[str, Handler] = {
    "?": Stub._last_stop,
    "g": Stub._registers,
    "G": Stub._set_registers,
    "p": Stub._register,
    "P": Stub._set_register,
    "m": Stub._memory,
    "M": Stub._set_memory,
    "X": Stub._set_memory_raw,
    "Z": Stub._insert,
    "z": Stub._remove,
    "c": Stub._continue,
    "C": lambda stub, text: stub._continue(text.partition(";")[2]),
    "s": Stub._single_step,
    "S": lambda stub, text: stub._single_step(text.partition(";")[2]),
    "b": Stub._back,
    "D": Stub._detach,
    "k": Stub._kill,
    "H": _always("OK"),
    "T": lambda stub, text: "OK" if text in ("1", "01") else "E01",
}
