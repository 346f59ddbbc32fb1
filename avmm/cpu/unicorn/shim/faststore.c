/* Fast stores: clear TLB_NOTDIRTY as soon as a page holds no translated code.
 *
 * Stock Unicorn sends each store to a page that is executable in the guest's page tables down a slow path for ever. The
 * library calls its own exported functions through PLT slots; seven of them are redirected here, matched by symbol name,
 * all or nothing, and no code byte is patched. A page's TLB entries are clean while it holds no translated block, and
 * dirty again from its first block on, for every virtual alias. Without the slots stores are only slow.
 *
 * Register an engine before its first guest instruction, unregister it before uc_close. */
#define _GNU_SOURCE
#include "globals.h"
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE_BITS = 12, RAMS = 32, SWEEP_BACKOFF = 1000 };
#define PAGE_MASK 0xfffull
#define NOTDIRTY 0x400ull

typedef struct { uint8_t *host, *has_code; uint64_t size; } Ram;                                    /* one has_code byte a page */
typedef struct {
    void *memory; /* that it lies in */
    uint8_t *uc, *cpu;
    TlbFast *tlb;
    Ram rams[RAMS];
    int ram_count;
    unsigned backoff;
    Vcpu *walker; /* the debugger goes through a block of it instruction by instruction */
    Globals globals;
} Store;

static Store **stores;
static int store_count, store_room;
static _Atomic unsigned generation = 1; /* of the list: each thread keeps what it found last */
static pthread_mutex_t list = PTHREAD_MUTEX_INITIALIZER;
static __thread struct { Store *store; unsigned generation; } last __attribute__((tls_model("initial-exec"))); /* asked for by every other block */

static void (*stock_set_page)(void *, uint64_t, uint64_t, uint32_t, int, int, uint64_t);
static void (*stock_protect)(void *, uint64_t), (*stock_unprotect)(void *, uint64_t), (*stock_flush)(void *);
static void (*stock_page_fast)(void *, void *, uint64_t, int, uintptr_t), (*stock_set_dirty)(void *, uint64_t);
static void (*stock_reset_by_vaddr)(void *, uint64_t, uint64_t), (*reset_dirty)(void *, uint64_t, uint64_t);
static void *(*map_ram_ptr)(void *, void *, uint64_t);

static Store *find(const void *uc_or_cpu) {
    Store *s = last.generation == generation ? last.store : NULL;
    if (s && (s->uc == uc_or_cpu || s->cpu == uc_or_cpu)) return s;
    s = NULL;
    pthread_mutex_lock(&list);
    for (int i = 0; i < store_count && !s; i++)
        if (stores[i]->uc == uc_or_cpu || stores[i]->cpu == uc_or_cpu) s = stores[i];
    if (s) last.store = s, last.generation = generation;
    pthread_mutex_unlock(&list);
    return s;
}
Globals *globals_of(const void *uc_or_cpu) {
    Store *s = find(uc_or_cpu);
    return s ? &s->globals : NULL;
}
/* The has_code byte of a host page; NULL for memory we do not know, which stays slow. */
static inline uint8_t *has_code(Store *s, uintptr_t host) {
    for (int i = 0; i < s->ram_count; i++) {
        uint64_t offset = host - (uintptr_t)s->rams[i].host;
        if (offset < s->rams[i].size) return s->rams[i].has_code + (offset >> PAGE_BITS);
    }
    return NULL;
}
static inline TlbEntry *entry(Store *s, int mode, uint64_t virtual_page) {
    TlbFast *f = s->tlb + mode;
    return f->table + ((virtual_page >> PAGE_BITS) & (f->mask >> 6));
}
static inline bool clean(Store *s, TlbEntry *e, uint64_t virtual_page) {
    uint8_t *code = has_code(s, virtual_page + e->addend);
    if (!code || *code) return false;
    e->write = virtual_page;
    return true;
}

