/* Exceptions, interrupts, VM exits, system calls, the time stamp and the block hook.
 *
 * Exceptions and INT n go through the guest's IDT by Unicorn's own do_interrupt, which siglongjmps on a nested fault:
 * no Python frame may be on the stack there. */
#include "vcpu.h"

enum { EXIT_VINTR = 0x64, EXIT_CPUID = 0x72, EXIT_MSR = 0x7c, EXIT_TRIPLE_FAULT = 0x7f, CPU_INTERRUPT_VIRQ = 0x100 };
enum { VECTOR_UD = 6, VECTOR_GP = 13 };
enum { FLAG_RF = 1 << 16, FLAG_VM = 1 << 17, FLAG_IF = 1 << 9 };

static void deliver(Vcpu *v, int vector) {
    v->n_exceptions++;
    v->vectors[vector]++;
    if (ENV32(v, layout.exception_is_int)) /* a fault while INT n is delivered reports the INT itself */
        ENV64(v, RIP) = ENV64(v, layout.exception_next_eip) - (vector == 3 || vector == 4 ? 1 : 2);
    api.do_interrupt(v->cpu);
    ENV32(v, layout.exception_is_int) = 0; /* stale, the next VM exit would resume at a wrong RIP */
}

/* Length of the two-byte instruction at CS:RIP with its prefixes; 2 when it cannot be read. */
static int instruction_length(Vcpu *v) {
    uint64_t rip = ENV64(v, RIP), linear = ENV32(v, HFLAGS) & HF_CS64 ? rip : (uint32_t)(rip + ENV64(v, CS + SEGMENT_BASE));
    uint8_t byte;
    for (int i = 0; i < 14; i++) {
        if (api.vmem_read(v->uc, linear + i, 4, &byte, 1)) break;
        if (byte == 0x0f) return i + 2;
    }
    return 2;
}

static void vm_exit(Vcpu *v, int code) {
    uint32_t info = ENV32(v, layout.error_code);
    v->n_exits++;
    vcpu_step(v, STEP_EXIT, (uint32_t)code, 0, ENV32(v, RCX));
    if (code != EXIT_CPUID && code != EXIT_MSR) { /* VMRUN and its kin: there is no nested virtualization */
        api.raise_exception_err_ra(v->env, VECTOR_UD, 0, 0);
        return;
    }
    int64_t vector = vcpu_call(v, v->vmexit, 2, (uint64_t)code, info, 0, 0);
    if (vector) api.raise_exception_err_ra(v->env, (int)vector, 0, 0);
    ENV64(v, RIP) += instruction_length(v);
}

static void on_interrupt(void *uc, uint32_t number, Vcpu *v) {
    (void)uc;
    if (number < 0x100) {
        deliver(v, (int)number);
        return;
    }
    int code = (int)number - 0x100;
    ENV32(v, layout.exception_is_int) = 0;
    if (code == EXIT_VINTR) { /* the guest can take an interrupt and INTR is high: acknowledge now, not earlier */
        int64_t vector = vcpu_call(v, v->acknowledge, 0, 0, 0, 0, -1);
        if (vector < 0x100) CPU32(v, layout.interrupt_request) &= ~CPU_INTERRUPT_VIRQ;
        if (vector < 0) return;
        v->n_interrupts++;
        vcpu_step(v, STEP_IRQ, (uint32_t)vector & 0xff, 0, 0);
        api.do_interrupt_hardirq(v->env, (int)vector & 0xff, 1);
    } else if (code == EXIT_TRIPLE_FAULT) {
        v->why = EXIT_SHUTDOWN;
        api.emu_stop(v->uc);
    } else
        vm_exit(v, code);
}

static bool on_invalid(void *uc, Vcpu *v) {
    (void)uc;
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
    uint64_t now = (uint64_t)((v->virtual_time ? vcpu_units(v) : monotonic_ns()) + v->tsc_base);
    ENV64(v, RAX) = (uint32_t)now;
    ENV64(v, RDX) = now >> 32;
    return 1;
}

/* ---- the block hook: budget and deterministic clock. It runs right before the block's own exit check, so a stop takes
 * effect at this block's boundary. */
static void on_block(void *uc, uint64_t address, uint32_t size, Vcpu *v) {
    (void)address;
    if (__builtin_expect(CPU32(v, layout.icount_high - 2) < 0, 0)) return; /* about to be left, will be entered again */
    if (__builtin_expect(v->left <= 0, 0)) {
        if (v->exact || v->why || monotonic_ns() >= v->deadline) {
            api.emu_stop(uc);
            return;
        }
        v->left += v->quantum;
        v->end += v->quantum;
    }
    v->left -= size;
    v->blocks++;
}

bool deliver_hooks(Vcpu *v, const int *instructions) {
    return hook(v, HOOK_INTR, on_interrupt, 0) && hook(v, HOOK_INSN_INVALID, on_invalid, 0) &&
           hook(v, HOOK_INSN, on_syscall, instructions[INSN_SYSCALL]) && hook(v, HOOK_INSN, on_sysenter, instructions[INSN_SYSENTER]) &&
           hook(v, HOOK_INSN, on_rdtsc, instructions[INSN_RDTSC]) && hook(v, HOOK_INSN, on_rdtsc, instructions[INSN_RDTSCP]) &&
           hook(v, HOOK_BLOCK, on_block, 0);
}
