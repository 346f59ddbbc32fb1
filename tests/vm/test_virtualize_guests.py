"""Devices change hands under guests of other kinds than Linux: the built-in one, SeaBIOS's driver, and such as only poll (H1, H2, H5-H10, H13)."""

from __future__ import annotations

from pathlib import Path

import pytest

import avmm
import avmm_guests
from tests import third_party
from tests.vm.pc import booted, running, write_disk

pytestmark = pytest.mark.asyncio

HOW = ("between", "middle")
INT_13H = """
    xor bp, bp              ; rounds
again:
    mov si, 1               ; sectors 1 to 200 hold their numbers in eight digits
sector:
    mov [packet + 8], si
    push si
    mov si, packet
    mov ah, 0x42
    mov dl, [drive]
    int 0x13
    pop si
    jc bad
    mov ax, si              ; the last digit of each
    mov bl, 10
    div bl
    add ah, "0"
    cmp ah, [0x8007]
    jne bad
    cmp ah, [0x8000 + 511]
    jne bad
    inc si
    cmp si, 200
    jbe sector
    inc bp
    mov ax, bp
    call putx
    jmp again
bad:
    mov si, wrong
    call puts
    jmp stop
wrong: db "WRONG", 0
align 4
packet: dw 16, 1, 0x8000, 0
    dd 0, 0
"""
POLLING = """
    cli                     ; no interrupt is ever taken
    mov dx, 0x3f6
    mov al, 2
    out dx, al
    xor bp, bp
again:
    mov cx, 1
sector:
    mov dx, 0x1f6
    mov al, 0xe0
    out dx, al
    mov dx, 0x1f2
    mov al, 1
    out dx, al
    inc dx
    mov al, cl
    out dx, al
    inc dx
    xor al, al
    out dx, al
    inc dx
    out dx, al
    mov dx, 0x1f7
    mov al, 0x20
    out dx, al
wait_for_data:
    in al, dx
    test al, 0x80
    jnz wait_for_data
    test al, 1
    jnz bad
    test al, 8
    jz wait_for_data
    push cx
    mov dx, 0x1f0
    mov cx, 256
    mov di, 0x8000
word_by_word:
    in ax, dx
    stosw
    loop word_by_word
    pop cx
    mov ax, cx
    mov bl, 10
    div bl
    add ah, "0"
    cmp ah, [0x8007]
    jne bad
    cmp ah, [0x8000 + 511]
    jne bad
    inc cx
    cmp cx, 200
    jbe sector
    inc bp
    mov [0x7e00], bp
    jmp again
bad:
    mov word [0x7e02], 0xbad
    jmp stop
"""


async def to_and_fro(vm: avmm.Vm, device: str, cycles: int) -> list[str]:
    """Take a device and give it back that often; return at which stages."""
    stages = []
    for number in range(cycles):
        for switch in (vm.virtualize, vm.devirtualize):
            await vm.sleep(0.0007 * (1 + number % 5))
            report = await switch(device, when=HOW[number % 2], on_bound="defer")
            assert report.done, report
            stages.append(report.stage)
    return stages


