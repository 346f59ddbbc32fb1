"""The BIOS ROM image: 64 KiB at F0000h whose stubs hand every service to the VMM through one private port.

A stub is a few bytes of real-mode code around ``OUT PRIVATE_PORT, AL``. Which service was meant is told by the address
of that OUT (:data:`CALLS`), so that no register and no flag of the caller is touched on the way. The stubs, not the VMM,
do what must be guest code: waiting with interrupts enabled (STI; HLT), calling user vectors (1Ch, 1Bh, 4Ah, 15h/4Fh) and
IRET. A service asks its stub to wait by setting bit 15 of the stacked FLAGS, a bit that is always 0 in real mode: the
request lives on the caller's stack, hence nested calls cannot disturb each other and a snapshot needs no extra state.

Compatibility addresses (reset F000:FFF0, POST F000:E05B, configuration table E6F5, diskette parameters EFC7, font FA6E,
IRET FF53, date FFF5, model FFFE) are those of the IBM PC/AT Technical Reference, appendix "ROM BIOS".

The invariant: everything lies at E000h and above; F0000-FDFFF is left free for tables (ACPI, SMBIOS, $PIR).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

PRIVATE_PORT = 0xE5
"""Decoded by nothing on a PC (the 8259 aliases end at BFh, the coprocessor begins at F0h)."""

ROM_SEGMENT = 0xF000
ROM_SIZE = 0x10000
POST = 0xE05B
CONFIG_TABLE = 0xE6F5
DISKETTE_TABLE = 0xEFC7
FONT_8X8 = 0xFA6E
IRET_STUB = 0xFF53
HALT_STUB = 0xFF40
RESET_VECTOR = 0xFFF0
BIOS_DATE = 0xFFF5
MODEL_BYTE = 0xFFFE
_CODE = 0xE100

MOUSE_HANDLER = 0x22
"""Offset in the EBDA of the far pointer to the pointing device handler (int 15h AX=C207h)."""


class Service(enum.Enum):
    """What a stub's OUT asks of the VMM."""

    POST = enum.auto()
    TIMER = enum.auto()  # IRQ 0, before int 1Ch
    TIMER_EOI = enum.auto()  # ... and after it
    KEYBOARD_IRQ = enum.auto()  # IRQ 1: AL = scan code; the answer in AL is the vector to call (1Bh, 05h) or 0
    KEYBOARD_PAUSED = enum.auto()  # AL = 1 while the Pause state lasts
    HARDWARE = enum.auto()  # an interrupt nobody took
    DISKETTE_IRQ = enum.auto()
    RTC_IRQ = enum.auto()  # AL = 1 when the alarm wants int 4Ah
    MOUSE_IRQ = enum.auto()  # AL = 1 with BX, CX, DX = status, x, y for the handler at DS:0022
    FPU_IRQ = enum.auto()
    FIXED_DISK_IRQ = enum.auto()
    VIDEO = enum.auto()
    EQUIPMENT = enum.auto()
    MEMORY_SIZE = enum.auto()
    DISK = enum.auto()
    SERIAL = enum.auto()
    SERIAL_WAIT = enum.auto()
    SYSTEM = enum.auto()
    SYSTEM_WAIT = enum.auto()  # the int 15h stub asks whether its wait is over
    KEYBOARD = enum.auto()
    PRINTER = enum.auto()
    BOOT_NEXT = enum.auto()  # int 18h
    BOOT = enum.auto()  # int 19h
    CLOCK = enum.auto()


