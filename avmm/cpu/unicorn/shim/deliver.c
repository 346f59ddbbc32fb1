/* Exceptions, interrupts, VM exits, system calls and the time stamp.
 *
 * Exceptions and INT n go through the guest's IDT by Unicorn's own do_interrupt, which siglongjmps on a nested fault:
 * no Python frame may be on the stack there. */
#define _GNU_SOURCE
#include "tlb.h"
#include "vcpu.h"
#include <dlfcn.h>
#include <link.h>

enum { EXIT_VINTR = 0x64, EXIT_CPUID = 0x72, EXIT_MSR = 0x7c, EXIT_TRIPLE_FAULT = 0x7f, EXIT_VMMCALL = 0x81, CPU_INTERRUPT_VIRQ = 0x100 };
enum { VECTOR_DB = 1, VECTOR_BP = 3, VECTOR_OF = 4, VECTOR_UD = 6, VECTOR_TS = 10, VECTOR_GP = 13 };
enum { OP_INT3 = 0xcc, OP_INTO = 0xce, OP_INT1 = 0xf1, LONGEST = 15, NOTHING = -1 };
enum { FLAG_RF = 1 << 16, FLAG_VM = 1 << 17, FLAG_IF = 1 << 9, EFER_SCE = 1 };

/* The instruction byte at an offset from CS; false where it cannot be read. */
static bool code_byte(Vcpu *v, uint64_t rip, uint8_t *byte) {
    uint64_t linear = ENV32(v, HFLAGS) & HF_CS64 ? rip : (uint32_t)(rip + ENV64(v, CS + SEGMENT_BASE));
    const uint8_t *host = v->tlb ? memory_behind(v, linear, offsetof(TlbEntry, code)) : NULL;
    if (host) *byte = *host;
    return host || !api.vmem_read(v->uc, linear, 4, byte, 1);
}
/* The error code of a fault that came while another event was delivered. Unicorn leaves EXT (bit 0) out, and in long mode
 * it names the IDT entry (bit 1) by its offset in units of 8 bytes instead of by its number. */
static void correct_error_code(Vcpu *v, int vector) {
    if (v->delivering == NOTHING) return;
    if (vector >= VECTOR_TS && vector <= VECTOR_GP) {
        uint32_t *code = &ENV32(v, layout.error_code);
        if ((*code & 2) && (ENV32(v, HFLAGS) & HF_LMA)) *code = (uint32_t)v->delivering * 8 + 2;
        if (!v->delivering_int) *code |= 1;
    }
    v->delivering = NOTHING;
}
static void deliver(Vcpu *v, int vector) {
    v->n_exceptions++;
    v->vectors[vector]++;
    if (ENV32(v, layout.exception_is_int)) { /* a fault while INT n is delivered reports the INT itself: CD n, but CC and CE */
        uint64_t next = ENV64(v, layout.exception_next_eip);
        uint8_t last;
        bool one = (vector == VECTOR_BP || vector == VECTOR_OF) && code_byte(v, next - 1, &last) &&
                   last == (vector == VECTOR_BP ? OP_INT3 : OP_INTO);
        ENV64(v, RIP) = next - (one ? 1 : 2);
    }
    correct_error_code(v, vector);
    v->delivering = vector;
    v->delivering_int = ENV32(v, layout.exception_is_int);
    api.do_interrupt(v->cpu); /* a fault in it comes back to on_interrupt and never returns here */
    v->delivering = NOTHING;
    ENV32(v, layout.exception_is_int) = 0; /* stale, the next VM exit would resume at a wrong RIP */
}
/* The same for an event that is not Unicorn's: an interrupt, or INT1. */
static void deliver_event(Vcpu *v, int vector, bool hardware) {
    v->delivering = vector;
    v->delivering_int = !hardware;
    api.do_interrupt_hardirq(v->env, vector, hardware);
    v->delivering = NOTHING;
}

