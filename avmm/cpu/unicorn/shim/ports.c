/* IN, OUT, INS and OUTS, and the data windows that serve a port from a buffer without calling Python. */
#include "vcpu.h"

/* What an access takes in virtual time: an ISA bus cycle is about 1 us, and programs that wait by polling a port rely on it. */
enum { BUS_CYCLE = 1000 };
static inline void take_time(Vcpu *v) {
    if (v->virtual_time) v->left -= BUS_CYCLE;
}

enum { PREFIX_REP = 1, PREFIX_ADDRESS = 2 };
enum { OP_INS = 0x6c, OP_OUTS = 0x6e };

/* Unicorn compiles the IOPL and TSS I/O-bitmap check out of IN and OUT: it is made here, and may raise #GP (longjmp). */
static inline void check_permission(Vcpu *v, uint32_t port, int size) {
    uint64_t rflags = ENV64(v, EFLAGS);
    if ((ENV64(v, CR0) & 1) && ((ENV32(v, HFLAGS) & HF_CPL) > ((rflags >> 12) & 3) || (rflags & 1 << 17)))
        api.check_io[size >> 1](v->env, port);
}

/* The string instruction at CS:RIP, if it is REP INS/OUTS (`wanted`). Sets the segment of the memory operand. */
static bool decode_string(Vcpu *v, int wanted, int *prefixes, int *segment) {
    static const struct { uint8_t byte; int segment; } overrides[] = {{0x26, ES}, {0x2e, CS}, {0x36, SS}, {0x3e, DS}, {0x64, FS}, {0x65, GS}};
    bool long_mode = ENV32(v, HFLAGS) & HF_CS64;
    uint64_t at = ENV64(v, RIP) + (long_mode ? 0 : ENV64(v, CS + SEGMENT_BASE));
    *prefixes = 0;
    for (int i = 0; i < 6; i++, at++) {
        uint8_t byte;
        if (api.vmem_read(v->uc, long_mode ? at : (uint32_t)at, 4, &byte, 1)) return false;
        if ((byte & 0xfe) == wanted) return *prefixes & PREFIX_REP;
        if (byte == 0xf3 || byte == 0xf2) *prefixes |= PREFIX_REP;
        else if (byte == 0x67) *prefixes |= PREFIX_ADDRESS;
        else if (byte != 0x66 && (byte & 0xf0) != 0x40) {
            bool found = false;
            for (unsigned k = 0; k < sizeof overrides / sizeof *overrides; k++)
                if (byte == overrides[k].byte) *segment = overrides[k].segment, found = true;
            if (!found) return false;
        }
    }
    return false;
}

/* In the first word of a REP INS or REP OUTS on a window port: move words 1..n-1 now and step the registers past them;
 * word 0 is moved by the instruction itself. Anything unusual (DF set, a page that is not RAM or not mapped, an element
 * across pages) is left to the instruction's own loop. */
static void move_bulk(Vcpu *v, Window *w, int size) {
    int prefixes, segment = w->out ? DS : ES;
    if (ENV32(v, DF) != 1 || !decode_string(v, w->out ? OP_OUTS : OP_INS, &prefixes, &segment)) return;
    bool long_mode = ENV32(v, HFLAGS) & HF_CS64, narrow = prefixes & PREFIX_ADDRESS, code32 = ENV32(v, HFLAGS) & HF_CS32;
    uint64_t mask = long_mode ? (narrow ? 0xffffffff : ~0ull) : code32 != narrow ? 0xffffffff : 0xffff;
    int index = w->out ? RSI : RDI;
    uint64_t base = long_mode && segment != FS && segment != GS ? 0 : ENV64(v, segment + SEGMENT_BASE);
    uint64_t offset = (ENV64(v, index) + (uint64_t)size) & mask, count = (ENV64(v, RCX) & mask) - 1, moved = 0;
    while (count) {
        uint64_t linear = base + offset, physical, room = (uint64_t)(w->view.len - w->position), n;
        if (!long_mode) linear &= 0xffffffff;
        n = 4096 - (linear & 4095);
        if (offset + n - 1 > mask || offset + n < offset) n = mask - offset + 1;
        if (n > room) n = room;
        if (n / (uint64_t)size > count) n = count * (uint64_t)size;
        n -= n % (uint64_t)size;
        if (!n || api.vmem_translate(v->uc, linear, w->out ? 1 : 2, &physical)) break;
        uint8_t *host = memory_host(v, physical, n), *data = (uint8_t *)w->view.buf + w->position;
        if (!host) break;
        if (w->out) memcpy(data, host, n);
        else {
            memcpy(host, data, n);
            memory_invalidate(v, host, n);
        }
        w->position += (Py_ssize_t)n;
        offset = (offset + n) & mask;
        count -= n / (uint64_t)size;
        moved += n;
    }
    uint64_t words = moved / (uint64_t)size;
    v->n_window += words;
    if (mask == 0xffff) {
        ENV16(v, index) = (uint16_t)(ENV16(v, index) + moved);
        ENV16(v, RCX) = (uint16_t)(ENV16(v, RCX) - words);
    } else {
        ENV64(v, index) = (ENV64(v, index) + moved) & mask;
        ENV64(v, RCX) = (ENV64(v, RCX) - words) & mask;
    }
}

