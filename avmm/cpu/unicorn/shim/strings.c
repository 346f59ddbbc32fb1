/* REP MOVS and REP STOS in bulk.
 *
 * TCG translates a REP string instruction into a block that jumps to itself once an element: a block hook, a load and a
 * store for eight bytes. When such a block comes round the second time, its remaining elements but one are moved here with
 * memcpy, as far as the slice's budget and the softmmu TLB reach.
 *
 * The invariant: only memory whose TLB entry the translated code itself would have used without a slow path is touched, so
 * permissions, faults, memory-mapped I/O and self-modifying code stay the processor's own business; and the count of units
 * and blocks is the same as without. */
#include "tlb.h"
#include "vcpu.h"
#include <stddef.h>

enum { PAGE = 4096 };
enum { OP_MOVS = 0xa4, OP_STOS = 0xaa, FETCH = 4 /* UC_PROT_EXEC */, WORTHWHILE = 8 };

typedef struct { int operation, size; uint64_t mask; } String;

/* The instruction's bytes. Code that has been translated once is found without the TLB, which then need not map it in the mode
 * that it runs in: the kernel's copies to and from user space, between STAC and CLAC, hardly ever. */
static bool fetch(Vcpu *v, uint64_t linear, unsigned length, uint8_t *code) {
    const uint8_t *host = memory_behind(v, linear, offsetof(TlbEntry, code));
    if ((linear & (PAGE - 1)) + length > PAGE) return false;
    if (host) memcpy(code, host, length);
    return host || !api.vmem_read(v->uc, linear, FETCH, code, length);
}
/* Whether code is REP MOVS or REP STOS with the default segments. */
static bool decode(Vcpu *v, const uint8_t *code, unsigned length, String *s) {
    bool long_mode = ENV32(v, HFLAGS) & HF_CS64, wide = ENV32(v, HFLAGS) & HF_CS32, narrow = false, other = false, rep = false, rex = false;
    for (unsigned i = 0; i + 1 < length; i++) {
        if (code[i] == 0xf3 || code[i] == 0xf2) rep = true;
        else if (code[i] == 0x66) other = true;
        else if (code[i] == 0x67) narrow = true;
        else if (long_mode && code[i] == 0x48) rex = true;
        else return false;
    }
    s->operation = code[length - 1] & 0xfe;
    if (!rep || (s->operation != OP_MOVS && s->operation != OP_STOS)) return false;
    s->size = !(code[length - 1] & 1) ? 1 : rex ? 8 : wide != other ? 4 : 2;
    s->mask = long_mode ? (narrow ? 0xffffffff : ~0ull) : wide != narrow ? 0xffffffff : 0xffff;
    return true;
}

static void step(Vcpu *v, int reg, uint64_t mask, uint64_t by) {
    if (mask == 0xffff) ENV16(v, reg) = (uint16_t)(ENV16(v, reg) + by);
    else ENV64(v, reg) = (ENV64(v, reg) + by) & mask;
}
static uint64_t elements(uint64_t offset, uint64_t linear, uint64_t mask, uint64_t size) {
    uint64_t n = PAGE - (linear & (PAGE - 1));
    if (mask - offset < n - 1) n = mask - offset + 1; /* the offset wraps within the page */
    return n / size;
}
static void fill(uint8_t *to, uint64_t value, int size, uint64_t n) {
    if (size == 1 || !value) memset(to, (int)(value & 0xff), n * (unsigned)size);
    else for (uint64_t i = 0; i < n; i++) memcpy(to + i * (unsigned)size, &value, (size_t)size);
}
static void copy(uint8_t *to, const uint8_t *from, int size, uint64_t n) {
    if (to + n * (unsigned)size <= from || from + n * (unsigned)size <= to) memcpy(to, from, n * (unsigned)size);
    else for (uint64_t i = 0; i < n * (unsigned)size; i += (unsigned)size) memmove(to + i, from + i, (size_t)size); /* in element order */
}

/* One page's worth at most; returns the elements moved. */
static uint64_t move_some(Vcpu *v, const String *s, uint64_t most) {
    bool flat = ENV32(v, HFLAGS) & HF_CS64;
    uint64_t to = ENV64(v, RDI) & s->mask, linear = to + (flat ? 0 : ENV64(v, ES + SEGMENT_BASE));
    if (!flat) linear &= 0xffffffff;
    uint64_t n = elements(to, linear, s->mask, (uint64_t)s->size);
    uint8_t *target = memory_behind(v, linear, offsetof(TlbEntry, write));
    if (n > most) n = most;
    if (!target || !n) return 0;
    if (s->operation == OP_STOS) fill(target, ENV64(v, RAX), s->size, n);
    else {
        uint64_t from = ENV64(v, RSI) & s->mask, source = from + (flat ? 0 : ENV64(v, DS + SEGMENT_BASE));
        if (!flat) source &= 0xffffffff;
        uint64_t room = elements(from, source, s->mask, (uint64_t)s->size);
        const uint8_t *data = memory_behind(v, source, offsetof(TlbEntry, read));
        if (n > room) n = room;
        if (!data || !n) return 0;
        copy(target, data, s->size, n);
        step(v, RSI, s->mask, n * (uint64_t)s->size);
    }
    step(v, RDI, s->mask, n * (uint64_t)s->size);
    step(v, RCX, s->mask, -n);
    return n;
}

/* Whether a block, which has just been translated, may have to be asked about at string_bulk. */
bool string_may_be(Vcpu *v, uint64_t linear, unsigned length) {
    String s;
    uint8_t code[LONGEST_STRING];
    return v->tlb && length <= LONGEST_STRING && (!fetch(v, linear, length, code) || decode(v, code, length, &s));
}
/* The block at `linear` was executed just before as well. */
void string_bulk(Vcpu *v, uint64_t linear, unsigned length) {
    String s;
    uint8_t code[LONGEST_STRING];
    if (ENV64(v, RCX) < WORTHWHILE) return;
    if (!v->tlb || ENV32(v, DF) != 1 || !fetch(v, linear, length, code) || !decode(v, code, length, &s)) {
        v->no_string = linear; /* some other short loop: do not look at it every time */
        return;
    }
    for (;;) {
        /* The block that has just begun is executed after this, so it must still find budget left, or it would run although an
         * element-by-element slice ends before it. */
        uint64_t left = ENV64(v, RCX) & s.mask, budget = v->left > 0 ? (uint64_t)(v->left - 1) / length : 0;
        if (left < 2 || !budget) return;
        uint64_t moved = move_some(v, &s, left - 1 < budget ? left - 1 : budget);
        if (!moved) return;
        v->left -= (int64_t)(moved * length);
        v->blocks += moved;
    }
}
