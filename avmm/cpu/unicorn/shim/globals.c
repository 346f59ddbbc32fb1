/* Global pages: MOV to CR3 keeps the TLB's entries of pages whose G bit is set, as CR4.PGE asks for.
 *
 * Intel SDM volume 3, 4.10.2.4 and 4.10.4.1. Stock Unicorn drops the whole TLB and all of the block cache with each CR3, so that
 * a kernel which switches between processes finds its own pages and blocks again one by one. Here only what may have changed goes:
 * each entry is tagged when it is made, those of other pages are listed, and the list is worked off. Whatever else flushes (INVLPG,
 * CR0, CR4, memory that is mapped anew) does so in the same tables and finds the global entries there.
 *
 * The G bit is that of the last page-table entry which the processor read before it made the TLB's; such reads go straight to RAM.
 *
 * The invariant: an entry that is not known to be of a global page does not outlive a CR3; nor does a block that was found by one. */
#define _GNU_SOURCE
#include "globals.h"
#include <string.h>

enum { CR0_PG = 1u << 31, CR4_PGE = 1 << 7, ENTRY_G = 1 << 8, PROT_EXEC_PAGE = 4 };
enum { CR3 = CR0 + 24, CR4 = CR0 + 32 };
enum { GLOBAL = 1, PRIVATE = 2, PAGE = 4096 };
#define PAGE_OF(address) ((address) & ~(uint64_t)(PAGE - 1))
enum { CROWDED = 35, LARGEST = 4096 }; /* per cent of entries in use from which a TLB is made larger, and the size that suffices */

static void (*stock_cr3)(void *, uint64_t), (*stock_flush)(void *, uint16_t), (*stock_flush_page)(void *, uint64_t);
static uint64_t (*stock_quad)(void *, uint64_t);
static uint32_t (*stock_long)(void *, uint64_t);

#define ENV(g, offset) ENV64((g)->vcpu, offset)

/* -- what the processor's page walk reads */
static uint64_t load_quad(void *cpu, uint64_t address) {
    Globals *g = globals_of(cpu);
    uint8_t *host = g ? memory_host(g->vcpu, address, 8) : NULL;
    uint64_t entry = host ? *(volatile uint64_t *)host : stock_quad(cpu, address);
    if (g) g->last_entry = entry;
    return entry;
}
static uint32_t load_long(void *cpu, uint64_t address) {
    Globals *g = globals_of(cpu);
    uint8_t *host = g ? memory_host(g->vcpu, address, 4) : NULL;
    uint32_t entry = host ? *(volatile uint32_t *)host : stock_long(cpu, address);
    if (g) g->last_entry = entry;
    return entry;
}

/* -- entries that are made */
/* As Unicorn does it for each mode: one region that covers all large pages. */
static void cover(Large *l, uint64_t virtual, uint64_t size) {
    uint64_t mask = ~(size - 1);
    if (l->address == ~0ull) l->address = virtual;
    else
        for (mask &= l->mask; (l->address ^ virtual) & mask;) mask <<= 1;
    l->address &= mask;
    l->mask = mask;
}
void globals_filled(Globals *g, TlbEntry *entry, uint64_t virtual, int prot, int mode, uint64_t size) {
    if ((uint32_t)ENV(g, CR0) & CR0_PG && ENV(g, CR4) & CR4_PGE && g->last_entry & ENTRY_G) {
        entry->tag = virtual | GLOBAL;
        if (size > PAGE) cover(&g->large[mode], virtual, size);
        return;
    }
    entry->tag = virtual | PRIVATE;
    if (g->count < LISTED) g->list[g->count] = virtual | (uint64_t)mode << 1 | (prot & PROT_EXEC_PAGE ? EXECUTABLE : 0);
    g->count++;
}

