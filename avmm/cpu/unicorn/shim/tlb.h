/* The softmmu's TLB as Unicorn 2.1.4 lays it out; layout.py finds where the descriptors are and proves entries and fields. */
#ifndef AVMM_TLB_H
#define AVMM_TLB_H
#include <stddef.h>
#include <stdint.h>
enum { MMU_MODES = 3, VICTIMS = 8 };
typedef struct { uint64_t read, write, code, paddr; uintptr_t addend; uint64_t tag, pad[2]; } TlbEntry; /* CPUTLBEntry; tag is padding there */
typedef struct { uintptr_t mask; TlbEntry *table; } TlbFast;                                             /* CPUTLBDescFast */
typedef struct {                                                                                         /* CPUTLBDesc */
    uint64_t large_address, large_mask, window_begin, window_max, used, next_victim;
    TlbEntry victims[VICTIMS];
    uint64_t victim_iotlb[VICTIMS][2];
    void *iotlb;
} TlbDesc;
enum { DESCRIPTIONS = 8 + MMU_MODES * sizeof(TlbDesc) }; /* so far before the first TlbFast is the first TlbDesc */
_Static_assert(sizeof(TlbEntry) == 64 && sizeof(TlbDesc) == 696, "as in the library");
#endif
