/* The block hook, which counts: the budget and the deterministic clock. It runs right before the block's own exit check, so that a
 * stop takes effect at this block's boundary.
 *
 * Unicorn begins each translated block with a call of the hook and another of its exit check, ten nanoseconds for a block that
 * takes little more. As soon as a block has been translated, its prologue is written anew: what both calls do when there is
 * nothing to do is done in place, else they are made as before. Whoever wants each block to be looked at (a debugger) withholds what is
 * left of the slice, which is the one thing that every block looks at besides the exit check.
 *
 * The invariant: only a prologue is rewritten of which every byte is what we know, each address in it included; all others keep
 * the calls. Either way the same is counted. */
#include "globals.h"
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

static void __attribute__((noinline)) on_special_block(void *uc, uint64_t address, uint32_t size, Vcpu *v, bool string) {
    if (v->debug.active && debug_before_block(v, address, size)) return;
    if (v->left <= 0) {
        if (v->exact || v->why || monotonic_ns() >= v->deadline) {
            api.emu_stop(uc);
            return;
        }
        v->left += v->quantum;
        v->end += v->quantum;
    }
    if (string && !v->debug.active) string_bulk(v, address, size);
    v->left -= size;
    v->blocks++;
    if (v->debug.active) debug_after_block(v, address, size);
    v->last_block = address;
    v->blocks_then = v->blocks;
}
static void on_block(void *uc, uint64_t address, uint32_t size, Vcpu *v) {
    if (__builtin_expect(*v->icount < 0, 0)) return; /* about to be left, will be entered again */
    bool string = size <= LONGEST_STRING && address == v->last_block && v->blocks == v->blocks_then && address != v->no_string;
    if (__builtin_expect(v->withheld || v->left <= 0 || string, 0)) {
        vcpu_withhold(v, 0);
        on_special_block(uc, address, size, v, string);
        if (v->debug.active) vcpu_withhold(v, ALL);
        return;
    }
    v->left -= size;
    v->blocks++;
    v->last_block = address;
    v->blocks_then = v->blocks;
}
/* ---- in place */
static void *(*stock_translate)(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, int cflags);
void (*blocks_check_exit)(void *uc, int delay_slot) __attribute__((visibility("hidden")));

/* The two calls, from a prologue in which they are one: the second finds the prologue's return address, by which it leaves. */
void *blocks_slow(void *unused, uint64_t unused_too, uint32_t size, Vcpu *v) __attribute__((used, visibility("hidden")));
void *blocks_slow(void *unused, uint64_t unused_too, uint32_t size, Vcpu *v) {
    (void)unused, (void)unused_too;
    v->left += size;
    on_block(v->uc, ENV64(v, RIP) + ENV64(v, CS + SEGMENT_BASE), size, v);
    return v->uc;
}
void blocks_both(void);
__asm__(".text\n"
        ".hidden blocks_both\n"
        ".globl blocks_both\n"
        ".type blocks_both, @function\n"
        "blocks_both:\n"
        " push %rcx\n" /* for the stack's alignment */
        " call blocks_slow\n"
        " pop %rcx\n"
        " mov %rax, %rdi\n"
        " xor %esi, %esi\n"
        " jmp *blocks_check_exit(%rip)\n"
        ".size blocks_both, . - blocks_both\n");

enum { TB_CODE = 32, TB_SIZE = 512, PROLOGUE = 64 }; /* the pointer to a TranslationBlock's code, which follows it at once */
typedef struct { uint8_t *at; bool known; } Cursor;

static uint64_t number(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    memcpy(&value, at, (size_t)bytes);
    return value;
}
static bool pass(Cursor *c, const char *bytes, size_t count) {
    if (memcmp(c->at, bytes, count)) return false;
    c->at += count;
    return true;
}
#define PASS(c, bytes) pass(c, bytes, sizeof bytes - 1)
static void must(Cursor *c, bool holds) { c->known = c->known && holds; }
static void must_load(Cursor *c, const char *opcode, const void *pointer) { /* MOV of 64 bits into a register */
    must(c, pass(c, opcode, 2) && number(c->at, 8) == (uintptr_t)pointer);
    c->at += 8;
}
static void must_call(Cursor *c, const void *target) { /* a near one, or by a pointer behind the block's code */
    bool near = PASS(c, "\xe8");
    must(c, near || PASS(c, "\xff\x15"));
    const uint8_t *meant = c->at + 4 + (int32_t)number(c->at, 4);
    if (!near && c->known) meant = (const uint8_t *)(uintptr_t)number(meant, 8);
    must(c, meant == (const uint8_t *)target);
    c->at += 4;
}
/* The store of the block's address into env->eip, which stays. */
static void must_store_address(Cursor *c) {
    if (PASS(c, "\x48\xc7\x85\x80\x00\x00\x00")) c->at += 4;
    else {
        if (PASS(c, "\x48\xbb")) c->at += 8;
        else if (PASS(c, "\xbb")) c->at += 4;
        else must(c, false);
        must(c, PASS(c, "\x48\x89\x9d\x80\x00\x00\x00"));
    }
}

