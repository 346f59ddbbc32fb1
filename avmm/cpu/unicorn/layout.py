"""Where things are inside libunicorn, and the proof that they are there.

The wheel exports its internal functions, but not its structures. This file holds every offset that the engine uses, for
the one version it is pinned to, and verifies each on a scratch engine before the first machine is made (some 10 ms,
once a process). Anything that does not fit is refused with one sentence; nothing is guessed.

The invariant: no other file knows an offset into Unicorn.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import mmap
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import unicorn
import unicorn.unicorn_py3.unicorn as binding
from unicorn import x86_const as x86

from avmm.cpu.engine import ProcessorError

NEEDED = "2.1.4"

# from uc_struct
UC_CPU = 0x1B8  # uc->cpu
UC_TCG = 0x300  # uc->tcg_ctx
UC_NO_EXIT_REQUEST = 0x7F2  # one byte: translate no exit check into loads and stores
# from TCGContext
TCG_INVALIDATIONS = 0xD8  # how many blocks were invalidated
# from CPUState
CPU_CFLAGS_NEXT_TB = 0x18
CPU_INTERRUPT_REQUEST = 0x1C
CPU_ICOUNT_HIGH = 0x8A42
CPU_HALTED = 0x8198
CPU_EXCEPTION_INDEX = 0x81A0
CPU_ENV = 0x8A50
# from CPUX86State
ENV_RIP = 0x80
ENV_RFLAGS = 0x88
ENV_HFLAGS = 0xB0
ENV_SEGMENTS = 0xB8  # es cs ss ds fs gs ldt tr gdt idt, 24 bytes each
ENV_CR = 0x1A8
ENV_EFER = 0x250
ENV_SYSENTER = 0x12C0
ENV_STAR = 0x12D8
ENV_TSC_AUX = 0x1320
ENV_ERROR_CODE = 0x1508
ENV_IS_INT = 0x150C
ENV_NEXT_EIP = 0x1510
ENV_POINTER = 0x15B8  # the only host address among them: eight bytes that belong to this process
ENV_SIZE = 0x1700
FLAGS_OF_BLOCKS = 0x73100  # of RFLAGS, those that a block is translated for: TF, IOPL, RF, VM, AC
CF_CLUSTER, CF_COMPARED = 0xFF000000, 0xFF0EFFFF  # of a block's compile flags: the processor's cluster, and what is compared
TLB_MODES = 3
TLB_SEARCH = 0x200  # the TLB descriptors lie within this many bytes before env
TLB_DETAILS = 696  # bytes of what Unicorn keeps besides for each mode: right before the descriptors, and eight bytes of padding

FUNCTIONS = (
    "uc_emu_start", "uc_emu_stop", "uc_reg_read", "uc_hook_add", "uc_mmio_map", "uc_mem_map_ptr", "uc_mem_unmap",
    "uc_vmem_translate", "uc_vmem_read", "x86_cpu_do_interrupt_x86_64", "do_interrupt_x86_hardirq_x86_64",
    "raise_exception_err_ra_x86_64", "helper_check_iob_x86_64", "helper_check_iow_x86_64", "helper_check_iol_x86_64",
    "qemu_ram_addr_from_host_x86_64", "tb_invalidate_phys_range_x86_64", "tb_flush_x86_64", "uc_hook_del",
    "cpu_restore_state_x86_64", "cpu_loop_exit_noexc_x86_64",
)  # fmt: skip
INSTRUCTIONS = {
    "in": x86.UC_X86_INS_IN,
    "out": x86.UC_X86_INS_OUT,
    "syscall": x86.UC_X86_INS_SYSCALL,
    "sysenter": x86.UC_X86_INS_SYSENTER,
    "rdtsc": x86.UC_X86_INS_RDTSC,
    "rdtscp": x86.UC_X86_INS_RDTSCP,
}


@dataclass(frozen=True, slots=True)
class Native:
    """What was found: the library, and whether everything is in place that makes it faster (``tlb`` is the TLB's offset from env then)."""

    library: ctypes.CDLL
    tlb: int | None
    cpuid: Callable[[int, int, int], tuple[int, int, int, int]]
    """``(env, leaf, subleaf)`` -> what the CPU model itself answers."""


class Inside:
    """The insides of one engine: raw views of its CPU state, valid as long as the engine is."""

    __slots__ = ("bytes", "cpu", "d", "env", "q", "uc")

    def __init__(self, engine: unicorn.Uc) -> None:
        self.uc: int = engine._uch.value
        self.cpu = u64(self.uc + UC_CPU)
        self.env = self.cpu + CPU_ENV
        self._view(memoryview((ctypes.c_ubyte * ENV_SIZE).from_address(self.env)).cast("B"))

    def _view(self, raw: memoryview) -> None:
        self.bytes = raw
        self.q = raw.cast("Q")
        self.d = raw.cast("I")

    def save(self) -> bytes:
        """Return the fields without what belongs to this process."""
        return bytes(self.bytes[:ENV_POINTER]) + bytes(8) + bytes(self.bytes[ENV_POINTER + 8 :])

    def restore(self, saved: bytes) -> None:
        """Take fields that were saved, perhaps by another process."""
        self.bytes[:ENV_POINTER] = saved[:ENV_POINTER]
        self.bytes[ENV_POINTER + 8 :] = saved[ENV_POINTER + 8 :]

    def copy(self) -> Inside:
        """Return the same fields as they are now, in memory of our own."""
        other = copy.copy(self)
        other._view(memoryview(bytearray(self.bytes)))
        return other


def u64(address: int) -> int:
    """Return the eight bytes at a host address."""
    return ctypes.c_uint64.from_address(address).value


def i32(address: int) -> int:
    """Return the four bytes at a host address, signed."""
    return ctypes.c_int32.from_address(address).value


@functools.cache
def native() -> Native:
    """Find and verify everything, once a process. Raises ProcessorError with one sentence when this Unicorn is not the one we know."""
    if not (sys.platform == "linux" and sys.maxsize > 2**32 and binding.uclib._name.endswith((".so", ".so.2"))):
        raise ProcessorError("avmm's processor needs Linux on x86-64")
    found = version("unicorn")
    if found != NEEDED:
        raise ProcessorError(f"avmm's processor needs unicorn=={NEEDED}, found {found}: pip install unicorn=={NEEDED}")
    library = ctypes.CDLL(binding.uclib._name)
    try:
        functions = {name: address_of(library, name) for name in FUNCTIONS}
        functions["cpu_interrupt_handler"] = u64(address_of(library, "cpu_interrupt_handler"))
    except AttributeError as missing:
        raise ProcessorError(f"this build of unicorn {found} does not export what avmm needs: {missing}") from None
    _verify(library, functions["cpu_interrupt_handler"])

    from avmm.cpu.unicorn import _shim

    offsets = {
        "engine_cpu": UC_CPU,
        "engine_tcg": UC_TCG,
        "invalidations": TCG_INVALIDATIONS,
        "env": CPU_ENV,
        "interrupt_request": CPU_INTERRUPT_REQUEST,
        "icount_high": CPU_ICOUNT_HIGH,
        "halted": CPU_HALTED,
        "cflags_next_tb": CPU_CFLAGS_NEXT_TB,
        "error_code": ENV_ERROR_CODE,
        "exception_is_int": ENV_IS_INT,
        "exception_next_eip": ENV_NEXT_EIP,
        "sysenter": ENV_SYSENTER,
        "star": ENV_STAR,
        "efer": ENV_EFER,
        "tsc_aux": ENV_TSC_AUX,
    }
    _shim.configure(functions, offsets, INSTRUCTIONS)
    if not _shim.install_guard(library._handle):
        raise ProcessorError(f"this build of unicorn {found} is linked differently; avmm needs the Linux x86-64 wheel")
    _shim.install_stored(library._handle)
    tlb = _find_tlb()
    parts = (_shim.install_fast_stores, _shim.install_globals, _shim.install_blocks, _shim.install_jumps)
    fast = tlb is not None and all(install(library._handle) for install in parts)
    return Native(library, tlb if fast else None, _cpuid_function(library))


def address_of(library: ctypes.CDLL, name: str) -> int:
    """Return the address of an exported symbol; AttributeError when there is none."""
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _cpuid_function(library: ctypes.CDLL) -> Callable[[int, int, int], tuple[int, int, int, int]]:
    function = library.cpu_x86_cpuid_x86_64
    registers = [ctypes.c_uint32() for _ in range(4)]
    references = [ctypes.byref(register) for register in registers]
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, *[ctypes.POINTER(ctypes.c_uint32)] * 4]
    function.restype = None

    def cpuid(env: int, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        function(env, leaf, subleaf, *references)
        a, b, c, d = (register.value for register in registers)
        return a, b, c, d

    return cpuid


def _verify(library: ctypes.CDLL, interrupt_handler: int) -> None:
    """Prove each offset on a scratch engine."""
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.mem_map(0x10000, 0x10000)
    inside = Inside(engine)

    def prove(what: str, holds: bool) -> None:
        if not holds:
            raise ProcessorError(f"this build of unicorn {NEEDED} is laid out differently ({what}); avmm needs the Linux x86-64 wheel")

    names = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")
    for i, name in enumerate(names):
        engine.reg_write(getattr(x86, f"UC_X86_REG_{name}"), 0x1122334455667700 + i)
    prove("general registers", [inside.q[i] for i in range(8)] == [0x1122334455667700 + i for i in range(8)])
    for offset, msr, value in ((ENV_STAR, 0xC0000081, 0x5678432112345678), (ENV_STAR + 16, 0xC0000082, 0x7EADBEEFCAFE1234),
                               (ENV_STAR + 24, 0xC0000083, 0x6EADBEEFCAFE1234),
                               (ENV_STAR + 32, 0xC0000084, 0x12345671), (ENV_STAR + 40, 0xC0000102, 0x5EADBEEFCAFE1234),
                               (ENV_TSC_AUX, 0xC0000103, 0x21436587), (ENV_SYSENTER + 8, 0x175, 0x1BADCAFE1234),
                               (ENV_SYSENTER + 16, 0x176, 0x2BADCAFE1234)):  # fmt: skip
        engine.msr_write(msr, value)
        prove(f"MSR {msr:#x}", inside.q[offset // 8] == value)
    engine.msr_write(0x174, 0x4321)
    prove("SYSENTER_CS", inside.d[ENV_SYSENTER // 4] == 0x4321)
    engine.msr_write(0xC0000080, 0x901 | inside.q[ENV_EFER // 8])
    prove("EFER", inside.q[ENV_EFER // 8] & 0x901 == 0x901 and inside.q[ENV_EFER // 8] == engine.msr_read(0xC0000080))
    prove("direction flag", inside.d[172 // 4] == 1)
    for offset, msr in ((ENV_SEGMENTS + 24 * 4 + 8, 0xC0000100), (ENV_SEGMENTS + 24 * 5 + 8, 0xC0000101)):
        engine.msr_write(msr, 0x3BADCAFE0000 + msr)
        prove("segments", inside.q[offset // 8] == 0x3BADCAFE0000 + msr)
    engine.reg_write(x86.UC_X86_REG_RIP, 0x4BADCAFE1234)
    prove("instruction pointer", inside.q[ENV_RIP // 8] == 0x4BADCAFE1234)
    engine.reg_write(x86.UC_X86_REG_RFLAGS, 0x240202)  # ID, AC, IF
    prove("flags", inside.q[ENV_RFLAGS // 8] & 0x240200 == 0x240200)
    prove("hidden flags", inside.d[ENV_HFLAGS // 4] & 0xC003 == 0xC000)  # CS64, LMA, CPL 0
    prove("control registers", inside.q[ENV_CR // 8] == engine.reg_read(x86.UC_X86_REG_CR0))

    seen: list[tuple[int, int, int, int]] = []

    def on_interrupt(_uc: object, _number: int, _data: object) -> None:
        index = i32(inside.cpu + CPU_EXCEPTION_INDEX)
        seen.append((index, inside.d[ENV_IS_INT // 4], inside.q[ENV_NEXT_EIP // 8], inside.d[ENV_ERROR_CODE // 4]))
        engine.emu_stop()

    engine.hook_add(unicorn.UC_HOOK_INTR, on_interrupt)
    engine.mem_write(0x10000, bytes.fromhex("cd55f4"))  # int 0x55; hlt
    engine.emu_start(0x10000, 0)
    prove("exception state", bool(seen) and seen[0][:3] == (0x55, 1, 0x10002))
    engine.mem_write(0x10004, bytes.fromhex("66b830128ee0"))  # mov ax, 0x1230; mov fs, ax
    engine.emu_start(0x10004, 0)
    prove("error code", len(seen) == 2 and seen[1][0] == 13 and seen[1][3] == 0x1230)
    before = i32(inside.cpu + CPU_HALTED)
    engine.emu_start(0x10002, 0)
    prove("halted", (before, i32(inside.cpu + CPU_HALTED)) == (0, 1))

    blocks: list[int] = []
    engine.hook_add(unicorn.UC_HOOK_BLOCK, lambda _uc, _address, size, _data: blocks.append(size))
    engine.mem_write(0x10010, bytes.fromhex("9090f4"))  # nop; nop; hlt
    next_block = ctypes.c_uint32.from_address(inside.cpu + CPU_CFLAGS_NEXT_TB)
    idle, next_block.value = next_block.value, 1
    engine.emu_start(0x10010, 0)
    prove("instructions of the next block", (idle, next_block.value, blocks) == (0xFFFFFFFF, 0xFFFFFFFF, [1, 2]))
    prove("translated block", _block_head(library, inside, 0x10011) == (0x10011, 0, _block_flags(inside), 2, CF_CLUSTER))

    count = u64(inside.uc + UC_TCG) + TCG_INVALIDATIONS
    before = u64(count)
    engine.ctl_remove_cache(0x10011, 0x10012)
    prove("blocks invalidated", u64(count) > before and _block_head(library, inside, 0x10011) is None)

    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(interrupt_handler)(inside.cpu, 0x100)
    prove("interrupt request", i32(inside.cpu + CPU_INTERRUPT_REQUEST) == 0x100)
    ctypes.c_uint16.from_address(inside.cpu + CPU_ICOUNT_HIGH).value = 0
    library.cpu_exit.argtypes = [ctypes.c_void_p]
    library.cpu_exit(inside.cpu)
    prove("icount", ctypes.c_uint16.from_address(inside.cpu + CPU_ICOUNT_HIGH).value == 0xFFFF)
    prove("no_exit_request", [_store_after_stop(value) for value in (0, 1)] == [0, 0x5A])


def _block_flags(inside: Inside) -> int:
    """The state of the processor that a block is translated for."""
    return inside.d[ENV_HFLAGS // 4] | inside.d[ENV_RFLAGS // 4] & FLAGS_OF_BLOCKS


def _block_head(library: ctypes.CDLL, inside: Inside, address: int) -> tuple[int, ...] | None:
    """Return address, code segment's base, flags, size and compared flags of the block that Unicorn finds at an address."""
    find = library.tb_htable_lookup_x86_64
    find.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32]
    find.restype = ctypes.c_void_p
    block = find(inside.cpu, address, 0, _block_flags(inside), CF_CLUSTER)
    if not block:
        return None
    pc, base, flags, size, _instructions, compared = struct.unpack("<QQIHHI", ctypes.string_at(block, 28))
    return pc, base, flags, size, compared & CF_COMPARED


def _store_after_stop(no_exit_request: int) -> int:
    """Whether a store behind an OUT that asks for a stop is still made in the same block: only with no_exit_request set."""
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    engine.mem_map(0x10000, 0x10000)
    engine.mem_write(0x10000, bytes.fromhex("e680 48890425008e0100 48890425008f0100 f4"))
    engine.reg_write(x86.UC_X86_REG_RAX, 0x5A)
    ctypes.c_uint8.from_address(engine._uch.value + UC_NO_EXIT_REQUEST).value = no_exit_request
    engine.hook_add(unicorn.UC_HOOK_INSN, lambda uc, port, size, value, data: uc.emu_stop(), None, 1, 0, x86.UC_X86_INS_OUT)
    engine.emu_start(0x10000, 0)
    return int(engine.mem_read(0x18F00, 1)[0])


def _find_tlb() -> int | None:
    """Offset from env of the TLB descriptors: store once, then look for a (mask, table) pair whose entry describes that page."""
    engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    ram = mmap.mmap(-1, 0x40000)
    pin = ctypes.c_char.from_buffer(ram)
    host = ctypes.addressof(pin)
    engine.mem_map_ptr(0x10000, 0x40000, unicorn.UC_PROT_ALL, host)
    engine.mem_write(0x10000, bytes.fromhex("4889042500800200f4"))  # mov [0x28000], rax; hlt
    engine.emu_start(0x10000, 0x10008)
    env = Inside(engine).env
    page = 0x28000
    entry = struct.pack("<5Q", page, page | 0x400, page, page, host + 0x18000 - page)

    def plausible(descriptor: int) -> bool:
        mask = u64(descriptor)
        return mask & 63 == 0 and 64 * 63 <= mask < 1 << 28 and (mask + 64) & mask == 0

    for offset in range(-TLB_SEARCH, 0, 8):
        if plausible(env + offset):
            table = u64(env + offset + 8) + 64 * ((page >> 12) & (u64(env + offset) >> 6))
            if ctypes.string_at(table, 40) == entry:
                starts = [offset - 16 * mode for mode in range(TLB_MODES)]
                good = [s for s in starts if all(plausible(env + s + 16 * mode) for mode in range(TLB_MODES))]
                return good[0] if len(good) == 1 and all(_detailed(env + good[0], mode) for mode in range(TLB_MODES)) else None
    return None


def _detailed(descriptors: int, mode: int) -> bool:
    """Whether the details of a mode are where tlb.h has them: no large page, as many entries as are in use, no victim, an I/O TLB."""
    details = descriptors - 8 - (TLB_MODES - mode) * TLB_DETAILS
    mask, table = u64(descriptors + 16 * mode), u64(descriptors + 16 * mode + 8)
    used = sum(ctypes.string_at(table + at, 24) != b"\xff" * 24 for at in range(0, mask + 64, 64))
    large = ctypes.string_at(details, 16) == b"\xff" * 16
    victims = ctypes.string_at(details + 48, 8 * 64) == b"\xff" * (8 * 64)
    iotlb = u64(details + TLB_DETAILS - 8)
    return large and victims and u64(details + 32) == used and u64(details + 40) == 0 and iotlb > 0xFFFF and iotlb % 8 == 0
