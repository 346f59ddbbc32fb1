"""Boot sectors of our own that work the hardware themselves: video memory and registers, PIT, PIC, keyboard, speaker, protected mode."""

from __future__ import annotations

import itertools
import struct
import wave
from pathlib import Path

import pytest

from tests.vm.pc import booted

pytestmark = pytest.mark.asyncio

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


async def test_mode_13h(tmp_path: Path) -> None:
    source = """
    mov ax, 0x13
    int 0x10
    mov dx, 0x3c8           ; colour 77 is 63, 32, 16 of 63
    mov al, 77
    out dx, al
    inc dx
    mov al, 63
    out dx, al
    mov al, 32
    out dx, al
    mov al, 16
    out dx, al
    push 0xa000
    pop es
    mov di, 100 * 320 + 50  ; a bar of 20 pixels by the processor
    mov cx, 20
    mov al, 77
    rep stosb
    mov ah, 0x0c            ; a pixel by the BIOS
    mov al, 4
    mov bh, 0
    mov cx, 319
    mov dx, 199
    int 0x10
    mov ah, 0x0d            ; read from the bar
    mov cx, 60
    mov dx, 100
    int 0x10
    mov [es:0], al          ; and shown in the corner
    mov ah, 2               ; a character, in graphics
    mov dx, 0x0101
    int 0x10
    mov ax, 0x0edb          ; the full block
    mov bx, 0x000f
    int 0x10
    mov byte [es:199 * 320], 2
    jmp stop
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_pixel(0, 199, (0, 0xAA, 0))
        width, height, rgb = vm.screen.pixels()
        assert (width, height, vm.screen.text()) == (320, 200, "")
        orange = (255, 130, 65)
        assert [vm.screen.pixel(x, 100) for x in (49, 50, 69, 70)] == [BLACK, orange, orange, BLACK]
        assert vm.screen.pixel(319, 199) == (0xAA, 0, 0)
        assert vm.screen.pixel(0, 0) == orange
        assert {vm.screen.pixel(x, y) for x in range(8, 16) for y in range(8, 16)} == {WHITE}
        assert sum(rgb[i : i + 3] != b"\0\0\0" for i in range(0, len(rgb), 3)) == 20 + 1 + 1 + 64 + 1


async def test_mode_12h(tmp_path: Path) -> None:
    source = """
    mov ax, 0x12
    int 0x10
    push 0xa000
    pop es
    mov dx, 0x3ce
    mov ax, 0x0205          ; write mode 2: the colour comes with the data
    out dx, ax
    mov ax, 0xf008          ; bit mask: the left four pixels of each byte
    out dx, ax
    mov di, 240 * 80 + 10
    mov cx, 40
column:
    mov al, [es:di]         ; load the latches
    mov byte [es:di], 0x0c
    add di, 80
    loop column
    mov ax, 0x0005          ; write mode 0
    out dx, ax
    mov ax, 0xff08
    out dx, ax
    mov dx, 0x3c4
    mov ax, 0x0202          ; plane 1 alone: green
    out dx, ax
    mov di, 479 * 80
    mov al, 0xff
    mov cx, 80
    rep stosb
    mov ax, 0x0f02
    out dx, ax
    mov ah, 0x0c            ; a pixel by the BIOS, and another by exclusive or onto it
    mov al, 0x0e
    mov bh, 0
    mov cx, 639
    mov dx, 0
    int 0x10
    mov ax, 0x0c8f
    mov cx, 638
    int 0x10
    mov ax, 0x0c86
    int 0x10
    mov dx, 0x3c8           ; the attribute controller maps 9 to 0x39 of the DAC: make that grey
    mov al, 0x39
    out dx, al
    inc dx
    mov al, 32
    out dx, al
    out dx, al
    out dx, al
    jmp stop
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_pixel(638, 0, (130, 130, 130))
        assert vm.screen.pixels()[:2] == (640, 480)
        red = (0xFF, 0x55, 0x55)
        assert [vm.screen.pixel(x, 250) for x in (79, 80, 83, 84)] == [BLACK, red, red, BLACK]
        assert [vm.screen.pixel(81, y) for y in (239, 240, 279, 280)] == [BLACK, red, red, BLACK]
        assert {vm.screen.pixel(x, 479) for x in (0, 320, 639)} == {(0, 0xAA, 0)}
        assert vm.screen.pixel(639, 0) == (0xFF, 0xFF, 0x55)


async def test_fifty_rows(tmp_path: Path) -> None:
    source = """
    mov ax, 3
    int 0x10
    mov ax, 0x1112          ; the 8x8 font
    mov bl, 0
    int 0x10
    mov al, [0x484]         ; rows - 1
    mov ah, 0
    call putx
    mov ah, 2
    mov bh, 0
    mov dx, 0x3100          ; row 49
    int 0x10
    mov si, last
    call puts
    push 0xb800
    pop es
    mov word [es:2 * (25 * 80 + 79)], 0x0f2a
    jmp stop
last: db "the fiftieth row", 0
"""
    async with booted(tmp_path, source) as vm:
        rows = (await vm.screen.wait_for("*")).splitlines()
        assert (len(rows), rows[0], rows[49]) == (50, "0031", "the fiftieth row")
        assert rows[25] == " " * 79 + "*"
        assert vm.screen.pixels()[:2] == (640, 400)
        assert vm.machine.vga.cursor()[:3] == (49, 16, True)


