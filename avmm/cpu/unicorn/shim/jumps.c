/* Where translated code goes on: the block for the address that RIP has now.
 *
 * Unicorn's translated code asks for it wherever it leaves a page or jumps to a computed address, every other block of a Linux kernel at
 * work. The answer costs two lines of memory, seldom in the host's caches: a place of 4096, and the head of the block which lies
 * there. Where another block does, the page is translated and a hash table of all blocks searched.
 *
 * So translated code asks here instead, as soon as it is made. A near entry is all that has to be known, and there are four in a line:
 * a block's address, for what state of the processor it is, and where its code is. All entries of a page lie together, to be
 * dropped with it. What drops many changes a number that addresses are kept with: of all for a TLB that is emptied and for translated
 * code that is gone, of the lower half of addresses for CR3. Behind it a second table has blocks by where they are in host memory: what CR3 took
 * from the first is found there again by the softmmu's TLB alone.
 *
 * The invariant: a block is found here only if Unicorn's search would have found it too: it is for that address in that state of the
 * processor, is still valid, and lies as a whole in the page of memory that the TLB has for the address now, or had when Unicorn last
 * dropped anything of that page. */
#define _GNU_SOURCE
#include "globals.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { FEWEST = 1024, MOST = 16384 }; /* places; twice as many when so many blocks took another's */
enum { FLAGS_OF_BLOCKS = 0x73100 }; /* of RFLAGS, those that a block is translated for; layout.py proves it */
enum { CODE = offsetof(TlbEntry, code), CF_NOCACHE = 1 << 16, CF_COMPARED = (int)0xff0effff, CF_CLUSTER = (int)0xff000000, PAGE = 4096 };
#define AGE (1ull << 48) /* above an address, whose own bits there are all alike */
typedef struct { /* the head of Unicorn's TranslationBlock; proved by layout.py */
    uint64_t pc, cs_base;
    uint32_t flags;
    uint16_t size, instructions;
    uint32_t cflags, unused;
    uint8_t *code;
} Block;
static ptrdiff_t to_descriptors; /* from env to the softmmu's */
static Block *(*stock_lookup)(void *, uint64_t, uint64_t, uint32_t, uint32_t);
static void *(*stock_next)(void *);
static void (*stock_forget_page)(void *, uint64_t);

/* -- near entries */
/* Where an engine keeps its own: eight bytes of padding before the softmmu's descriptors. */
static Globals **registered(uint8_t *env) { return (Globals **)(env + to_descriptors) - 1; }
static Line *group(Jumps *j, uint64_t pc) { return j->near[pc / PAGE * 0x9e3779b97f4a7c15 >> 57]; }
static Line *line(Jumps *j, uint64_t pc) { return group(j, pc) + ((uint32_t)pc * 0x9e3779b1u >> 27); }
_Static_assert(GROUPS == 1 << (64 - 57) && GROUP == 1 << (32 - 27), "the hashes");

static void grow_older(Jumps *j, int half) {
    if (!(j->age[half] += AGE)) memset(j->near, 0, sizeof j->near);
}
void jumps_forget_space(Jumps *j) { grow_older(j, 0); }
void jumps_forget_near(Jumps *j) {
    grow_older(j, 0);
    grow_older(j, 1);
}
/* A page, and what begins on the page before: of both caches, and of Unicorn's only. */
static void forget_page(void *cpu, uint64_t linear) {
    stock_forget_page(cpu, linear);
    Globals *g = globals_of(cpu);
    for (uint64_t i = 0; g && i < 2; i++) memset(group(&g->jumps, linear - i * PAGE), 0, sizeof *g->jumps.near);
}
void jumps_forget_private(void *cpu, uint64_t page) {
    if (page >> 63) forget_page(cpu, page);
    else stock_forget_page(cpu, page); /* jumps_forget_space() does the rest */
}
void jumps_forget_mapped(Globals *g) {
    enum { STOCK_GROUPS = 64 };
    for (uint64_t page = 1; page < STOCK_GROUPS; page += 2) stock_forget_page(g->vcpu->cpu, page * PAGE);
    jumps_forget_near(&g->jumps);
}
static uint64_t aged(const Jumps *j, uint64_t pc) { return pc ^ j->age[pc >> 63]; }