static void close_if_done(Vcpu *v, Window *w) {
    if (w->position < w->view.len) return;
    w->open = false; /* before the call, which may open the next one on this port */
    vcpu_call(v, v->window_done, 1, (uint64_t)w->port, 0, 0, 0);
}

static uint32_t on_in(void *uc, uint32_t port, int size, Vcpu *v) {
    (void)uc;
    port &= 0xffff;
    Window *w = &v->windows[v->window_of[port]];
    check_permission(v, port, size);
    if (w->open && !w->out && w->position + size <= w->view.len) {
        uint32_t value = 0;
        memcpy(&value, (char *)w->view.buf + w->position, (size_t)size);
        w->position += size;
        v->n_window++;
        if (w->view.len - w->position >= size) move_bulk(v, w, size);
        close_if_done(v, w);
        return value;
    }
    v->n_in++;
    take_time(v);
    uint32_t value = (uint32_t)vcpu_call(v, v->port_in, 2, port, (uint64_t)size, 0, 0xffffffff);
    vcpu_step(v, STEP_IN, port, size, value);
    return value;
}
static void on_out(void *uc, uint32_t port, int size, uint32_t value, Vcpu *v) {
    (void)uc;
    port &= 0xffff;
    if (size < 4) value &= (1u << (8 * size)) - 1;
    Window *w = &v->windows[v->window_of[port]];
    check_permission(v, port, size);
    if (w->open && w->out && w->position + size <= w->view.len) {
        memcpy((char *)w->view.buf + w->position, &value, (size_t)size);
        w->position += size;
        v->n_window++;
        if (w->view.len - w->position >= size) move_bulk(v, w, size);
        close_if_done(v, w);
        return;
    }
    v->n_out++;
    take_time(v);
    vcpu_step(v, STEP_OUT, port, size, value);
    vcpu_call(v, v->port_out, 3, port, (uint64_t)size, value, 0);
}

/* Open, replace or (buffer None) close the window of a port. Window 0 stands for "none" and is never open. */
int window_open(Vcpu *v, int port, PyObject *buffer, Py_ssize_t start, bool out) {
    int i = v->window_of[port];
    for (int k = 1; !i && k < WINDOWS; k++)
        if (!v->windows[k].open) i = k;
    if (!i) {
        if (buffer == Py_None) return 0;
        PyErr_SetString(PyExc_ValueError, "too many ports with a data window");
        return -1;
    }
    Window *w = &v->windows[i];
    if (w->view.obj) PyBuffer_Release(&w->view);
    if (w->port != port) v->window_of[w->port] = v->window_of[w->port] == i ? 0 : v->window_of[w->port];
    memset(w, 0, sizeof *w);
    w->port = port;
    v->window_of[port] = (uint8_t)i;
    if (buffer == Py_None) return 0;
    if (PyObject_GetBuffer(buffer, &w->view, out ? PyBUF_WRITABLE : PyBUF_SIMPLE)) return -1;
    w->position = start;
    w->out = out;
    w->open = start >= 0 && start < w->view.len;
    return 0;
}

bool port_hooks(Vcpu *v, const int *instructions) {
    return hook(v, HOOK_INSN, on_in, instructions[INSN_IN]) && hook(v, HOOK_INSN, on_out, instructions[INSN_OUT]);
}
