/* The softmmu's TLB as Unicorn 2.1.4 lays it out; layout.py finds where the descriptors are and proves an entry. */
#ifndef AVMM_TLB_H
#define AVMM_TLB_H
#include <stdint.h>
typedef struct { uint64_t read, write, code, paddr; uintptr_t addend; uint64_t pad[3]; } TlbEntry; /* CPUTLBEntry, 64 bytes */
typedef struct { uintptr_t mask; TlbEntry *table; } TlbFast;                                       /* CPUTLBDescFast */
#endif