@pytest.fixture
def seabios(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AVMM_FIRMWARE", str(third_party.file("usr/share/seabios/bios.bin").parent))
    return "seabios"


@pytest.mark.guests
async def test_seabios_reads_by_its_own_driver(tmp_path: Path, seabios: str) -> None:
    disk = write_disk(tmp_path / "disk.img", INT_13H)
    async with running(bios=seabios, disks=[avmm.Disk(disk)], physical=["ata0"]) as vm:
        await vm.screen.wait_for("0001 ")
        stages = await to_and_fro(vm, "ata0", 25)
        await vm.screen.wait_for("0005 ", 30)
        assert "WRONG" not in vm.screen.text()
        assert len(set(stages)) > 2


async def test_a_guest_that_polls_word_by_word(tmp_path: Path) -> None:
    """As memtest-like programs drive a disk: no interrupts, no string instructions."""
    async with booted(tmp_path, POLLING, physical=["ata0"]) as vm:

        def rounds() -> int:
            return int.from_bytes(vm.partition.memory.read(0x7E00, 2), "little")

        await vm.wait_until(lambda: rounds() >= 1, 10, "the guest had read its disk once")
        stages = await to_and_fro(vm, "ata0", 30)
        have = rounds()
        await vm.wait_until(lambda: rounds() > have, 10, "the guest went on")
        assert vm.partition.memory.read(0x7E02, 2) != b"\xad\x0b"
        assert "data to be read by the guest" in stages
        assert vm.physical == {"ata0": "direct"}


@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_the_built_in_guest_on_a_serial_port_and_a_disk(clock: str) -> None:
    disk = avmm.Disk(avmm_guests.image(), "overlay")
    async with running(disks=[disk], physical=["ata0", "com1"], clock=clock) as vm:
        await vm.serial.wait_for("ok> ")
        assert vm.physical == {"com1": "direct", "ata0": "direct"}
        assert not {port.device for port in vm.stats.ports} & {"com1", "ata0"}  # nobody but the devices has seen an access
        for number in range(6):
            vm.serial.write("sum pattern.txt\n")
            for switch in (vm.virtualize, vm.devirtualize):
                for device in ("com1", "ata0"):
                    report = await switch(device, when=HOW[number % 2], on_bound="defer", patience=30)  # the host may be busy
                    assert report.done, report
                await vm.sleep(0.002)
            assert "589ff6ef pattern.txt: as written." in await vm.serial.wait_for("\nok> ")
        assert vm.physical == {"com1": "direct", "ata0": "direct"}


FRAME = """
    mov ax, 0x2401
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
    mov dword [0xd000000c], 64 | 32 << 16
    xor ebp, ebp
round:
    mov edi, 0xd0001000     ; a row of pixels by the processor
    mov ecx, 64
pixel:
    mov eax, ecx
    add eax, ebp
    stosb
    loop pixel
    mov dword [0xd0000010], 1 << 16
    mov dword [0xd0000014], 64 | 1 << 16
    mov dword [0xd0000018], 0
    mov dword [0xd0000020], 2   ; the row below by the device
busy:
    mov eax, [0xd0000008]
    test al, 1
    jnz busy
    cmp al, 2
    jne bad
    mov [0xd0000008], eax
    mov esi, 0xd0001000
    mov edi, 0xd0001040
    mov ecx, 16
    repe cmpsd
    jne bad
    inc ebp
    mov [0x7e00], ebp
    mov ecx, 20000          ; and a rest
    loop $
    jmp round
bad:
    mov dword [0x7e04], 0xbad
    hlt
bits 16
align 8
table: dw 23
    dd table
    dw 0
    dq 0x00cf9a000000ffff, 0x00cf92000000ffff
"""


async def test_a_frame_device_under_a_processor_that_draws(tmp_path: Path) -> None:
    """H3: stores to frame memory are stores to memory while direct, and trap through memory management while virtualized."""
    async with booted(tmp_path, FRAME, physical=["frame0"]) as vm:

        def rounds() -> int:
            return int.from_bytes(vm.partition.memory.read(0x7E00, 4), "little")

        async def stores() -> int:
            """Made by the guest in a while, as exits."""
            have, before = rounds(), vm.stats.exits["store"]
            await vm.wait_until(lambda: rounds() >= have + 20, 10, "the guest drew")
            return vm.stats.exits["store"] - before

        await vm.wait_until(lambda: rounds() > 1, 10, "the guest drew")
        assert await stores() == 0
        assert vm.stats.direct > 0
        assert (await vm.virtualize("frame0")).done
        assert await stores() >= 20 * 69
        assert (await vm.devirtualize("frame0")).done
        assert await stores() == 0
        stages = await to_and_fro(vm, "frame0", 20)
        have = rounds()
        await vm.wait_until(lambda: rounds() > have + 10, 10, "the guest drew")
        assert vm.partition.memory.read(0x7E04, 4) != b"\xad\x0b\0\0"
        assert len(set(stages)) > 1
