"""What the power-on self-test leaves in the hardware: 8259, 8254, i8042, DMA and real-time clock as an AT BIOS programs them.

IBM PC/AT Technical Reference, "ROM BIOS", TEST1-TEST3. The invariant: every device is set by its registers, through the bus,
so that an emulated and an interposed device see the same.
"""

from __future__ import annotations

from avmm.boot.bios import cmos
from avmm.boot.bios.caller import PortAccess
from avmm.boot.bios.cmos import Cmos

_SEQUENCE: tuple[tuple[int, int], ...] = (
    # 8259s: ICW1 edge, cascade, ICW4; bases 08h and 70h; slave on input 2; 8086 mode
    (0x20, 0x11),
    (0x21, 0x08),
    (0x21, 0x04),
    (0x21, 0x01),
    (0xA0, 0x11),
    (0xA1, 0x70),
    (0xA1, 0x02),
    (0xA1, 0x01),
    (0x21, 0xB8),  # timer, keyboard, cascade, diskette
    (0xA1, 0x9F),  # coprocessor, fixed disk
    # 8254: channel 0 square wave with 65536 counts (18.2 Hz), channel 1 refresh, channel 2 the speaker's
    (0x43, 0x36),
    (0x40, 0x00),
    (0x40, 0x00),
    (0x43, 0x54),
    (0x41, 0x12),
    (0x43, 0xB6),
    (0x42, 0x33),
    (0x42, 0x05),
    # 8237s: cascade mode on channel 4, unmasked
    (0xD6, 0xC0),
    (0xD4, 0x00),
    # i8042: IRQ 1, translation to set 1, system flag; the auxiliary port off until int 15h C200h; keyboard on
    (0x64, 0x60),
    (0x60, 0x65),
    (0x64, 0xAE),
)


def initialize_hardware(ports: PortAccess) -> None:
    """Program the chips as POST does, and throw away what the keyboard controller still holds."""
    for port, value in _SEQUENCE:
        ports.write(port, 1, value)
    for _ in range(32):
        if not ports.read(0x64, 1) & 1:
            break
        ports.read(0x60, 1)
    rtc = Cmos(ports)
    rtc[cmos.REGISTER_A] = 0x26
    rtc.change(cmos.REGISTER_B, cmos.SET | cmos.PIE | cmos.AIE | 0x10 | 0x08 | cmos.DM, cmos.HOURS_24)
    rtc[cmos.REGISTER_C]  # reading clears what is pending


def end_of_interrupt(ports: PortAccess) -> int | None:
    """End the interrupt in service, if there is one, on the 8259s; return its number, None for a spurious one."""
    ports.write(0x20, 1, 0x0B)  # OCW3: read the ISR
    in_service = ports.read(0x20, 1)
    number = None
    if in_service:
        number = (in_service & -in_service).bit_length() - 1
        if number == 2:
            ports.write(0xA0, 1, 0x0B)
            slave = ports.read(0xA0, 1)
            if slave:
                number = 8 + (slave & -slave).bit_length() - 1
                ports.write(0xA0, 1, 0x20)
        ports.write(0x20, 1, 0x20)
    return number
