/* Breakpoints, watchpoints and single steps, which the guest cannot see and its clock does not feel.
 *
 * A block that a stop may fall into is not executed as one piece but instruction by instruction ("walked"), each in a
 * block of its own that Unicorn translates on request (cflags_next_tb, its instruction count). No guest code is patched
 * and no translated code is thrown away.
 *
 * The invariant: a walked block counts as the whole block does. Its units are counted when it is entered, interrupts wait
 * for its end, a slice ends behind it, so that a debugged machine in virtual time stays identical to one left alone. */
#include "vcpu.h"

enum { ONE_INSTRUCTION = 1, PAGE = 4096, HOOK_MEM_READ = 1 << 10, HOOK_MEM_WRITE = 1 << 11, MEM_WRITE = 17 };
enum { WALK_NOT, WALK_ENTERED, WALK_EXECUTING };
enum { STEP_NONE, STEP_WANTED, STEP_DONE, STEP_HANDLER };
enum { CPU_INTERRUPT_VIRQ = 0x100 };

static uint64_t program_counter(Vcpu *v) {
    uint64_t rip = ENV64(v, RIP);
    return ENV32(v, HFLAGS) & HF_CS64 ? rip : (uint32_t)(rip + ENV64(v, CS + SEGMENT_BASE));
}
static uint64_t stack_pointer(Vcpu *v) { return ENV64(v, RSP) + ENV64(v, SS + SEGMENT_BASE); }

/* The first breakpoint at or behind `address`, as an index. */
static int breakpoint_from(const Debug *d, uint64_t address) {
    int low = 0, high = d->breakpoint_count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (d->breakpoints[middle] < address) low = middle + 1;
        else high = middle;
    }
    return low;
}
static bool breakpoint_in(const Debug *d, uint64_t first, uint64_t end) {
    int i = breakpoint_from(d, first);
    return i < d->breakpoint_count && d->breakpoints[i] < end;
}
static void refresh(Vcpu *v) {
    Debug *d = &v->debug;
    d->active = d->breakpoint_count || d->watch_count || d->step || d->in_block || d->skipping || d->hit;
    if (d->active) vcpu_withhold(v, ALL);
}

/* ---- a block in pieces */
/* Host address of the code at a linear address, which has just been executed. */
static uint8_t *code_at(Vcpu *v, uint64_t linear) {
    uint64_t physical;
    return api.vmem_translate(v->uc, linear, 4, &physical) ? NULL : memory_host(v, physical, 1);
}
static void begin_block(Vcpu *v, uint64_t address, uint64_t end) {
    Debug *d = &v->debug;
    d->in_block = true, d->start = d->at = address, d->end = end;
    if (v->faststore) {
        uint64_t page = (end - 1) & ~(uint64_t)(PAGE - 1);
        d->code[0] = code_at(v, address);
        d->code[1] = page > address ? code_at(v, page) : NULL;
        faststore_walk(v->faststore, v);
    }
    d->held = CPU32(v, layout.interrupt_request) & CPU_INTERRUPT_VIRQ;
    CPU32(v, layout.interrupt_request) &= ~CPU_INTERRUPT_VIRQ;
}
static void end_block(Vcpu *v) {
    Debug *d = &v->debug;
    if (!d->in_block) return;
    d->in_block = d->again_for_store = false;
    d->walk = WALK_NOT;
    if (v->faststore) faststore_walk(v->faststore, NULL);
    if (d->held) vcpu_drive(v, true);
}
static bool within(const uint8_t *host, int length, const uint8_t *code, uint64_t size) {
    return code && host < code + size && host + length > code;
}
/* A store to a page with code, before it is made. Where it hits the block it is in, a whole block would be given up here: the
 * store is executed and counted once more as a block of its own, and the rest is a block anew. So it is here. */
void debug_code_store(Vcpu *v, uint8_t *host, int length, uintptr_t retaddr) {
    Debug *d = &v->debug;
    uint64_t first = PAGE - (d->start & (PAGE - 1)), size = d->end - d->start;
    if (!d->in_block || d->again_for_store || d->walk != WALK_EXECUTING || !retaddr) return;
    if (!within(host, length, d->code[0], size < first ? size : first) && !within(host, length, d->code[1], size - first)) return;
    end_block(v);
    d->again_for_store = true;
    api.restore_state(v->cpu, retaddr, true);
    CPU32(v, layout.cflags_next_tb) = ONE_INSTRUCTION;
    api.loop_exit(v->cpu);
}
/* One instruction has been executed, or has ended in an exception. */
static void executed(Debug *d) {
    d->skipping = false;
    if (d->step == STEP_WANTED) d->step = STEP_DONE;
}