static bool is_prefix(uint8_t byte, bool long_mode) {
    switch (byte) {
    case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3: return true;
    default: return long_mode && (byte & 0xf0) == 0x40;
    }
}
/* Prefixes of the instruction at CS:RIP, and its first opcode byte (0 when it cannot be read). */
static int prefixes(Vcpu *v, uint8_t *opcode) {
    bool long_mode = ENV32(v, HFLAGS) & HF_CS64;
    for (int i = 0; i < LONGEST; i++)
        if (!code_byte(v, ENV64(v, RIP) + (uint64_t)i, opcode)) break;
        else if (!is_prefix(*opcode, long_mode)) return i;
    *opcode = 0;
    return 0;
}
/* Length of the two-byte instruction (0F xx) at CS:RIP with its prefixes. */
static int instruction_length(Vcpu *v) {
    uint8_t opcode;
    return prefixes(v, &opcode) + 2;
}

/* VMMCALL by the conventions of the Hypervisor Top-Level Functional Specification, "Hypercall Interface": control word and input in RCX
 * and RDX, of 32-bit code in EDX:EAX and EBX:ECX; the result in RAX or EDX:EAX. False: nobody takes it, or not ring 0 of protected mode. */
static uint64_t pair(Vcpu *v, int high, int low) { return ENV64(v, high) << 32 | ENV32(v, low); }
static bool hypercall(Vcpu *v) {
    enum { REFUSED = -1 };
    uint32_t mode = ENV32(v, HFLAGS);
    bool wide = mode & HF_CS64;
    if (v->hypercall == Py_None || (mode & HF_CPL) || !(mode & HF_PE)) return false;
    uint64_t control = wide ? ENV64(v, RCX) : pair(v, RDX, RAX), input = wide ? ENV64(v, RDX) : pair(v, RBX, RCX);
    int64_t result = vcpu_call(v, v->hypercall, 2, control, input, 0, REFUSED);
    if (v->error_type) return true;
    if (result == REFUSED) return false;
    ENV64(v, RAX) = wide ? (uint64_t)result : (uint32_t)result;
    if (!wide) ENV64(v, RDX) = (uint64_t)result >> 32;
    return true;
}

static void vm_exit(Vcpu *v, int code) {
    uint32_t info = ENV32(v, layout.error_code);
    v->n_exits++;
    vcpu_step(v, STEP_EXIT, (uint32_t)code, 0, ENV32(v, RCX));
    int64_t vector = 0;
    if (code == EXIT_CPUID || code == EXIT_MSR) vector = vcpu_call(v, v->vmexit, 2, (uint64_t)code, info, 0, 0);
    else if (code != EXIT_VMMCALL || !hypercall(v)) vector = VECTOR_UD; /* VMRUN and its kin: there is no nested virtualization */
    if (vector) api.raise_exception_err_ra(v->env, (int)vector, 0, 0);
    ENV64(v, RIP) += instruction_length(v) + (code == EXIT_VMMCALL); /* 0F 01 D9 */
}

static void on_interrupt(void *uc, uint32_t number, Vcpu *v) {
    (void)uc;
    if (number != 0x100 + EXIT_VINTR && v->debug.active) debug_exception(v);
    if (number < 0x100) {
        deliver(v, (int)number);
        return;
    }
    int code = (int)number - 0x100;
    v->delivering = NOTHING;
    ENV32(v, layout.exception_is_int) = 0;
    if (code == EXIT_VINTR) { /* the guest can take an interrupt and INTR is high: acknowledge now, not earlier */
        int64_t vector = vcpu_call(v, v->acknowledge, 0, 0, 0, 0, -1);
        if (vector < 0x100) CPU32(v, layout.interrupt_request) &= ~CPU_INTERRUPT_VIRQ;
        if (vector < 0) return;
        v->n_interrupts++;
        if (v->debug.active) debug_interrupt(v);
        vcpu_step(v, STEP_IRQ, (uint32_t)vector & 0xff, 0, 0);
        deliver_event(v, (int)vector & 0xff, true);
    } else if (code == EXIT_TRIPLE_FAULT) {
        v->why = EXIT_SHUTDOWN;
        api.emu_stop(v->uc);
    } else
        vm_exit(v, code);
}