@dataclass(slots=True)
class _Assembler:
    """Bytes going into the image, with 8-bit forward and backward jumps and a note of every service call."""

    image: bytearray = field(default_factory=lambda: bytearray(ROM_SIZE))
    position: int = _CODE
    calls: dict[int, Service] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    jumps: list[tuple[int, str]] = field(default_factory=list)

    def code(self, text: str) -> None:
        """Append machine code given as hexadecimal."""
        data = bytes.fromhex(text)
        self.image[self.position : self.position + len(data)] = data
        self.position += len(data)

    def call(self, service: Service) -> None:
        """OUT PRIVATE_PORT, AL. Processors report IP before or after the OUT in a port exit: both name the service."""
        self.calls[self.position] = self.calls[self.position + 2] = service
        self.code(f"E6 {PRIVATE_PORT:02X}")

    def label(self, name: str) -> None:
        """Name this place for :meth:`jump`."""
        self.labels[name] = self.position

    def jump(self, opcode: str, target: str) -> None:
        """A short jump, conditional or not, to a label of the same routine."""
        self.code(opcode + " 00")
        self.jumps.append((self.position, target))

    def routine(self, address: int | None = None) -> int:
        """Begin a routine at ``address``, or at the next free multiple of 16; labels start afresh."""
        self.finish()
        self.position = address if address is not None else (self.position + 15) & ~15
        return self.position

    def finish(self) -> None:
        """Resolve the jumps of the routine that ends here."""
        for after, target in self.jumps:
            self.image[after - 1] = (self.labels[target] - after) & 0xFF
        self.jumps.clear()
        self.labels.clear()


_TEST_WAIT = "55 89 E5 F6 46 07 80 5D"
"""push bp; mov bp,sp; test byte [bp+7],80h; pop bp -- bit 15 of the FLAGS that INT pushed: the service wants to wait."""


def _simple(asm: _Assembler, service: Service) -> int:
    address = asm.routine()
    asm.call(service)
    asm.code("CF")  # iret
    return address


def _post(asm: _Assembler) -> None:
    asm.routine(POST)
    asm.code("FA FC 31 C0 8E D0 BC 00 7C")  # cli; cld; xor ax,ax; mov ss,ax; mov sp,7C00h
    asm.call(Service.POST)
    asm.code("84 C0")  # test al,al: nonzero after a shutdown request (CMOS 0Fh = 05h or 0Ah)
    asm.jump("75", "resume")
    asm.code("FB CD 19")  # sti; int 19h
    asm.label("hang")
    asm.code("F4")  # hlt
    asm.jump("EB", "hang")
    asm.label("resume")
    asm.code("31 C0 8E D8 FF 2E 67 04")  # xor ax,ax; mov ds,ax; jmp far [0467h]


def _timer(asm: _Assembler) -> int:
    """IRQ 0. User code on 1Ch may use AX, DX and DS and finds DS = 40h, as with the AT BIOS."""
    address = asm.routine()
    asm.code("1E 52 50")  # push ds; push dx; push ax
    asm.call(Service.TIMER)
    asm.code("B8 40 00 8E D8 CD 1C FA")  # mov ax,40h; mov ds,ax; int 1Ch; cli
    asm.call(Service.TIMER_EOI)
    asm.code("58 5A 1F CF")  # pop ax; pop dx; pop ds; iret
    return address


def _keyboard_irq(asm: _Assembler) -> int:
    """IRQ 1. The scan code goes through int 15h AH=4Fh, which may change or drop it (DOS KEYB)."""
    address = asm.routine()
    asm.code("50 E4 60 B4 4F F9 CD 15")  # push ax; in al,60h; mov ah,4Fh; stc; int 15h
    asm.code("B4 00")  # mov ah,0: no vector to call when dropped (mov leaves CF)
    asm.jump("73", "eoi")  # jnc
    asm.call(Service.KEYBOARD_IRQ)
    asm.code("88 C4")  # mov ah,al
    asm.label("eoi")
    asm.code("FA B0 20 E6 20")  # cli; mov al,20h; out 20h,al
    asm.code("80 FC 1B")  # cmp ah,1Bh
    asm.jump("75", "print")
    asm.code("FB CD 1B")  # sti; int 1Bh
    asm.label("print")
    asm.code("80 FC 05")  # cmp ah,5
    asm.jump("75", "pause")
    asm.code("FB CD 05")  # sti; int 5
    asm.label("pause")
    asm.code("80 FC FF")  # cmp ah,FFh
    asm.jump("75", "done")
    asm.label("paused")
    asm.code("FB F4 FA")  # sti; hlt; cli
    asm.call(Service.KEYBOARD_PAUSED)
    asm.code("84 C0")  # test al,al
    asm.jump("75", "paused")
    asm.label("done")
    asm.code("58 CF")  # pop ax; iret
    return address


