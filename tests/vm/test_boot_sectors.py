"""Boot sectors of our own on the built-in BIOS: what each of its services does, seen on the screen, on the line and in the image."""

from __future__ import annotations

from pathlib import Path

import pytest

import avmm
from avmm.devices.block import SECTOR
from tests.vm.pc import booted, pattern, running, write_disk

pytestmark = pytest.mark.asyncio

CONFIGURED = 1234567890  # 2009-02-13 23:31:30 UTC


async def test_text_attributes_scrolling_and_cursor(tmp_path: Path) -> None:
    source = """
    mov ax, 3
    int 0x10
    mov ah, 1               ; cursor: lines 0-7 of 8, a block
    mov cx, 0x0007
    int 0x10
    mov ah, 2               ; row 2, column 10
    mov bx, 0
    mov dx, 0x020a
    int 0x10
    mov ax, 0x0941          ; five A, yellow on red
    mov bx, 0x004e
    mov cx, 5
    int 0x10
    mov ah, 8               ; read it back
    int 0x10
    mov [found], ax
    mov ax, 0x1303          ; a string with its colours, cursor moved
    mov bx, 0
    mov cx, 3
    mov dx, 0x0400
    mov bp, coloured
    int 0x10
    mov ax, 0x0602          ; scroll rows 1-5, columns 8-20 up by two, filled with green
    mov bh, 0x2f
    mov cx, 0x0108
    mov dx, 0x0514
    int 0x10
    mov ah, 3
    mov bh, 0
    int 0x10
    mov ax, dx
    mov [cursor], ax
    mov ah, 2
    mov dx, 0x0700
    int 0x10
    mov ax, [found]
    call putx
    mov ax, [cursor]
    call putx
    mov si, done
    call puts
    jmp stop
found: dw 0
cursor: dw 0
coloured: db 'x', 0x1e, 'y', 0x2d, 'z', 0x3c
done: db "done", 0
"""
    async with booted(tmp_path, source) as vm:
        text = await vm.screen.wait_for("done")
        cells = vm.machine.vga.cells()
        assert text.splitlines()[7] == "4E41 0403 done"
        assert cells[0][10:15] == [(ord(" "), 7)] * 5, "above the window"
        assert cells[2][10:15] == [(ord(" "), 7)] * 5, "scrolled up by two, out of the window"
        assert cells[4][:3] == [(ord("x"), 0x1E), (ord("y"), 0x2D), (ord("z"), 0x3C)]
        assert cells[5][8:21] == cells[4][8:21] == [(ord(" "), 0x2F)] * 13
        assert cells[5][7] == cells[5][21] == (ord(" "), 7)
        assert vm.machine.vga.cursor() == (7, 14, True, 0, 15)
        assert vm.screen.pixel(8 * 8 + 1, 5 * 16 + 1) == (0, 0xAA, 0)


async def test_teletype_scrolls_at_the_last_row(tmp_path: Path) -> None:
    source = """
    mov cx, 30
    xor dx, dx
next:
    mov ax, dx
    call putx
    call newline
    inc dx
    loop next
    jmp stop
"""
    async with booted(tmp_path, source) as vm:
        text = await vm.screen.wait_for("001D")
        assert text.splitlines() == [f"{number:04X}" for number in range(6, 30)]


DISK_TRAFFIC = """
    mov ah, 8               ; geometry
    int 0x13
    mov ax, cx
    call putx
    mov ax, dx
    call putx
    mov ax, 0x0201          ; read cylinder 0, head 1, sector 4 (LBA 66)
    mov cx, 0x0004
    mov dh, 1
    mov dl, [drive]
    mov bx, 0x8000
    int 0x13
    jc failed
    mov si, 0x8000
    mov byte [si + 8], 0
    call puts               ; what the sector says
    mov byte [si], 'C'
    mov ax, 0x0301          ; write it to cylinder 1, head 0, sector 1 (LBA 1008)
    mov cx, 0x0101
    mov dh, 0
    int 0x13
    call result
    mov si, packet          ; read LBA 100 and 101
    mov ah, 0x42
    int 0x13
    jc failed
    mov byte [0x9000], 'L'
    mov byte [0x9200], 'B'
    mov dword [packet + 8], 1500
    mov ax, 0x4300          ; write them as LBA 1500 and 1501
    int 0x13
    call result
    mov word [packet + 2], 2    ; a failed write has left 0 there
    mov word [packet + 6], 0x0a00
    mov word [packet + 4], 0
    mov ah, 0x42            ; and read them again to another place
    int 0x13
    jc failed
    mov byte [0xa008], 0
    mov si, 0xa000
    call puts
    mov byte [0xa208], 0
    mov si, 0xa200
    call puts
    mov si, packet
    mov dword [packet + 8], 100000
    mov ah, 0x42            ; beyond the end
    int 0x13
    call result
    mov ax, 0x0201
    mov cx, 0x003f
    mov dh, 16              ; no such head
    int 0x13
    call result
    mov si, done
    call puts
    jmp stop
failed:
    mov si, fails
    call puts
    jmp stop
result:                     ; status in the high byte, carry in the low one
    mov al, 0
    adc al, 0
    call putx
    ret
align 4
packet: dw 16, 2, 0, 0x900
    dq 100
done: db "done", 0
fails: db "FAILED", 0
"""