/* a new TLB entry: drop NOTDIRTY at once if its page holds no block */
static void set_page(void *cpu, uint64_t virtual, uint64_t physical, uint32_t attributes, int prot, int mode, uint64_t size) {
    stock_set_page(cpu, virtual, physical, attributes, prot, mode, size);
    Store *s = find(cpu);
    if (!s || mode >= MMU_MODES) return;
    virtual &= ~PAGE_MASK;
    TlbEntry *e = entry(s, mode, virtual);
    if (e->write == (virtual | NOTDIRTY)) clean(s, e, virtual);
    globals_filled(&s->globals, e, virtual, prot, mode, size);
}
/* a page's first block: set NOTDIRTY on each entry of that host page */
static void protect(void *uc, uint64_t ram_address) {
    stock_protect(uc, ram_address);
    Store *s = find(uc);
    if (!s) return;
    uintptr_t host = (uintptr_t)map_ram_ptr(uc, NULL, ram_address) & ~PAGE_MASK;
    uint8_t *code = has_code(s, host);
    if (!code) return;
    *code = 1;
    reset_dirty(s->cpu, host, 1 << PAGE_BITS);
}
/* a page's last block went */
static void unprotect(void *uc, uint64_t ram_address) {
    stock_unprotect(uc, ram_address);
    Store *s = find(uc);
    uint8_t *code = s ? has_code(s, (uintptr_t)map_ram_ptr(uc, NULL, ram_address) & ~PAGE_MASK) : NULL;
    if (code) *code = 0, s->backoff = 0;
}
/* Whether a page of host memory may hold a block: yes where we do not know. A page says yes until its last block is gone. */
bool faststore_may_hold_code(void *store, const uint8_t *host, uint64_t length) {
    Store *s = store;
    if (!length) return false;
    for (int i = 0; i < s->ram_count; i++) {
        Ram *r = s->rams + i;
        uint64_t offset = (uintptr_t)host - (uintptr_t)r->host;
        if (offset < r->size && length <= r->size - offset)
            return memchr(r->has_code + (offset >> PAGE_BITS), 1, ((offset + length - 1) >> PAGE_BITS) - (offset >> PAGE_BITS) + 1);
    }
    return true;
}
/* no blocks at all */
void faststore_no_code(void *store) {
    Store *s = store;
    for (int i = 0; i < s->ram_count; i++) memset(s->rams[i].has_code, 0, s->rams[i].size >> PAGE_BITS);
    s->backoff = 0;
    jumps_forget(&s->globals.jumps);
}
static void flush(void *cpu) {
    stock_flush(cpu);
    Store *s = find(cpu);
    if (s) faststore_no_code(s);
}
/* a slow store hit a page without blocks (entry older than the unprotect): sweep the TLB, unless sweeping was in vain lately */
static void page_fast(void *uc, void *pages, uint64_t ram_address, int length, uintptr_t retaddr) {
    Store *s = find(uc);
    if (s && s->walker) debug_code_store(s->walker, map_ram_ptr(uc, NULL, ram_address), length, retaddr);
    stock_page_fast(uc, pages, ram_address, length, retaddr); /* may longjmp: then the page held code */
    if (!s) return;
    if (s->backoff) {
        s->backoff--;
        return;
    }
    uint8_t *code = has_code(s, (uintptr_t)map_ram_ptr(uc, NULL, ram_address));
    if (!code || *code) return;
    unsigned swept = 0;
    for (int mode = 0; mode < MMU_MODES; mode++)
        for (uint64_t k = 0; k <= s->tlb[mode].mask >> 6; k++) {
            TlbEntry *e = s->tlb[mode].table + k;
            if ((e->write & PAGE_MASK) == NOTDIRTY) swept += clean(s, e, e->write & ~PAGE_MASK);
        }
    if (!swept) s->backoff = SWEEP_BACKOFF;
}
/* stock notdirty_write calls this for pages that are NX in the guest's tables even while blocks of another alias live there */
static void set_dirty(void *cpu, uint64_t virtual) {
    Store *s = find(cpu);
    if (!s) {
        stock_set_dirty(cpu, virtual);
        return;
    }
    virtual &= ~PAGE_MASK;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        TlbEntry *e = entry(s, mode, virtual);
        if (e->write == (virtual | NOTDIRTY)) clean(s, e, virtual);
    }
}
/* for each new block: stock sweeps whole TLBs; where the block's own pages can be is enough, and GRUB's real-mode calls, which
 * patch the page they run in, do not work without */
static void reset_by_vaddr(void *cpu, uint64_t virtual, uint64_t length) {
    Store *s = find(cpu);
    if (!s) {
        stock_reset_by_vaddr(cpu, virtual, length);
        return;
    }
    for (uint64_t page = virtual & ~PAGE_MASK; page < virtual + length; page += 1 << PAGE_BITS)
        for (int mode = 0; mode < MMU_MODES; mode++) {
            TlbEntry *e = entry(s, mode, page);
            if (e->write == page) e->write |= NOTDIRTY;
        }
}

