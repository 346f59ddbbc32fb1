"""What scripted guests do again and again: set up the interrupt controllers and the timer of a PC."""

from __future__ import annotations

from avmm.cpu.script import ScriptCpu

PIT_HZ = 1193182


async def start_pic(cpu: ScriptCpu, masks: tuple[int, int] = (0, 0)) -> None:
    """Initialise both 8259As for vectors 20h-2Fh, normal EOI."""
    for port, words in ((0x20, (0x20, 0x04, 0x01)), (0xA0, (0x28, 0x02, 0x01))):
        await cpu.outb(port, 0x11)
        for word in words:
            await cpu.outb(port + 1, word)
    await cpu.outb(0x21, masks[0])
    await cpu.outb(0xA1, masks[1])


async def start_pit(cpu: ScriptCpu, hz: int) -> None:
    """Let counter 0 raise IRQ 0 ``hz`` times a second (mode 2)."""
    reload = PIT_HZ // hz
    await cpu.outb(0x43, 0x34)
    await cpu.outb(0x40, reload & 0xFF)
    await cpu.outb(0x40, reload >> 8)


async def end_of_interrupt(cpu: ScriptCpu, irq: int = 0) -> None:
    """Tell the controllers that an interrupt has been served."""
    if irq >= 8:
        await cpu.outb(0xA0, 0x20)
    await cpu.outb(0x20, 0x20)