@pytest.mark.parametrize("mode", ["rw", "overlay", "ro"])
async def test_disk_by_cylinder_and_by_sector_number(tmp_path: Path, mode: str) -> None:
    disk = write_disk(tmp_path / "disk.img", DISK_TRAFFIC)
    before = disk.read_bytes()
    async with running(disks=[avmm.Disk(disk, mode)]) as vm:  # type: ignore[arg-type]
        text = await vm.screen.wait_for("done")
    after = bytearray(before)
    after[1008 * SECTOR : 1009 * SECTOR] = b"C0000066\0" + before[66 * SECTOR + 9 : 67 * SECTOR]
    after[1500 * SECTOR : 1502 * SECTOR] = before[100 * SECTOR : 102 * SECTOR]
    after[1500 * SECTOR] = ord("L")
    after[1501 * SECTOR] = ord("B")
    status, lba = ("0301", "0000150000001501") if mode == "ro" else ("0000", "L0000100B0000101")
    assert text == f"013F 0F01 00000066{status} {status} {lba}0401 0401 done"
    assert before[66 * SECTOR :].startswith(b"00000066")
    assert disk.read_bytes() == (bytes(after) if mode == "rw" else before)


async def test_keys_are_echoed(tmp_path: Path) -> None:
    source = """
    mov ax, 0x0e3e
    int 0x10
next:
    mov ah, 0
    int 0x16
    or al, al
    jz special
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    cmp al, 13
    jne next
    call newline
    mov ah, 2               ; shift states
    int 0x16
    mov ah, 0
    call putx
    jmp next
special:
    call putx
    jmp next
"""
    stats = []
    for run in range(2):
        folder = tmp_path / str(run)
        folder.mkdir()
        async with booted(folder, source) as vm:
            await vm.screen.wait_for(">")
            await vm.keyboard.type("Hello, World! [{~}]\n")
            await vm.screen.wait_for("0000")
            await vm.keyboard.key("f1")
            await vm.keyboard.key("up")
            await vm.keyboard.key("alt", "x")
            await vm.keyboard.key("capslock")
            await vm.keyboard.type("abC\n")
            text = await vm.screen.wait_for("0040")
            assert text.splitlines() == [">Hello, World! [{~}]", "0000 3B00 4800 2D00 ABc", "0040"]
            stats.append((vm.now, vm.stats.exits, vm.stats.injected, vm.stats.exceptions))
    assert stats[0] == stats[1], "the same run in virtual time, twice"


async def test_memory_map_and_sizes(tmp_path: Path) -> None:
    source = """
    int 0x12
    call putx
    int 0x11
    call putx
    mov ah, 0x88
    int 0x15
    call putx
    mov ax, 0xe801
    int 0x15
    mov ax, cx
    call putx
    mov ax, dx
    call putx
    call newline
    xor ebx, ebx
next:
    mov eax, 0xe820
    mov edx, 0x534d4150
    mov ecx, 20
    mov di, 0x8000
    int 0x15
    jc end
    push ebx
    mov bx, 5
    mov si, 0x8000
words:                      ; each entry as five doublewords, the high word first
    mov ax, [si + 2]
    call putx
    mov ax, [si]
    call putx
    add si, 4
    dec bx
    jnz words
    pop ebx
    call newline
    or ebx, ebx
    jnz next
end:
    mov si, done
    call puts
    jmp stop
done: db "done", 0
"""
    async with booted(tmp_path, source, memory="24M") as vm:
        first, *rows = (await vm.screen.wait_for("done")).splitlines()
    assert first.split() == ["027F", first.split()[1], "5C00", "3C00", "0080"]
    assert int(first.split()[1], 16) & 0x0236 == 0x0226, "coprocessor, mouse, 80x25 colour, one serial port"
    words = [row.split() for row in rows if row != "done"]
    entries = []
    for row in words:
        numbers = [int(row[i] + row[i + 1], 16) for i in range(0, 10, 2)]
        entries.append((numbers[0] | numbers[1] << 32, numbers[2] | numbers[3] << 32, numbers[4]))
    assert entries == [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0xE0000, 0x20000, 2), (0x100000, 23 << 20, 1)]


async def test_waiting_and_the_tick_count(tmp_path: Path) -> None:
    source = """
    mov ah, 0
    int 0x1a
    mov [ticks], dx
    mov si, before
    call puts
    mov ah, 0x86            ; 500,000 us
    mov cx, 7
    mov dx, 0xa120
    int 0x15
    mov si, after
    call puts
    mov ah, 0
    int 0x1a
    sub dx, [ticks]
    mov ax, dx
    call putx
    jmp stop
ticks: dw 0
before: db "waiting ", 0
after: db "over ", 0
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_for("waiting")
        begin = vm.now
        text = await vm.screen.wait_for("over 000")
        assert vm.now - begin == pytest.approx(0.5, abs=0.02)
        assert text in ("waiting over 0009", "waiting over 000A")


async def test_date_and_time_of_day(tmp_path: Path) -> None:
    source = """
    mov ah, 4
    int 0x1a
    mov ax, cx
    call putx
    mov ax, dx
    call putx
    mov ah, 2
    int 0x1a
    mov ax, cx
    call putx
    mov al, dh
    mov ah, 0
    call putx
    mov ah, 0               ; ticks since midnight
    int 0x1a
    mov ax, cx
    call putx
    mov ax, dx
    call putx
    jmp stop