static void *__attribute__((noinline)) find_next(Globals *g, uint64_t pc, uint64_t base, uint32_t flags);
/* The code to go on with; that which leaves translated code where there is none. */
static void *next(uint8_t *env) {
    Globals *g = *registered(env);
    Jumps *j = &g->jumps;
    uint64_t base = *(uint64_t *)(env + CS + SEGMENT_BASE), pc = *(uint64_t *)(env + RIP) + base;
    uint32_t flags = *(uint32_t *)(env + HFLAGS) | (*(uint32_t *)(env + EFLAGS) & FLAGS_OF_BLOCKS);
    if (!base && *j->invalidations == j->seen) {
        const Line *l = line(j, pc);
        uint64_t key = aged(j, pc);
        for (int i = 0; i < WAYS; i++) /* what was never made has flags 0, and HF_SOFTMMU is always set */
            if (l->way[i].key == key && l->way[i].flags == flags) return j->origin + l->way[i].code;
    }
    return find_next(g, pc, base, flags);
}

/* -- places */
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
static Block *search(Globals *g, void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t compared) {
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
static Block *lookup(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, uint32_t compared) {
    Globals *g = globals_of(cpu);
    return g ? search(g, cpu, pc, cs_base, flags, compared) : stock_lookup(cpu, pc, cs_base, flags, compared);
}
static void *find_next(Globals *g, uint64_t pc, uint64_t base, uint32_t flags) {
    Jumps *j = &g->jumps;
    if (*j->invalidations != j->seen) {
        j->seen = *j->invalidations;
        jumps_forget_near(j);
    }
    g->vcpu->searches++;
    Block *b = search(g, g->vcpu->cpu, pc, base, flags, (uint32_t)CF_CLUSTER);
    if (!b) return stock_next(g->vcpu->env);
    if (base || b->cflags & CF_NOCACHE) return b->code;
    if (!j->origin) j->origin = b->code;
    ptrdiff_t code = b->code - j->origin;
    if (code == (int32_t)code) {
        Line *l = line(j, pc);
        memmove(l->way + 1, l->way, sizeof *l - sizeof *l->way); /* the oldest goes */
        *l->way = (Near){aged(j, pc), flags, (int32_t)code};
    }
    return b->code;
}

/* -- translated code that asks here: MOV RDI, RBP; CALL of Unicorn's function, near or by a pointer behind the code; JMP RAX */
static const uint8_t near_call[] = {0x48, 0x8b, 0xfd, 0xe8, 0, 0, 0, 0, 0xff, 0xe0}, far_call[] = {0x48, 0x8b, 0xfd, 0xff, 0x15, 0, 0, 0, 0, 0xff, 0xe0};

static bool is(const uint8_t *at, const uint8_t *call, size_t distance, size_t size) {
    return !memcmp(at, call, distance) && !memcmp(at + distance + 4, call + distance + 4, size - distance - 4);
}
static uint8_t *meant(const uint8_t *distance) {
    int32_t value;
    memcpy(&value, distance, sizeof value);
    return (uint8_t *)distance + 4 + value;
}
void jumps_in_place(const Vcpu *v, uint8_t *code, size_t size) {
    if (!v->faststore) return;
    uint8_t *last = code + size - sizeof near_call;
    for (uint8_t *at = code; at <= last; at++)
        if (at < last && is(at, far_call, 5, sizeof far_call)) {
            uint8_t *pointer = meant(at + 5);
            bool inside = pointer >= code && pointer + sizeof(void *) <= code + size; /* what looks like a call may be a guest's constant */
            if (inside && *(void **)pointer == (void *)stock_next) *(void **)pointer = (void *)next;
        } else if (is(at, near_call, 4, sizeof near_call) && meant(at + 4) == (uint8_t *)stock_next) {
            ptrdiff_t distance = (uint8_t *)next - (at + 8);
            int32_t value = (int32_t)distance;
            if (value == distance) memcpy(at + 4, &value, sizeof value);
        }
}

/* All blocks are gone. */
void jumps_forget(Jumps *j) {
    if (j->count) make_room(j, j->count);
    jumps_forget_near(j);
}
void jumps_register(Globals *g, Vcpu *v) {
    Jumps *j = &g->jumps;
    to_descriptors = (uint8_t *)v->tlb - v->env;
    *registered(v->env) = g;
    j->invalidations = (const size_t *)(*(uint8_t **)((uint8_t *)v->uc + layout.engine_tcg) + layout.invalidations);
    j->seen = *j->invalidations;
}
void jumps_free(Jumps *j) { free(j->places); }
bool jumps_install(void *library) {
    const Redirect calls[] = {
        {"tb_htable_lookup_x86_64", lookup, (void **)&stock_lookup},
        {"tb_flush_jmp_cache_x86_64", forget_page, (void **)&stock_forget_page},
    };
    stock_next = (void *(*)(void *))dlsym(library, "helper_lookup_tb_ptr_x86_64");
    return stock_next && library_redirect(library, calls, sizeof calls / sizeof *calls);
}
