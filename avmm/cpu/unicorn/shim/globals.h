/* What is known of an engine's TLB beyond Unicorn's own fields; see globals.c. */
#ifndef AVMM_GLOBALS_H
#define AVMM_GLOBALS_H
#include "tlb.h"
#include "vcpu.h"
enum { LISTED = 1024, EXECUTABLE = 8 };
typedef struct { uint64_t address, mask; } Large; /* a region that covers large pages, as in TlbDesc */
typedef struct { void *block; uint8_t *host; } Place; /* a block, and its first byte in host memory */
typedef struct { Place *places; unsigned count, taken; } Jumps; /* see jumps.c */
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
/* jumps.c: a second cache of blocks */
void jumps_forget(Jumps *j);
void jumps_free(Jumps *j);
bool jumps_install(void *library);
#endif