def _rtc_irq(asm: _Assembler) -> int:
    address = asm.routine()
    asm.code("50")  # push ax
    asm.call(Service.RTC_IRQ)
    asm.code("84 C0")  # test al,al
    asm.jump("74", "done")
    asm.code("FB CD 4A")  # sti; int 4Ah
    asm.label("done")
    asm.code("58 CF")  # pop ax; iret
    return address


def _mouse_irq(asm: _Assembler) -> int:
    """IRQ 12. A complete packet is passed to the far handler as four words on the stack, IBM PS/2 int 15h AX=C207h."""
    address = asm.routine()
    asm.code("60 1E 06")  # pusha; push ds; push es
    asm.call(Service.MOUSE_IRQ)
    asm.code("84 C0")  # test al,al
    asm.jump("74", "done")
    asm.code("53 51 52 6A 00 FB")  # push bx; push cx; push dx; push 0; sti
    asm.code(f"FF 1E {MOUSE_HANDLER:02X} 00 83 C4 08")  # call far [0022h]; add sp,8
    asm.label("done")
    asm.code("FA 07 1F 61 CF")  # cli; pop es; pop ds; popa; iret
    return address


def _waiting(asm: _Assembler, first: Service, again: Service, last: str, pause: str = "FB F4 FA") -> int:
    """A service that may wait: sti; hlt; cli -- interrupts come in with no gap in which the awaited one could be missed."""
    address = asm.routine()
    asm.call(first)
    asm.label("test")
    asm.code(_TEST_WAIT)
    asm.jump("74", "done")
    asm.code(pause)
    asm.call(again)
    asm.jump("EB", "test")
    asm.label("done")
    asm.code(last)
    return address


def _boot(asm: _Assembler) -> tuple[int, int]:
    """Int 18h and 19h: a fresh stack with the frame of an IRET to 0000:7C00, which the VMM redirects if it must."""
    entries = []
    for service in (Service.BOOT_NEXT, Service.BOOT):
        entries.append(asm.routine())
        asm.code("FC 31 C0 8E D8 8E C0 8E D0 BC 00 7C")  # cld; xor ax,ax; mov ds/es/ss,ax; mov sp,7C00h
        asm.code("68 02 02 50 68 00 7C")  # push 0202h (flags); push ax; push 7C00h
        asm.call(service)
        asm.code("CF")  # iret
    return entries[0], entries[1]


