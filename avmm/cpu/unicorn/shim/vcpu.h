/* The virtual CPU's native half: what the C files of the shim share.
 *
 * Everything that Unicorn longjmps over, or that runs for each block or each word, is C. Python is called for port and
 * memory-mapped accesses without a window, for intercepted instructions and for interrupt acknowledge. Offsets into
 * Unicorn's structures and addresses of its functions are found and verified by layout.py. */
#ifndef AVMM_VCPU_H
#define AVMM_VCPU_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

/* Functions of libunicorn, by the names it exports. */
typedef struct {
    int (*emu_start)(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int (*emu_stop)(void *uc);
    int (*reg_read)(void *uc, int reg, void *value);
    int (*hook_add)(void *uc, size_t *handle, int type, void *callback, void *data, uint64_t begin, uint64_t end, ...);
    int (*mmio_map)(void *uc, uint64_t address, size_t size, void *read, void *read_data, void *write, void *write_data);
    int (*mem_map_ptr)(void *uc, uint64_t address, size_t size, uint32_t perms, void *host);
    int (*mem_unmap)(void *uc, uint64_t address, size_t size);
    int (*vmem_translate)(void *uc, uint64_t address, int prot, uint64_t *physical);
    int (*vmem_read)(void *uc, uint64_t address, int prot, void *bytes, size_t size);
    void (*do_interrupt)(void *cpu);
    void (*do_interrupt_hardirq)(void *env, int vector, int is_hw);
    void (*raise_exception_err_ra)(void *env, int vector, int error_code, uintptr_t retaddr);
    void (*check_io[3])(void *env, uint32_t port); /* by size: 1, 2, 4 bytes */
    void (*cpu_interrupt_handler)(void *cpu, int mask);
    uint64_t (*ram_addr_from_host)(void *uc, void *host);
    void (*tb_invalidate_phys_range)(void *uc, uint64_t begin, uint64_t end);
    void (*tb_flush)(void *cpu);
    bool (*restore_state)(void *cpu, uintptr_t retaddr, bool will_exit);
    void (*loop_exit)(void *cpu);
    int (*hook_del)(void *uc, size_t handle);
} Api;

/* Byte offsets: from the engine for the first two, from its translator (TCGContext) for the next, from the CPU state for env and the next
 * group, from its env (CPUX86State) for the last. */
typedef struct {
    unsigned long engine_cpu, engine_tcg, invalidations, env;
    unsigned long interrupt_request, icount_high, halted, cflags_next_tb;
    unsigned long error_code, exception_is_int, exception_next_eip, sysenter, star, efer, tsc_aux;
} Layout;

extern Api api;
extern Layout layout;

/* The head of CPUX86State; its order is verified by layout.py. */
enum { RAX = 0, RCX = 8, RDX = 16, RBX = 24, RSP = 32, RSI = 48, RDI = 56, R11 = 88, RIP = 128, EFLAGS = 136, DF = 172, HFLAGS = 176,
       ES = 184, CS = 208, SS = 232, DS = 256, FS = 280, GS = 304, TR = 352, CR0 = 424, SEGMENT_BASE = 8, SEGMENT_LIMIT = 16, SEGMENT_FLAGS = 20 };
enum { HF_CPL = 3, HF_CS32 = 1 << 4, HF_SS32 = 1 << 5, HF_PE = 1 << 7, HF_CS64 = 1 << 15, HF_LMA = 1 << 14 };

enum { EXIT_BUDGET, EXIT_HALT, EXIT_SHUTDOWN, EXIT_STOPPED, EXIT_ERROR, EXIT_DEBUG };
enum { WINDOWS = 16, SLOTS = 32, TRAIL = 64, WATCHES = 8 };

typedef struct { /* a port served from or into a buffer */
    Py_buffer view;
    Py_ssize_t position;
    int port;
    bool open, out;
} Window;

typedef struct { /* guest-physical memory that is RAM */
    uint64_t base, size;
    uint8_t *host;
} Slot;

typedef struct { /* one step of the trail of exits that a failure report shows */
    uint64_t rip, value, units;
    uint32_t address;
    uint8_t kind, size;
} Step;
enum { STEP_IN, STEP_OUT, STEP_LOAD, STEP_STORE, STEP_EXIT, STEP_IRQ };

typedef struct { /* guest-physical bytes, and the kinds of access that stop the machine */
    uint64_t address, length;
    int kinds;
} Watch;
enum { WATCH_READ = 1, WATCH_WRITE = 2 };
enum { STOP_STEP, STOP_BREAKPOINT, STOP_WATCHPOINT };

typedef struct { /* see debug.c */
    bool active;            /* anything of it has to be looked at, for each block */
    uint64_t *breakpoints;  /* linear addresses, sorted */
    int breakpoint_count, watch_count;
    Watch watches[WATCHES];
    size_t access_hook;
    bool hit;               /* a watched access was made by the instruction just executed ... */
    int hit_watch;          /* ... of this watchpoint */
    int reason, stopped;    /* of the last EXIT_DEBUG; and what it came before, EXIT_STOPPED or EXIT_BUDGET */

    bool in_block;          /* in the middle of a block that is counted already, before the instruction at `at` */
    uint64_t start, at, next, end;
    bool held, again;       /* INTR waits for the block's end; Unicorn was left only to go on */
    int walk;
    uint8_t *code[2];       /* host addresses of the block's first byte, and of its first byte on another page */
    bool again_for_store;   /* the block is a store into its own code, begun anew */

    int step, behind;       /* behind: what `step` is to be when the interrupt's handler has returned */
    bool show_interrupts;
    uint64_t range_begin, range_end;        /* a step goes on while it is in there */
    uint64_t interrupted_pc, interrupted_sp;
    bool skipping;          /* the breakpoint that the machine goes on from does not stop it again */
    uint64_t skip_pc, skip_sp;
} Debug;

typedef struct Vcpu {
    PyObject_HEAD
    struct Vcpu *next;
    void *uc;
    uint8_t *cpu, *env;
    volatile int32_t *icount; /* negative when the next block is to be left at once */
    void *faststore, *tlb; /* tlb: the softmmu's descriptors, NULL where their place is not known */

    int64_t left, end;      /* units = end - left; one unit is one code byte */
    int64_t withheld;       /* of both, while each block has to be looked at */
    int64_t quantum, deadline;
    uint64_t blocks;
    void (*both)(void);     /* the block hook and the exit check: see blocks.c */
    uint64_t last_block, blocks_then, no_string; /* the block before, if `blocks` is still what it was then */
    Debug debug;
    uint64_t in_place;      /* translated blocks that count by themselves */
    uint64_t searches;      /* jumps to blocks that no near entry told */
    int why, running, error;
    int delivering;         /* the vector on its way through the IDT, -1 when none is */
    bool delivering_int;    /* ... which INT n asked for */
    bool halted;            /* HLT was executed in the block at whose end the last run was stopped: not reported yet */
    bool exact;             /* stop at the budget, not at a deadline */
    int64_t tsc_base;       /* added to the time stamp, ns */
    int64_t tsc_end;        /* host time, ns, at which the time stamp stops */
    bool virtual_time;      /* time stamp from units, else from the host */

    uint8_t window_of[65536];
    Window windows[WINDOWS];
    Slot slots[SLOTS];
    struct Region *regions; /* memory-mapped I/O */
    int slot_count;

    uint64_t n_exceptions, n_syscalls, n_in, n_out, n_window, n_interrupts, n_exits, n_loads, n_stores, vectors[256];
    uint64_t run_cycles, run_ns, handler_cycles; /* time stamps of the host: where the time goes */
    Step trail[TRAIL];
    uint64_t steps;

    PyObject *house;        /* a lock that is let go, with the GIL, while guest code executes; NULL or None: both are kept */
    PyThreadState *outdoors; /* the thread that executes guest code without them */
    PyObject *port_in, *port_out, *memory_read, *memory_write, *acknowledge, *window_done, *vmexit, *hypercall;
    PyObject *error_type, *error_value, *error_trace;
} Vcpu;

#define ENV64(v, offset) (*(uint64_t *)((v)->env + (offset)))
#define ENV32(v, offset) (*(uint32_t *)((v)->env + (offset)))
#define ENV16(v, offset) (*(uint16_t *)((v)->env + (offset)))
#define CPU32(v, offset) (*(volatile int32_t *)((v)->cpu + (offset)))

/* shim.c */
int64_t vcpu_call(Vcpu *v, PyObject *function, int count, uint64_t a, uint64_t b, uint64_t c, int64_t otherwise);
int64_t monotonic_ns(void);
void vcpu_drive(Vcpu *v, bool pending);
Vcpu *vcpu_of(const void *cpu);
static inline int64_t vcpu_units(Vcpu *v) { return v->end - v->left; }
/* Let nothing seem to be left (ALL), so that each block asks, or see what is (0). Units stay what they are. */
#define ALL (1ll << 60)
static inline void vcpu_withhold(Vcpu *v, int64_t units) {
    v->left += v->withheld - units;
    v->end += v->withheld - units;
    v->withheld = units;
}
static inline void vcpu_step(Vcpu *v, int kind, uint32_t address, int size, uint64_t value) {
    v->trail[v->steps++ % TRAIL] = (Step){ENV64(v, RIP), value, (uint64_t)vcpu_units(v), address, (uint8_t)kind, (uint8_t)size};
}
/* deliver.c: exceptions, interrupts, VM exits, SYSCALL/SYSENTER, time stamp */
bool deliver_hooks(Vcpu *v, const int *instructions);
bool deliver_guard(void *library);
bool deliver_stored(void *library);
/* blocks.c: what is counted for each block */
bool blocks_hook(Vcpu *v);
bool blocks_install(void *library);
/* ports.c: IN, OUT, INS, OUTS and their windows */
bool port_hooks(Vcpu *v, const int *instructions);
int window_open(Vcpu *v, int port, PyObject *buffer, Py_ssize_t start, bool out);
/* memory.c: RAM slots and memory-mapped accesses */
bool memory_map_ram(Vcpu *v, uint64_t base, uint64_t size, uint8_t *host);
bool memory_map_io(Vcpu *v, uint64_t base, uint64_t size);
bool memory_unmap(Vcpu *v, uint64_t base, uint64_t size);
uint8_t *memory_host(Vcpu *v, uint64_t physical, uint64_t length);
uint8_t *memory_behind(const Vcpu *v, uint64_t linear, size_t kind);
void memory_free_regions(Vcpu *v);
void memory_invalidate(Vcpu *v, uint8_t *host, uint64_t length);
/* debug.c: breakpoints, watchpoints and single steps */
void debug_code_store(Vcpu *v, uint8_t *host, int length, uintptr_t retaddr);
bool debug_enter(Vcpu *v);
bool debug_left(Vcpu *v);
bool debug_before_block(Vcpu *v, uint64_t address, uint32_t size);
void debug_after_block(Vcpu *v, uint64_t address, uint32_t size);
void debug_exception(Vcpu *v);
void debug_interrupt(Vcpu *v);
bool debug_holds_interrupt(Vcpu *v, bool pending);
void debug_resume(Vcpu *v);
void debug_enter_block(Vcpu *v, uint64_t start, uint64_t at, uint64_t end);
void debug_step(Vcpu *v, uint64_t begin, uint64_t end, bool show_interrupts);
void debug_forget_step(Vcpu *v);
void debug_set_breakpoints(Vcpu *v, uint64_t *sorted, int count);
bool debug_set_watchpoints(Vcpu *v, const Watch *watches, int count);
/* strings.c: REP MOVS and REP STOS in bulk */
enum { LONGEST_STRING = 5 }; /* bytes of the instruction, prefixes included */
void string_bulk(Vcpu *v, uint64_t linear, unsigned length);
bool string_may_be(Vcpu *v, uint64_t linear, unsigned length);
/* faststore.c */
typedef struct { const char *name; void *ours, **stock; } Redirect; /* a function of the library, what is called instead, and where to keep it */
bool library_redirect(void *library, const Redirect *calls, size_t count);
bool faststore_install(void *library);
void *faststore_register(Vcpu *v);
void faststore_add_ram(void *store, uint8_t *host, uint64_t size);
void faststore_remove_ram(void *store, uint8_t *host);
void faststore_no_code(void *store);
bool faststore_may_hold_code(void *store, const uint8_t *host, uint64_t length);
void faststore_walk(void *store, Vcpu *walker);
void faststore_unregister(void *store);

enum { INSN_IN, INSN_OUT, INSN_SYSCALL, INSN_SYSENTER, INSN_RDTSC, INSN_RDTSCP, INSN_COUNT };
enum { HOOK_INTR = 1, HOOK_INSN = 2, HOOK_BLOCK = 8, HOOK_INSN_INVALID = 1 << 14 };
static inline bool hook(Vcpu *v, int type, void *callback, int instruction) {
    size_t handle;
    return !api.hook_add(v->uc, &handle, type, callback, v, (uint64_t)1, (uint64_t)0, instruction);
}
#endif
