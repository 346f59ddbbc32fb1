"""How an engine gets into SVM guest mode: reserved pages with a stub that executes VMRUN, the VMCB with the guest's first state, the
host save area and the MSR permission map (AMD64 APM vol. 2, chapter 15, and appendix B for the VMCB's layout).

The invariant: the reserved pages lie above every physical address that the guest can form.
"""

from __future__ import annotations

import mmap
import struct

import unicorn

from avmm.cpu.engine import CpuState
from avmm.cpu.unicorn.memory import host_address

STUB = 1 << 44  # and the other pages behind it
VMCB, HOST_SAVE, MSR_MAP, SIZE = STUB + 0x1000, STUB + 0x2000, STUB + 0x3000, 0x6000
EFER, VM_HSAVE_PA = 0xC0000080, 0xC0010117
EFER_SVME = 0x1000
_CODE = bytes.fromhex("0f01da0f01d8f4")  # vmload; vmrun; hlt
_MSR_MAP_SIZE = 0x1800
TSS_BUSY = 2  # in a segment's attributes
_INTERCEPTS = (1 << 0x04) | (1 << 0x12) | (1 << 0x1A) | (1 << 0x1C) | (1 << 0x1F)  # VINTR, CPUID, INVLPGA, MSR, SHUTDOWN: exit code - 0x60
_INTERCEPTS_SVM = 0x7F  # VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT: no nested virtualization
_SEGMENTS = ((0x400, "es"), (0x410, "cs"), (0x420, "ss"), (0x430, "ds"), (0x440, "fs"), (0x450, "gs"), (0x470, "ldtr"), (0x490, "tr"))
_G_PAT_RESET, _DR6_RESET, _DR7_RESET = 0x0007040600070406, 0xFFFF0FF0, 0x400


def reserve(engine: unicorn.Uc) -> mmap.mmap:
    """Map the reserved pages into a new engine, before anything else is mapped, and return them."""
    # Until memory has been unmapped once, Unicorn puts each new piece of RAM behind the smallest one in its own address space, where
    # two pieces then lie over each other, and code translated from one runs for the other.
    engine.mem_map(STUB, SIZE)
    engine.mem_unmap(STUB, SIZE)
    pages = mmap.mmap(-1, SIZE)
    engine.mem_map_ptr(STUB, SIZE, unicorn.UC_PROT_ALL, host_address(memoryview(pages))[1])
    return pages


def prepare(engine: unicorn.Uc, pages: mmap.mmap, state: CpuState) -> None:
    """Fill the pages, so that the stub, executed with RAX at the VMCB, enters guest mode with that state. RAX comes from the VMCB."""
    pages[0 : len(_CODE)] = _CODE
    pages[MSR_MAP - STUB : MSR_MAP - STUB + _MSR_MAP_SIZE] = b"\xff" * _MSR_MAP_SIZE  # every MSR access exits

    def vmcb(offset: int, form: str, *values: int) -> None:
        struct.pack_into(form, pages, VMCB - STUB + offset, *values)

    vmcb(0x0C, "<I", _INTERCEPTS)
    vmcb(0x10, "<I", _INTERCEPTS_SVM)
    vmcb(0x48, "<Q", MSR_MAP)
    vmcb(0x58, "<I", 1)  # ASID
    for offset, name in _SEGMENTS:
        segment = getattr(state, name)
        attributes = segment.attributes & ~TSS_BUSY if name == "tr" else segment.attributes  # Unicorn keeps TR as LTR finds it
        vmcb(offset, "<HHIQ", segment.selector, attributes, segment.limit, segment.base)
    for offset, (base, limit) in ((0x460, state.gdtr), (0x480, state.idtr)):
        vmcb(offset, "<HHIQ", 0, 0, limit, base)
    for offset, value in ((0x4D0, state.efer | EFER_SVME), (0x548, state.cr4), (0x550, state.cr3), (0x558, state.cr0),
                          (0x560, _DR7_RESET), (0x568, _DR6_RESET), (0x570, state.rflags), (0x578, state.rip), (0x5D8, state.rsp),
                          (0x5F8, state.gprs.get("rax", 0)), (0x668, _G_PAT_RESET)):  # fmt: skip
        vmcb(offset, "<Q", value)
    engine.msr_write(EFER, EFER_SVME)  # the host EFER must be exactly this
    engine.msr_write(VM_HSAVE_PA, HOST_SAVE)