def _build() -> tuple[bytes, dict[int, Service], dict[int, int]]:
    asm = _Assembler()
    vectors = dict.fromkeys(range(0x100), IRET_STUB)
    hardware = _simple(asm, Service.HARDWARE)
    for number in (*range(0x08, 0x10), *range(0x70, 0x78)):
        vectors[number] = hardware
    for number, service in {
        0x0E: Service.DISKETTE_IRQ,
        0x10: Service.VIDEO,
        0x11: Service.EQUIPMENT,
        0x12: Service.MEMORY_SIZE,
        0x17: Service.PRINTER,
        0x1A: Service.CLOCK,
        0x76: Service.FIXED_DISK_IRQ,
    }.items():
        vectors[number] = _simple(asm, service)
    vectors[0x08] = _timer(asm)
    vectors[0x09] = _keyboard_irq(asm)
    vectors[0x13] = vectors[0x40] = asm.routine()
    asm.code("FB")  # sti: interrupts go on when the VMM is not at work
    asm.call(Service.DISK)
    asm.code("CF")
    # sti; nop; cli: the UART is polled, as no interrupt would end a HLT in time
    vectors[0x14] = _waiting(asm, Service.SERIAL, Service.SERIAL_WAIT, "CF", "FB 90 FA")
    vectors[0x15] = _waiting(asm, Service.SYSTEM, Service.SYSTEM_WAIT, "CF")
    # sti; nop; iret: a caller that polls with interrupts off still lets a key in, as with the AT BIOS
    vectors[0x16] = _waiting(asm, Service.KEYBOARD, Service.KEYBOARD, "FB 90 CF")
    vectors[0x18], vectors[0x19] = _boot(asm)
    vectors[0x70] = _rtc_irq(asm)
    vectors[0x71] = asm.routine()
    asm.code("50 B0 20 E6 A0 58 CD 0A CF")  # IRQ 9: push ax; mov al,20h; out A0h,al; pop ax; int 0Ah; iret
    vectors[0x74] = _mouse_irq(asm)
    vectors[0x75] = asm.routine()
    asm.call(Service.FPU_IRQ)
    asm.code("CD 02 CF")  # int 2; iret
    for number in range(0x60, 0x67):
        vectors[number] = 0  # user vectors: programs look for 0000:0000
    if asm.position > CONFIG_TABLE:
        raise AssertionError("the stubs have outgrown their room")
    _post(asm)
    asm.routine(HALT_STUB)
    asm.code("FB F4 EB FC")  # sti; hlt; jmp $-2
    asm.routine(IRET_STUB)
    asm.code("CF")
    asm.routine(RESET_VECTOR)
    asm.code(f"EA {POST & 0xFF:02X} {POST >> 8:02X} 00 F0")  # jmp F000:E05B
    asm.finish()
    _tables(asm.image)
    return bytes(asm.image), asm.calls, vectors


def _tables(image: bytearray) -> None:
    def put(offset: int, data: bytes) -> None:
        image[offset : offset + len(data)] = data

    put(0xE000, b"AVMM BIOS services")
    # int 15h AH=C0h: length 8, model FC, submodel 01 (AT), revision 0; feature byte 1: second 8259 (40h), RTC (20h),
    # int 15h/4Fh is called (10h), EBDA allocated (04h)
    put(CONFIG_TABLE, bytes((8, 0, 0xFC, 0x01, 0x00, 0x74, 0, 0, 0, 0)))
    put(DISKETTE_TABLE, diskette_table(18, 80))
    put(BIOS_DATE, b"06/23/99")
    image[MODEL_BYTE] = 0xFC
    image[0xFFFF] = -sum(image[:0xFFFF]) & 0xFF


def diskette_table(sectors: int, tracks: int) -> bytes:
    """The diskette parameter table of int 1Eh, 11 bytes of the AT and 3 of later BIOSes, for 512-byte sectors."""
    gap, format_gap, rate = (0x1B, 0x6C, 0x00) if sectors >= 18 else (0x2A, 0x50, 0x80)
    return bytes((0xAF, 0x02, 0x25, 0x02, sectors, gap, 0xFF, format_gap, 0xF6, 0x0F, 0x08, tracks - 1, rate, 4))


ROM_IMAGE, CALLS, VECTORS = _build()
"""The image; the service of each IP seen in a private port exit; the offset in F000h of each vector (0: the vector is null)."""


def rom_image(font_8x8: bytes = b"") -> bytes:
    """Return the 64 KiB image for F0000h, with the 8x8 font of characters 0-127 at its place (int 43h) if given."""
    if len(font_8x8) not in (0, 1024):
        raise ValueError(f"an 8x8 font of 128 characters has 1024 bytes, not {len(font_8x8)}")
    image = bytearray(ROM_IMAGE)
    if font_8x8:
        image[FONT_8X8 : FONT_8X8 + 1024] = font_8x8
        image[0xFFFF] = -sum(image[:0xFFFF]) & 0xFF
    return bytes(image)