/* -- and dropped */
static TlbDesc *description(Globals *g, int mode) { return (TlbDesc *)((uint8_t *)g->tlb - DESCRIPTIONS) + mode; }
static void begin_anew(Globals *g) {
    g->count = 0;
    for (int mode = 0; mode < MMU_MODES; mode++) g->large[mode] = (Large){~0ull, ~0ull};
}
static void drop(TlbEntry *e) { memset(e, 0xff, sizeof *e); }
static void drop_private(Globals *g) {
    jumps_forget_space(&g->jumps);
    for (unsigned i = 0; i < g->count; i++) {
        uint64_t page = PAGE_OF(g->list[i]);
        int mode = g->list[i] >> 1 & 3;
        TlbFast *f = g->tlb + mode;
        TlbEntry *e = f->table + (page / PAGE & (f->mask >> 6));
        if (e->tag == (page | PRIVATE)) {
            TlbDesc *d = description(g, mode);
            drop(e);
            d->used -= d->used > 0;
        }
        if (g->list[i] & EXECUTABLE) jumps_forget_private(g->vcpu->cpu, page);
    }
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbDesc *d = description(g, mode);
        for (int i = 0; i < VICTIMS; i++)
            if ((d->victims[i].tag & (PAGE - 1)) != GLOBAL) drop(d->victims + i); /* which do not count as in use */
        d->large_address = g->large[mode].address;
        d->large_mask = g->large[mode].mask;
    }
    g->count = 0;
}
/* Whether a TLB has too few entries for what is kept in it; each page has one place there. Unicorn doubles it when everything is
 * dropped and all of it was in use. */
static bool crowded(Globals *g) {
    bool any = false;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        uint64_t size = (g->tlb[mode].mask >> 6) + 1;
        TlbDesc *d = description(g, mode);
        if (size >= LARGEST || d->used > size || d->used * 100 <= size * CROWDED) continue; /* it may have been counted below 0 */
        d->used = size;
        any = true;
    }
    return any;
}

static void flush(void *cpu, uint16_t modes) { /* of all modes, always */
    Globals *g = globals_of(cpu);
    if (g) begin_anew(g), jumps_forget_near(&g->jumps);
    stock_flush(cpu, modes);
}
static void set_cr3(void *env, uint64_t value) {
    Globals *g = globals_of((uint8_t *)env - layout.env);
    if (!g || !((uint32_t)ENV(g, CR0) & CR0_PG) || !(ENV(g, CR4) & CR4_PGE) || g->count > LISTED || crowded(g)) {
        stock_cr3(env, value);
        return;
    }
    ENV(g, CR3) = value;
    drop_private(g);
}
/* INVLPG. A large page is more than one page of blocks, of which the stock function drops only those of `virtual`. */
static void flush_page(void *cpu, uint64_t virtual) {
    Globals *g = globals_of(cpu);
    bool large = false;
    for (int mode = 0; g && mode < MMU_MODES; mode++) {
        TlbDesc *d = description(g, mode);
        large |= (PAGE_OF(virtual) & d->large_mask) == d->large_address;
    }
    stock_flush_page(cpu, virtual);
    if (large) jumps_forget_mapped(g);
}

void globals_register(Globals *g, Vcpu *v) {
    g->vcpu = v;
    g->tlb = v->tlb;
    g->count = LISTED + 1; /* nothing is known of what is there before the first flush */
    jumps_register(g, v);
    for (int mode = 0; mode < MMU_MODES; mode++) g->large[mode] = (Large){~0ull, ~0ull};
}
/* Returns whether all is there that it needs; if not, nothing was changed, and each CR3 drops everything. */
bool globals_install(void *library) {
    const Redirect calls[] = {
        {"cpu_x86_update_cr3_x86_64", set_cr3, (void **)&stock_cr3},
        {"tlb_flush_by_mmuidx_x86_64", flush, (void **)&stock_flush},
        {"tlb_flush_page_x86_64", flush_page, (void **)&stock_flush_page},
        {"x86_ldq_phys_x86_64", load_quad, (void **)&stock_quad},
        {"x86_ldl_phys_x86_64", load_long, (void **)&stock_long},
    };
    return library_redirect(library, calls, sizeof calls / sizeof *calls);
}