/* The PLT slot through which the library calls its own exported function; NULL where it does not. Made writable. */
static void **library_slot(void *library, const char *name) {
    struct link_map *map;
    ElfW(Rela) *relocations = NULL;
    ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    size_t bytes = 0;
    if (dlinfo(library, RTLD_DI_LINKMAP, &map)) return NULL;
    for (ElfW(Dyn) *d = map->l_ld; d->d_tag; d++) {
        if (d->d_tag == DT_JMPREL) relocations = (void *)d->d_un.d_ptr;
        if (d->d_tag == DT_PLTRELSZ) bytes = d->d_un.d_val;
        if (d->d_tag == DT_SYMTAB) symbols = (void *)d->d_un.d_ptr;
        if (d->d_tag == DT_STRTAB) names = (void *)d->d_un.d_ptr;
    }
    if (!relocations || !symbols || !names) return NULL;
    for (size_t i = 0; i < bytes / sizeof *relocations; i++)
        if (!strcmp(names + symbols[ELF64_R_SYM(relocations[i].r_info)].st_name, name)) {
            void **slot = (void **)(map->l_addr + relocations[i].r_offset);
            return mprotect((void *)((uintptr_t)slot & ~PAGE_MASK), 1 << PAGE_BITS, PROT_READ | PROT_WRITE) ? NULL : slot;
        }
    return NULL;
}

/* Have the library call ours instead of functions of its own: all of them, or none if one cannot be. */
bool library_redirect(void *library, const Redirect *calls, size_t count) {
    enum { MOST = 8 };
    void **slots[MOST], *stock[MOST];
    if (count > MOST) return false;
    for (size_t k = 0; k < count; k++)
        if (!(slots[k] = library_slot(library, calls[k].name)) || !(stock[k] = dlsym(library, calls[k].name))) return false;
    for (size_t k = 0; k < count; k++) *calls[k].stock = stock[k], *slots[k] = calls[k].ours;
    return true;
}
/* Returns whether all is there that it needs; if not, nothing was changed. */
bool faststore_install(void *library) {
    const Redirect calls[] = {
        {"tlb_set_page_with_attrs_x86_64", set_page, (void **)&stock_set_page},
        {"tlb_protect_code_x86_64", protect, (void **)&stock_protect},
        {"tlb_unprotect_code_x86_64", unprotect, (void **)&stock_unprotect},
        {"tb_flush_x86_64", flush, (void **)&stock_flush},
        {"tb_invalidate_phys_page_fast_x86_64", page_fast, (void **)&stock_page_fast},
        {"tlb_reset_dirty_by_vaddr_x86_64", reset_by_vaddr, (void **)&stock_reset_by_vaddr},
        {"tlb_set_dirty_x86_64", set_dirty, (void **)&stock_set_dirty},
    };
    reset_dirty = dlsym(library, "tlb_reset_dirty_x86_64");
    map_ram_ptr = dlsym(library, "qemu_map_ram_ptr_x86_64");
    return reset_dirty && map_ram_ptr && library_redirect(library, calls, sizeof calls / sizeof *calls);
}

void faststore_walk(void *store, Vcpu *walker) { ((Store *)store)->walker = walker; }
void faststore_unregister(void *store) {
    Store *s = store;
    pthread_mutex_lock(&list);
    for (int i = 0; i < store_count; i++)
        if (stores[i] == s) stores[i] = stores[--store_count];
    generation++;
    pthread_mutex_unlock(&list);
    for (int i = 0; i < s->ram_count; i++) free(s->rams[i].has_code);
    jumps_free(&s->globals.jumps);
    free(s->memory);
}
void *faststore_register(Vcpu *v) {
    void *memory = calloc(1, sizeof(Store) + _Alignof(Store));
    if (!memory) return NULL;
    Store *s = (Store *)(((uintptr_t)memory + _Alignof(Store) - 1) / _Alignof(Store) * _Alignof(Store));
    s->memory = memory, s->uc = v->uc, s->cpu = v->cpu, s->tlb = v->tlb;
    globals_register(&s->globals, v);
    stock_flush(v->cpu);
    pthread_mutex_lock(&list);
    if (store_count == store_room) {
        int room = store_room ? 2 * store_room : 64;
        Store **more = realloc(stores, (size_t)room * sizeof *more);
        if (more) stores = more, store_room = room;
    }
    if (store_count < store_room) stores[store_count++] = s;
    else free(memory), s = NULL;
    generation++;
    pthread_mutex_unlock(&list);
    return s;
}
void faststore_add_ram(void *store, uint8_t *host, uint64_t size) {
    Store *s = store;
    uint8_t *code = s->ram_count < RAMS ? calloc(1, size >> PAGE_BITS) : NULL;
    if (code) s->rams[s->ram_count++] = (Ram){host, code, size};
}
void faststore_remove_ram(void *store, uint8_t *host) {
    Store *s = store;
    for (int i = 0; i < s->ram_count; i++)
        if (s->rams[i].host == host) {
            free(s->rams[i].has_code);
            s->rams[i] = s->rams[--s->ram_count];
            return;
        }
}