/* Whether the instruction stepped is REP with nothing left to do: Unicorn comes back to it once more, a processor does not. */
static bool rep_has_ended(Vcpu *v, uint64_t pc) {
    enum { MOST_PREFIXES = 6, NARROWER = 0x67 };
    bool rep = false, other_size = false, long_mode = ENV32(v, HFLAGS) & HF_CS64, wide = ENV32(v, HFLAGS) & HF_CS32;
    uint8_t code[MOST_PREFIXES];
    if (pc != v->debug.skip_pc || api.vmem_read(v->uc, pc, 4, code, sizeof code)) return false;
    for (int i = 0; i < MOST_PREFIXES; i++) {
        if (code[i] == 0xf2 || code[i] == 0xf3) rep = true;
        else if (code[i] == NARROWER) other_size = true;
        else if (code[i] != 0x66 && !(long_mode && (code[i] & 0xf0) == 0x40) && (code[i] & 0xe7) != 0x26 && (code[i] & 0xfe) != 0x64) {
            bool string = (code[i] & 0xfc) == 0x6c || ((code[i] & 0xf0) == 0xa0 && code[i] >= 0xa4 && (code[i] & 0xfe) != 0xa8);
            uint64_t mask = long_mode ? (other_size ? 0xffffffff : ~0ull) : wide != other_size ? 0xffffffff : 0xffff;
            return rep && string && !(ENV64(v, RCX) & mask);
        }
    }
    return false;
}

/* Whether the debugger wants the machine to stop before the instruction at `pc`, and why. */
static bool stop_here(Vcpu *v, uint64_t pc) {
    Debug *d = &v->debug;
    if (d->step == STEP_HANDLER && pc == d->interrupted_pc && stack_pointer(v) == d->interrupted_sp) d->step = d->behind;
    if (d->step == STEP_DONE && ((pc >= d->range_begin && pc < d->range_end) || rep_has_ended(v, pc))) d->step = STEP_WANTED;
    bool skip = d->skipping && pc == d->skip_pc && stack_pointer(v) == d->skip_sp;
    if (d->hit) d->reason = STOP_WATCHPOINT;
    else if (!skip && breakpoint_in(d, pc, pc + 1)) d->reason = STOP_BREAKPOINT;
    else if (d->step == STEP_DONE) d->reason = STOP_STEP;
    else return false;
    d->hit = false;
    d->step = STEP_NONE;
    d->stopped = v->why;
    v->why = EXIT_DEBUG;
    return true;
}

/* Before each entry into Unicorn. True: the machine stops right here, in the middle of a block. */
bool debug_enter(Vcpu *v) {
    Debug *d = &v->debug;
    uint64_t pc = program_counter(v);
    d->again = false;
    d->walk = WALK_NOT;
    if (d->in_block && pc != d->at) end_block(v); /* the debugger has set RIP */
    if (d->in_block) {
        if (stop_here(v, pc)) return true;
        CPU32(v, layout.cflags_next_tb) = ONE_INSTRUCTION;
        d->walk = WALK_ENTERED;
    }
    return false;
}
/* After each. True: Unicorn was left in the course of a walk, and is to be entered again. A HLT ends its block. */
bool debug_left(Vcpu *v) {
    Debug *d = &v->debug;
    if (d->again) return true;
    if (CPU32(v, layout.halted)) {
        if (d->walk == WALK_EXECUTING) executed(d);
        end_block(v);
        if (v->why == EXIT_BUDGET && stop_here(v, program_counter(v))) v->halted = true;
    }
    refresh(v);
    return false;
}