static bool on_invalid(void *uc, Vcpu *v) {
    (void)uc;
    uint8_t opcode;
    int before = prefixes(v, &opcode);
    if (v->debug.active) debug_exception(v);
    if (opcode == OP_INT1) { /* Unicorn does not know it */
        ENV64(v, RIP) += (uint64_t)before + 1;
        v->n_exceptions++;
        v->vectors[VECTOR_DB]++;
        deliver_event(v, VECTOR_DB, false);
    } else
        deliver(v, VECTOR_UD);
    return true;
}

/* ---- SYSCALL and SYSENTER (AMD64 APM vol. 3); the helper that calls us adds the instruction's length, 2, afterwards */
static void enter_kernel(Vcpu *v, uint32_t selector, bool code64) {
    ENV32(v, CS) = selector, ENV64(v, CS + SEGMENT_BASE) = 0, ENV32(v, CS + SEGMENT_LIMIT) = ~0u;
    ENV32(v, CS + SEGMENT_FLAGS) = code64 ? 0x00a09b00 : 0x00c09b00;
    ENV32(v, SS) = selector + 8, ENV64(v, SS + SEGMENT_BASE) = 0, ENV32(v, SS + SEGMENT_LIMIT) = ~0u;
    ENV32(v, SS + SEGMENT_FLAGS) = 0x00c09300;
    ENV32(v, HFLAGS) &= ~(uint32_t)(HF_CPL | HF_CS32 | HF_SS32 | HF_CS64 | (code64 ? 1 << 6 : 0));
    ENV32(v, HFLAGS) |= HF_CS32 | HF_SS32 | (code64 ? HF_CS64 : 0);
}
static uint64_t flags(Vcpu *v) {
    uint64_t value = 0;
    api.reg_read(v->uc, 25 /* UC_X86_REG_EFLAGS: computes the lazy condition codes */, &value);
    return value & 0xffffffff;
}
static void on_syscall(void *uc, Vcpu *v) {
    (void)uc;
    uint32_t selector = (ENV64(v, layout.star) >> 32) & 0xfffc;
    if (!(ENV64(v, layout.efer) & EFER_SCE)) api.raise_exception_err_ra(v->env, VECTOR_UD, 0, 0);
    v->n_syscalls++;
    if (ENV32(v, HFLAGS) & HF_LMA) {
        uint64_t before = flags(v);
        bool code64 = ENV32(v, HFLAGS) & HF_CS64;
        ENV64(v, RCX) = ENV64(v, RIP) + 2;
        ENV64(v, R11) = before & ~(uint64_t)FLAG_RF;
        ENV64(v, EFLAGS) &= ~(ENV64(v, layout.star + 32) | FLAG_RF);
        ENV32(v, DF) = ENV64(v, layout.star + 32) & 0x400 ? 1 : ENV32(v, DF);
        enter_kernel(v, selector, true);
        ENV64(v, RIP) = ENV64(v, layout.star + (code64 ? 16 : 24)) - 2; /* LSTAR, or CSTAR from compatibility mode */
    } else {
        ENV64(v, RCX) = (uint32_t)(ENV64(v, RIP) + 2);
        ENV64(v, EFLAGS) &= ~(uint64_t)(FLAG_IF | FLAG_RF | FLAG_VM);
        enter_kernel(v, selector, false);
        ENV64(v, RIP) = (uint32_t)ENV64(v, layout.star) - 2;
    }
}
static void on_sysenter(void *uc, Vcpu *v) {
    (void)uc;
    uint32_t selector = ENV32(v, layout.sysenter) & 0xfffc;
    v->n_syscalls++;
    if (!selector) api.raise_exception_err_ra(v->env, VECTOR_GP, 0, 0);
    ENV64(v, EFLAGS) &= ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF);
    enter_kernel(v, selector, ENV32(v, HFLAGS) & HF_LMA);
    ENV64(v, RSP) = ENV64(v, layout.sysenter + 8);
    ENV64(v, RIP) = ENV64(v, layout.sysenter + 16) - 2;
}