async def test_interval_timer_and_its_interrupt(tmp_path: Path) -> None:
    source = """
    cli
    mov word [8 * 4], tick
    mov word [8 * 4 + 2], 0
    mov al, 0x34            ; counter 0, mode 2, 1193 counts: 1000 Hz
    out 0x43, al
    mov ax, 1193
    out 0x40, al
    mov al, ah
    out 0x40, al
    mov si, begin
    call puts
    sti
wait_for_it:
    hlt
    cmp word [count], 500
    jb wait_for_it
    cli
    mov si, end
    call puts
    mov ax, [count]
    call putx
    cli
    hlt
tick:
    inc word [count]
    push ax
    mov al, 0x20
    out 0x20, al
    pop ax
    iret
count: dw 0
begin: db "counting ", 0
end: db "counted ", 0
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_for("counting")
        start, injected = vm.now, vm.stats.injected
        assert await vm.screen.wait_for("01F4") == "counting counted 01F4"
        assert vm.now - start == pytest.approx(500 * 1193 / 1193182, abs=0.011)
        assert 490 <= vm.stats.injected - injected <= 500


async def test_keyboard_interrupt_of_its_own(tmp_path: Path) -> None:
    source = """
    cli
    mov word [9 * 4], key
    mov word [9 * 4 + 2], 0
    sti
    mov si, ready
    call puts
    jmp stop
key:
    push ax
    in al, 0x60
    mov ah, 0
    call putx
    mov al, 0x20
    out 0x20, al
    pop ax
    iret
ready: db "> ", 0
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_for(">")
        await vm.keyboard.type("aB")
        await vm.keyboard.key("right")
        expected = ["001E", "009E", "002A", "0030", "00B0", "00AA", "00E0", "004D", "00E0", "00CD"]
        assert (await vm.screen.wait_for("00CD")).split()[1:] == expected


async def test_protected_mode_and_back(tmp_path: Path) -> None:
    source = """
    mov ax, 0x2401          ; A20 on
    int 0x15
    cli
    lgdt [table]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp 8:flat
bits 32
flat:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov edi, 0x300000       ; above 1 MiB
    mov eax, 0x12345678
    mov [edi], eax
    mov dword [edi - 0x100000], 0
    mov eax, [edi]
    mov [result], eax
    mov dword [0xb8000 + 160], 0x2f4d2f50
    jmp 24:narrow
bits 16
narrow:
    mov ax, 32
    mov ds, ax
    mov es, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    jmp 0:real
real:
    xor ax, ax
    mov ds, ax
    mov es, ax
    sti
    mov ax, [result + 2]
    call putx
    mov ax, [result]
    call putx
    mov si, done
    call puts
    jmp stop
result: dd 0
done: db "real mode again", 0
align 8
table: dw 39
    dd table
    dw 0
    dq 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00009a000000ffff, 0x000092000000ffff
"""
    async with booted(tmp_path, source) as vm:
        rows = (await vm.screen.wait_for("again")).splitlines()
        assert rows == ["1234 5678 real mode again", "PM"]
        assert vm.machine.vga.cells()[1][:2] == [(ord("P"), 0x2F), (ord("M"), 0x2F)]
        assert vm.partition.memory.read(0x300000, 4) == struct.pack("<I", 0x12345678)


async def test_speaker(tmp_path: Path) -> None:
    source = """
    mov bx, 2712            ; 440 Hz
    call tone
    mov bx, 1356            ; 880 Hz
    call tone
    mov si, done
    call puts
    jmp stop
tone:
    mov al, 0xb6            ; counter 2, mode 3
    out 0x43, al
    mov al, bl
    out 0x42, al
    mov al, bh
    out 0x42, al
    in al, 0x61
    or al, 3
    out 0x61, al
    mov ah, 0x86            ; 0.1 s
    mov cx, 1
    mov dx, 0x86a0
    int 0x15
    in al, 0x61
    and al, 0xfc
    out 0x61, al
    mov ah, 0x86            ; 0.05 s
    mov cx, 0
    mov dx, 0xc350
    int 0x15
    ret
done: db "done", 0
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_for("done")
        tones = vm.machine.speaker.tones()
        file = tmp_path / "beep.wav"
        vm.machine.speaker.save_wav(file, rate=8000)
    assert [hz for _, _, hz in tones] == pytest.approx([440, 880], abs=0.5)
    assert [(end - start) / 1e9 for start, end, _ in tones] == pytest.approx([0.1, 0.1], abs=0.002)
    with wave.open(str(file)) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 8000)
        samples = struct.unpack(f"<{sound.getnframes()}h", sound.readframes(sound.getnframes()))

    def rises(begin: float, end: float) -> int:
        part = [value > max(samples) // 2 for value in samples[int(begin * 8000) : int(end * 8000)]]
        return sum(after and not before for before, after in itertools.pairwise(part))

    assert rises(0, 0.1) == pytest.approx(44, abs=1)
    assert rises(0.11, 0.14) == 0
    assert rises(0.15, 0.25) == pytest.approx(88, abs=2)


async def test_vertical_retrace(tmp_path: Path) -> None:
    """Programs that wait for the vertical retrace see sixty (seventy in text modes) of them a second."""
    source = """
    mov cx, 35
frame:
    mov dx, 0x3da
on: in al, dx
    test al, 8
    jnz on
off: in al, dx
    test al, 8
    jz off
    loop frame
    mov si, done
    call puts
    jmp stop
done: db "done", 0
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_for("done")
        assert vm.now == pytest.approx(0.5, abs=0.02)