static bool leave(Vcpu *v) {
    v->debug.again = true;
    api.emu_stop(v->uc);
    return true;
}
/* In the block hook, before the block is counted. True: it is not to be counted, and is either left at once or a piece of one that was. */
bool debug_before_block(Vcpu *v, uint64_t address, uint32_t size) {
    Debug *d = &v->debug;
    if (d->walk == WALK_ENTERED) {
        d->walk = WALK_EXECUTING;
        d->next = address + size;
        return true;
    }
    if (d->walk == WALK_EXECUTING) {
        executed(d);
        d->walk = WALK_NOT;
        if (address == d->next && address < d->end) {
            d->at = address;
            return leave(v);
        }
        bool held = d->held;
        end_block(v);
        if (held) return true; /* the interrupt is taken first */
    }
    if (v->left <= 0 || !stop_here(v, address)) return false;
    api.emu_stop(v->uc);
    return true;
}
/* In the block hook, when the block has been counted: walk it if a stop may fall into it. */
void debug_after_block(Vcpu *v, uint64_t address, uint32_t size) {
    Debug *d = &v->debug;
    bool step = d->step == STEP_WANTED || d->step == STEP_DONE;
    bool back = d->step == STEP_HANDLER && d->interrupted_pc > address && d->interrupted_pc < address + size;
    if (step || back || d->watch_count || breakpoint_in(d, address + 1, address + size)) {
        begin_block(v, address, address + size);
        leave(v);
    } else {
        d->skipping = d->again_for_store = false;
        refresh(v);
    }
}
/* An exception, or a VM exit other than an interrupt window, ends the block and the instruction. */
void debug_exception(Vcpu *v) {
    executed(&v->debug);
    end_block(v);
}
/* An interrupt is about to be delivered. A step goes through its handler, unless the debugger wants to see that. */
void debug_interrupt(Vcpu *v) {
    Debug *d = &v->debug;
    if (d->step != STEP_WANTED && d->step != STEP_DONE) return;
    d->interrupted_pc = program_counter(v);
    d->interrupted_sp = stack_pointer(v);
    d->behind = d->step;
    d->step = d->show_interrupts ? STEP_DONE : STEP_HANDLER;
}
/* INTR changes in the middle of a walk: at the block's end. */
bool debug_holds_interrupt(Vcpu *v, bool pending) {
    if (v->debug.in_block) v->debug.held = pending;
    return v->debug.in_block;
}

/* ---- what the debugger sets, while Unicorn is not running */
/* The machine becomes one that was saved in the middle of a block. */
void debug_enter_block(Vcpu *v, uint64_t start, uint64_t at, uint64_t end) {
    begin_block(v, start, end);
    v->debug.at = at;
    refresh(v);
}
void debug_resume(Vcpu *v) {
    Debug *d = &v->debug;
    d->skipping = true;
    d->skip_pc = program_counter(v);
    d->skip_sp = stack_pointer(v);
    d->hit = false;
    refresh(v);
}
void debug_step(Vcpu *v, uint64_t begin, uint64_t end, bool show_interrupts) {
    Debug *d = &v->debug;
    d->step = STEP_WANTED;
    d->range_begin = begin, d->range_end = end;
    d->show_interrupts = show_interrupts;
    debug_resume(v);
}
void debug_forget_step(Vcpu *v) {
    v->debug.step = STEP_NONE;
    refresh(v);
}
void debug_set_breakpoints(Vcpu *v, uint64_t *sorted, int count) {
    Debug *d = &v->debug;
    PyMem_Free(d->breakpoints);
    d->breakpoints = sorted;
    d->breakpoint_count = count;
    refresh(v);
}

/* Unicorn names an access by its guest-physical address; it may begin before the watched bytes. */
static void on_access(void *uc, int type, uint64_t address, int size, int64_t value, Vcpu *v) {
    (void)uc, (void)value;
    Debug *d = &v->debug;
    for (int i = 0; i < d->watch_count && !d->hit; i++) {
        Watch *w = &d->watches[i];
        if (!(w->kinds & (type == MEM_WRITE ? WATCH_WRITE : WATCH_READ))) continue;
        if (address >= w->address + w->length || address + (uint64_t)size <= w->address) continue;
        d->hit = true;
        d->hit_watch = i;
    }
}
static void forget_code(Vcpu *v) {
    api.tb_flush(v->cpu);
    if (v->faststore) faststore_no_code(v->faststore);
}
/* Translated code calls the hooks only if it was translated while there were some: forget it when that changes. */
bool debug_set_watchpoints(Vcpu *v, const Watch *watches, int count) {
    Debug *d = &v->debug;
    bool before = d->watch_count;
    memcpy(d->watches, watches, (size_t)count * sizeof *watches);
    d->watch_count = count;
    d->hit = false;
    refresh(v);
    if (before == !!count) return true;
    if (!count) {
        api.hook_del(v->uc, d->access_hook);
        forget_code(v);
        return true;
    }
    bool done = !api.hook_add(v->uc, &d->access_hook, HOOK_MEM_READ | HOOK_MEM_WRITE, on_access, v, (uint64_t)1, (uint64_t)0);
    forget_code(v);
    return done;
}