/* ---- the time stamp counter counts ns of machine time */
static uint32_t on_rdtsc(void *uc, Vcpu *v) {
    (void)uc;
    int64_t elapsed = v->virtual_time ? vcpu_units(v) : monotonic_ns();
    if (!v->virtual_time && elapsed > v->tsc_end) elapsed = v->tsc_end;
    uint64_t now = (uint64_t)elapsed + (uint64_t)v->tsc_base;
    ENV64(v, RAX) = (uint32_t)now;
    ENV64(v, RDX) = now >> 32;
    return 1;
}
static uint32_t on_rdtscp(void *uc, Vcpu *v) {
    ENV64(v, RCX) = ENV32(v, layout.tsc_aux);
    return on_rdtsc(uc, v);
}

/* Before it asks a hook, Unicorn restores the guest's state from the place in the translated code: a search among all blocks, half of
 * what the instruction costs. These have stored it right before, so that there is nothing to restore. */
enum { STORED = 3 };
static const char *const helpers[STORED] = {"helper_rdtsc_x86_64", "helper_rdtscp_x86_64", "helper_syscall_x86_64"};
static bool (*stock_restore)(void *cpu, uintptr_t place, bool will_exit);
static struct { uintptr_t begin, size; } stored[STORED];
static bool on_restore(void *cpu, uintptr_t place, bool will_exit) {
    uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    for (int i = 0; i < STORED; i++)
        if (caller - stored[i].begin < stored[i].size) return true;
    return stock_restore(cpu, place, will_exit);
}
bool deliver_stored(void *library) {
    for (int i = 0; i < STORED; i++) {
        void *helper = dlsym(library, helpers[i]);
        Dl_info info;
        ElfW(Sym) *symbol;
        if (!helper || !dladdr1(helper, &info, (void **)&symbol, RTLD_DL_SYMENT) || !symbol) return false;
        stored[i].begin = (uintptr_t)helper;
        stored[i].size = symbol->st_size;
    }
    return library_redirect(library, &(Redirect){"cpu_restore_state_x86_64", on_restore, (void **)&stock_restore}, 1);
}

/* Unicorn ends the process when a privilege change needs the TSS and the task register holds none (LTR of a null selector,
 * a task switch to nothing). To the guest that is an invalid TSS, which ends in a triple fault if there is no stack at all. */
static void (*stock_abort)(void *cpu, const char *format, ...) __attribute__((noreturn));
static void __attribute__((noreturn)) on_abort(void *cpu, const char *format, ...) {
    enum { DESCRIPTOR_P = 1 << 15 };
    Vcpu *v = vcpu_of(cpu);
    uint32_t tr = v ? ENV32(v, TR + SEGMENT_FLAGS) : 0;
    if (!v || ((tr & DESCRIPTOR_P) && (tr >> 8 & 7) == 1)) stock_abort(cpu, format);
    ENV32(v, layout.exception_is_int) = 0;
    api.raise_exception_err_ra(v->env, VECTOR_TS, (int)(ENV32(v, TR) & 0xfffc), 0);
    __builtin_unreachable();
}
bool deliver_guard(void *library) {
    return library_redirect(library, &(Redirect){"cpu_abort_x86_64", on_abort, (void **)&stock_abort}, 1);
}

bool deliver_hooks(Vcpu *v, const int *instructions) {
    return hook(v, HOOK_INTR, on_interrupt, 0) && hook(v, HOOK_INSN_INVALID, on_invalid, 0) &&
           hook(v, HOOK_INSN, on_syscall, instructions[INSN_SYSCALL]) && hook(v, HOOK_INSN, on_sysenter, instructions[INSN_SYSENTER]) &&
           hook(v, HOOK_INSN, on_rdtsc, instructions[INSN_RDTSC]) && hook(v, HOOK_INSN, on_rdtscp, instructions[INSN_RDTSCP]);
}
