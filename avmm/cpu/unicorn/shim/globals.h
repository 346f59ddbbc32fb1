/* What is known of an engine's TLB beyond Unicorn's own fields; see globals.c. */
#ifndef AVMM_GLOBALS_H
#define AVMM_GLOBALS_H
#include "tlb.h"
#include "vcpu.h"
enum { LISTED = 1024, EXECUTABLE = 8 };
typedef struct { uint64_t address, mask; } Large; /* a region that covers large pages, as in TlbDesc */
typedef struct { void *block; uint8_t *host; } Place; /* a block, and its first byte in host memory */
enum { GROUPS = 128, GROUP = 32, WAYS = 4 }; /* of near entries: those of one page are in one group, those that collide in one line */
typedef struct { /* of a block: its address and the age of what is known of that, for which state of the processor it is, where its code is */
    uint64_t key;
    uint32_t flags;
    int32_t code;
} Near;
typedef struct { Near way[WAYS]; } __attribute__((aligned(64))) Line;
typedef struct { /* see jumps.c */
    uint64_t age[2];             /* of what is known of the lower and the upper half of addresses */
    const size_t *invalidations; /* how many blocks Unicorn has dropped */
    size_t seen;                 /* ... and how many it had when the ages were last looked at */
    uint8_t *origin;             /* code that others are so far from */
    Place *places;
    unsigned count, taken;
    Line near[GROUPS][GROUP];
} Jumps;
typedef struct Globals {
    Vcpu *vcpu;
    TlbFast *tlb;
    uint64_t last_entry;    /* the page-table entry that the processor read last */
    unsigned count;         /* entries of other than global pages since the last CR3; only the first are listed */
    Large large[MMU_MODES]; /* of global large pages */
    uint64_t list[LISTED];  /* page | mode << 1 | EXECUTABLE */
    Jumps jumps;
} Globals;

Globals *globals_of(const void *uc_or_cpu); /* NULL for an engine that is not ours */
void globals_register(Globals *g, Vcpu *v);
void globals_filled(Globals *g, TlbEntry *entry, uint64_t virtual, int prot, int mode, uint64_t size);
bool globals_install(void *library);
/* jumps.c: where the blocks are that code jumps to */
bool jumps_install(void *library);
void jumps_register(Globals *g, Vcpu *v);
void jumps_in_place(const Vcpu *v, uint8_t *code, size_t size); /* translated code, right after it was made */
void jumps_forget(Jumps *j);                              /* blocks are gone */
void jumps_forget_near(Jumps *j);                         /* the TLB is empty */
void jumps_forget_mapped(Globals *g);                     /* the same, and Unicorn shall forget what it knows of any page */
void jumps_forget_space(Jumps *j);                        /* CR3 is another: the lower half of addresses */
void jumps_forget_private(void *cpu, uint64_t page);      /* ... and a page that was its own */
void jumps_free(Jumps *j);
#endif