/* Write `code`'s prologue anew. Its length stays; what is not needed of it is filled. */
static void write_prologue(Vcpu *v, uint64_t linear, uint8_t *code) {
    Cursor c = {code, true};
    must_store_address(&c);
    uint8_t *begin = c.at;
    must_load(&c, "\x48\xbf", v->uc);
    if (PASS(&c, "\x48\xc7\xc6") || PASS(&c, "\xbe")) c.at += 4;
    else must(&c, PASS(&c, "\x48\xbe")), c.at += 8;
    must(&c, PASS(&c, "\xba"));
    uint32_t size = (uint32_t)number(c.at, 4);
    c.at += 4;
    must_load(&c, "\x48\xb9", v);
    must_call(&c, (void *)on_block);
    must_load(&c, "\x48\xbf", v->uc);
    must(&c, PASS(&c, "\x33\xf6"));
    must_call(&c, (void *)blocks_check_exit);
    if (!c.known) return;
    if (string_may_be(v, linear, size)) return;

    enum { LEFT = offsetof(Vcpu, left), BLOCKS = offsetof(Vcpu, blocks), BOTH = offsetof(Vcpu, both), SLOW = 32, DONE = SLOW + 8 };
    _Static_assert(LEFT < 128 && BLOCKS < 128 && BOTH < 128, "displacements of one byte");
    int8_t icount = (int8_t)((const uint8_t *)v->icount - v->env), body = (int8_t)(c.at - begin - SLOW);
    if (v->env + icount != (const uint8_t *)v->icount) return;
    uint8_t anew[PROLOGUE] = {
        0x48, 0xb9, 0, 0, 0, 0, 0, 0, 0, 0, /* mov rcx, v */
        0x48, 0x81, 0x69, LEFT, 0, 0, 0, 0, /* sub qword [rcx + left], size */
        0x7c, SLOW - 20,                    /* jl slow: it was less, or nothing */
        0x83, 0x7d, (uint8_t)icount, 0,     /* cmp dword [rbp + icount], 0 */
        0x78, SLOW - 26,                    /* js slow */
        0x48, 0xff, 0x41, BLOCKS,           /* inc qword [rcx + blocks] */
        0xeb, (uint8_t)body,                /* jmp the block's own code */
        0xba, 0, 0, 0, 0,                   /* slow: mov edx, size */
        0xff, 0x51, BOTH,                   /* call [rcx + both] */
    };
    memcpy(anew + 2, &v, 8);
    memcpy(anew + 14, &size, 4);
    memcpy(anew + SLOW + 1, &size, 4);
    memset(anew + DONE, 0x90, sizeof anew - DONE); /* nop */
    memcpy(begin, anew, (size_t)(c.at - begin));
    v->in_place++;
}
static void *translate(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags, int cflags) {
    uint8_t *block = stock_translate(cpu, pc, cs_base, flags, cflags), *code;
    size_t size;
    Vcpu *v = vcpu_of(cpu);
    memcpy(&code, block + TB_CODE, sizeof code);
    memcpy(&size, block + TB_CODE + 8, sizeof size);
    if (v && (uintptr_t)(code - block) < TB_SIZE) {
        write_prologue(v, pc, code);
        jumps_in_place(v, code, size);
    }
    return block;
}
bool blocks_hook(Vcpu *v) {
    v->both = blocks_both;
    return hook(v, HOOK_BLOCK, on_block, 0);
}
bool blocks_install(void *library) {
    void *check = dlsym(library, "helper_check_exit_request_x86_64");
    memcpy((void *)&blocks_check_exit, &check, sizeof check);
    return check && library_redirect(library, &(Redirect){"tb_gen_code_x86_64", translate, (void **)&stock_translate}, 1);
}