"""
    async with booted(tmp_path, source, epoch=CONFIGURED) as vm:
        text = await vm.screen.wait_for(lambda text: len(text) >= 29)
    *clock, high, low = text.split()
    assert clock == ["2009", "0213", "2331", "0030"]
    assert int(high + low, 16) == pytest.approx((23 * 3600 + 31 * 60 + 30) * 1193182 / 65536, abs=20)


async def test_serial_line(tmp_path: Path) -> None:
    source = """
    mov ax, 0x00e3          ; 9600 baud, 8N1
    xor dx, dx
    int 0x14
    mov si, text
send:
    lodsb
    or al, al
    jz echo
    mov ah, 1
    int 0x14
    jmp send
echo:
    mov ah, 2
    xor dx, dx
    int 0x14
    test ah, 0x80
    jnz echo
    cmp al, 'a'
    jb as_it_is
    and al, 0xdf
as_it_is:
    mov ah, 1
    int 0x14
    jmp echo
text: db "hello, line", 13, 10, 0
"""
    async with booted(tmp_path, source) as vm:
        assert await vm.serial.wait_for("line\r\n") == "hello, line\r\n"
        vm.serial.write("upper case, please.")
        await vm.serial.wait_for("UPPER CASE, PLEASE.")


async def test_giving_up_and_booting_again(tmp_path: Path) -> None:
    """Int 18h goes on with the next device, int 19h starts over."""
    floppy = tmp_path / "floppy.img"
    write_disk(floppy, "mov si, name\n call puts\n int 0x18\n name: db 'floppy ', 0", 2880)
    disk = write_disk(tmp_path / "disk.img", "mov si, name\n call puts\n mov ah, 0\n int 0x16\n int 0x19\n name: db 'disk ', 0")
    async with running(disks=[avmm.Disk(disk)], floppies=[avmm.Disk(floppy)]) as vm:
        await vm.screen.wait_for("floppy disk")
        await vm.keyboard.key("space")
        await vm.screen.wait_for("floppy disk floppy disk")
    async with running(disks=[avmm.Disk(disk)], floppies=[avmm.Disk(floppy)], boot="c") as vm:
        assert await vm.screen.wait_for("disk") == "disk"


async def test_nothing_to_boot(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(pattern(2016)))
    async with running(disks=[avmm.Disk(disk)]) as vm:
        text = await vm.screen.wait_for("No bootable device")
        await vm.wait_until(lambda: bool(vm.boot_failure), 1)
        assert vm.boot_failure == "drive 80h: no boot signature"
        assert text.splitlines() == ["No bootable device", "drive 80h: no boot signature"]


async def test_ctrl_alt_del(tmp_path: Path) -> None:
    source = """
    mov ax, [0x472]         ; 1234h: no memory test this time
    call putx
next:
    mov ah, 0
    int 0x16
    mov ah, 0x0e
    mov bx, 7
    int 0x10
    jmp next
"""
    async with booted(tmp_path, source) as vm:
        await vm.screen.wait_for("0000")
        await vm.keyboard.type("abc")
        await vm.screen.wait_for("0000 abc")
        await vm.keyboard.key("ctrl", "alt", "delete")
        assert await vm.screen.wait_for("1234") == "1234"
        assert vm.stats.resets == 1
        await vm.keyboard.type("def")
        assert await vm.screen.wait_for("def") == "1234 def"


async def test_floppy(tmp_path: Path) -> None:
    source = """
    mov al, [drive]
    mov ah, 0
    call putx
    mov ah, 8
    int 0x13
    mov ax, cx
    call putx
    mov ax, dx
    call putx
    mov bh, 0
    mov ax, bx
    call putx
    push ds                 ; int 13h has left ES:DI at the drive's table
    pop es
    mov ax, 0x0201          ; the very last sector
    mov cx, 0x4f12
    mov dx, 0x0100
    mov bx, 0x8000
    int 0x13
    mov byte [0x8008], 0
    mov si, 0x8000
    call puts
    mov byte [0x8000], 'F'
    mov ax, 0x0301          ; written to cylinder 1, head 1, sector 2
    mov cx, 0x0102
    int 0x13
    mov si, done
    call puts
    jmp stop
done: db " done", 0
"""
    floppy = write_disk(tmp_path / "floppy.img", source, 2880)
    async with running(floppies=[avmm.Disk(floppy)]) as vm:
        text = await vm.screen.wait_for("done")
    assert text == "0000 4F12 0101 0004 00002879 done"
    lba = (1 * 2 + 1) * 18 + 1
    assert floppy.read_bytes()[lba * SECTOR :].startswith(b"F0002879")
