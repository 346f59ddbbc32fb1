/* Guest-physical memory: RAM slots backed by host memory, and everything else as memory-mapped I/O. */
#include "tlb.h"
#include "vcpu.h"

static uint64_t on_load(void *uc, uint64_t offset, unsigned size, Vcpu *v, uint64_t base) {
    (void)uc;
    uint64_t address = base + offset;
    v->n_loads++;
    uint64_t value = (uint64_t)vcpu_call(v, v->memory_read, 2, address, size, 0, -1);
    vcpu_step(v, STEP_LOAD, (uint32_t)address, (int)size, value);
    return value;
}
static void on_store(void *uc, uint64_t offset, unsigned size, uint64_t value, Vcpu *v, uint64_t base) {
    (void)uc;
    uint64_t address = base + offset;
    v->n_stores++;
    vcpu_step(v, STEP_STORE, (uint32_t)address, (int)size, value);
    vcpu_call(v, v->memory_write, 3, address, size, value, 0);
}

/* Unicorn passes one pointer and an offset within the mapping: the pointer is a region that knows its base. Regions are
 * kept for the life of the vCPU, since Unicorn may still hold one that was unmapped from within a callback. */
typedef struct Region {
    struct Region *next;
    Vcpu *v;
    uint64_t base;
} Region;
static uint64_t region_read(void *uc, uint64_t offset, unsigned size, void *data) {
    Region *r = data;
    return on_load(uc, offset, size, r->v, r->base);
}
static void region_write(void *uc, uint64_t offset, unsigned size, uint64_t value, void *data) {
    Region *r = data;
    on_store(uc, offset, size, value, r->v, r->base);
}

bool memory_map_io(Vcpu *v, uint64_t base, uint64_t size) {
    Region *r = PyMem_Malloc(sizeof *r);
    if (!r) return false;
    *r = (Region){v->regions, v, base};
    v->regions = r;
    return !api.mmio_map(v->uc, base, size, region_read, r, region_write, r);
}
void memory_free_regions(Vcpu *v) {
    for (Region *r = v->regions, *next; r; r = next) next = r->next, PyMem_Free(r);
    v->regions = NULL;
}

bool memory_map_ram(Vcpu *v, uint64_t base, uint64_t size, uint8_t *host) {
    if (v->slot_count == SLOTS || api.mem_map_ptr(v->uc, base, size, 7 /* UC_PROT_ALL */, host)) return false;
    v->slots[v->slot_count++] = (Slot){base, size, host};
    if (v->faststore) faststore_add_ram(v->faststore, host, size);
    return true;
}
/* Unicorn would look each page up as if its address were linear, a page fault in the guest's CPU maybe, and flush it from the TLB:
 * seconds for the holes between devices. It does so only for an engine with a CPU. Translated code of RAM is forgotten here, and the
 * TLB is flushed by whoever unmaps. */
bool memory_unmap(Vcpu *v, uint64_t base, uint64_t size) {
    for (int i = 0; i < v->slot_count; i++)
        if (v->slots[i].base == base && v->slots[i].size == size) {
            memory_invalidate(v, v->slots[i].host, size);
            if (v->faststore) faststore_remove_ram(v->faststore, v->slots[i].host);
            v->slots[i] = v->slots[--v->slot_count];
        }
    void **engine_cpu = (void **)((uint8_t *)v->uc + layout.engine_cpu), *cpu = *engine_cpu;
    *engine_cpu = NULL;
    bool unmapped = !api.mem_unmap(v->uc, base, size);
    *engine_cpu = cpu;
    return unmapped;
}

/* Host address of `length` bytes of guest RAM, NULL where they are not all RAM of one slot. */
uint8_t *memory_host(Vcpu *v, uint64_t physical, uint64_t length) {
    for (int i = 0; i < v->slot_count; i++) {
        Slot *s = &v->slots[i];
        if (physical >= s->base && physical - s->base < s->size && length <= s->size - (physical - s->base))
            return s->host + (physical - s->base);
    }
    return NULL;
}

static int mmu_mode(const Vcpu *v) {
    enum { MMU_KSMAP = 0, MMU_USER = 1, MMU_KNOSMAP = 2, HF_SMAP = 1 << 23, FLAG_AC = 1 << 18 };
    if ((ENV32(v, HFLAGS) & HF_CPL) == 3) return MMU_USER;
    return !(ENV32(v, HFLAGS) & HF_SMAP) || (ENV64(v, EFLAGS) & FLAG_AC) ? MMU_KNOSMAP : MMU_KSMAP;
}
/* Host address behind a linear address that the TLB maps as plain RAM for this kind of access (where TlbEntry has it), else NULL. */
uint8_t *memory_behind(const Vcpu *v, uint64_t linear, size_t kind) {
    enum { PAGE = 4096 };
    TlbFast *f = (TlbFast *)v->tlb + mmu_mode(v);
    TlbEntry *e = f->table + ((linear / PAGE) & (f->mask >> 6));
    uint64_t tag = *(uint64_t *)((char *)e + kind);
    return tag == (linear & ~(uint64_t)(PAGE - 1)) ? (uint8_t *)(linear + e->addend) : NULL;
}

/* Forget translated code of RAM that someone else than a guest store has written: mostly data, of which the engine need not be asked. */
void memory_invalidate(Vcpu *v, uint8_t *host, uint64_t length) {
    if (v->faststore && !faststore_may_hold_code(v->faststore, host, length)) return;
    uint64_t begin = api.ram_addr_from_host(v->uc, host);
    if (begin != ~0ull) api.tb_invalidate_phys_range(v->uc, begin, begin + length);
}
