/* A second cache of where blocks are, behind the one that translated code looks into.
 *
 * Unicorn's first has 4096 places, and one for each 64th of a page; where a jump does not find its block there, the page of it is
 * translated, and a hash table of all blocks searched: one jump in fifteen of a Linux kernel at work. This one has as many places as
 * it turns out to need, and answers by the softmmu's TLB alone.
 *
 * The invariant: a block is found here only if Unicorn's search would have found it too: it is for that address in that state of the
 * processor, is still valid, and lies as a whole in the page of memory that the TLB has for the address now. */
#define _GNU_SOURCE
#include "globals.h"
#include <stdlib.h>

enum { FEWEST = 1024, MOST = 16384 }; /* places; twice as many when so many blocks took another's */
enum { CODE = offsetof(TlbEntry, code), CF_NOCACHE = 1 << 16, CF_COMPARED = (int)0xff0effff, PAGE = 4096 };
typedef struct { /* the head of Unicorn's TranslationBlock; proved by layout.py */
    uint64_t pc, cs_base;
    uint32_t flags;
    uint16_t size, instructions;
    uint32_t cflags;
} Block;
static Block *(*stock_lookup)(void *, uint64_t, uint64_t, uint32_t, uint32_t);

static Place *place(const Jumps *j, uint64_t pc) { return j->places + (pc * 0x9e3779b97f4a7c15 >> 40 & (j->count - 1)); }

/* Begin anew, with at least so many places; without memory there are none. */
static void make_room(Jumps *j, unsigned count) {
    free(j->places);
    j->places = calloc(count, sizeof *j->places);
    j->count = j->places ? count : 0;
    j->taken = 0;
}
static void keep(Jumps *j, Block *block, uint8_t *host) {
    if (!j->count && j->taken) return;
    if (!j->count) make_room(j, FEWEST);
    else if (j->taken > j->count && j->count < MOST) make_room(j, 2 * j->count);
    if (!j->count) {
        j->taken = 1; /* do not try again */
        return;
    }
    Place *p = place(j, block->pc);
    j->taken += p->block != NULL;
    *p = (Place){block, host};
}
static Block *lookup(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t compared) {
    Globals *g = globals_of(cpu);
    if (!g) return stock_lookup(cpu, pc, cs_base, flags, compared);
    Jumps *j = &g->jumps;
    uint8_t *host = memory_behind(g->vcpu, pc, CODE);
    if (host && j->count) {
        Place *p = place(j, pc);
        Block *b = p->block;
        if (b && p->host == host && b->pc == pc && b->cs_base == cs_base && b->flags == flags && (b->cflags & CF_COMPARED) == compared) return b;
    }
    Block *b = stock_lookup(cpu, pc, cs_base, flags, compared);
    if (b && !(b->cflags & CF_NOCACHE) && (pc & (PAGE - 1)) + b->size <= PAGE && (host = memory_behind(g->vcpu, pc, CODE))) keep(j, b, host);
    return b;
}

/* All blocks are gone. */
void jumps_forget(Jumps *j) {
    if (j->count) make_room(j, j->count);
}
void jumps_free(Jumps *j) { free(j->places); }
bool jumps_install(void *library) {
    return library_redirect(library, &(Redirect){"tb_htable_lookup_x86_64", lookup, (void **)&stock_lookup}, 1);
}
