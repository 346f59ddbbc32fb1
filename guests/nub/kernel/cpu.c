/* GDT, TSS, IDT, the two 8259s and the local APIC, and the one place every trap goes through. */
#include "cpu.h"
#include "console.h"
#include "io.h"
#include "memory.h"
#include "program.h"

enum { PIC1 = 0x20, PIC2 = 0xA0, ICW1_INIT_ICW4 = 0x11, ICW4_8086 = 0x01, OCW2_EOI = 0x20, OCW3_READ_ISR = 0x0B };
enum { APIC = 0xFEE00000, APIC_TPR = 0x80, APIC_SPURIOUS = 0xF0, APIC_LINT0 = 0x350, APIC_ENABLE = 0x100, APIC_EXTINT = 0x700 };

#define STUBS 64

struct tss {
    uint32_t link, esp0, ss0;
    uint32_t unused[22];
    uint16_t trap, io_map;
} __attribute__((packed));

struct gate {
    uint16_t offset_low, selector;
    uint8_t zero, type;
    uint16_t offset_high;
};

struct table_pointer {
    uint16_t limit;
    uint32_t base;
} __attribute__((packed));

extern const uint32_t vector_stubs[STUBS + 1]; /* 0-63 and 128 */
extern char kernel_stack_top[];

static uint64_t gdt[6] = {
    0,
    0x00CF9A000000FFFF, /* 08: kernel code */
    0x00CF92000000FFFF, /* 10: kernel data */
    0x00CFFA000000FFFF, /* 18: user code */
    0x00CFF2000000FFFF, /* 20: user data */
    0,                  /* 28: TSS */
};
static struct tss tss;
static struct gate idt[129];
static irq_handler *handlers[16], *synthetic_handler;
static uint8_t imr[2] = {0xFF, 0xFF};

static void set_gate(int vector, uint32_t stub, uint8_t type)
{
    idt[vector] = (struct gate){(uint16_t)stub, 0x08, 0, type, (uint16_t)(stub >> 16)};
}

static void pic_init(void)
{
    outb(PIC1, ICW1_INIT_ICW4);
    outb(PIC2, ICW1_INIT_ICW4);
    outb(PIC1 + 1, VECTOR_IRQ);
    outb(PIC2 + 1, VECTOR_IRQ + 8);
    outb(PIC1 + 1, 1 << 2); /* the second PIC is on line 2 of the first */
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, ICW4_8086);
    outb(PIC2 + 1, ICW4_8086);
    imr[0] = 0xFF & ~(1 << 2);
    outb(PIC1 + 1, imr[0]);
    outb(PIC2 + 1, imr[1]);
}

void cpu_init(void)
{
    uint32_t base = (uint32_t)&tss, limit = sizeof tss - 1;
    struct table_pointer gdt_pointer = {sizeof gdt - 1, (uint32_t)gdt}, idt_pointer = {sizeof idt - 1, (uint32_t)idt};

    tss.esp0 = (uint32_t)kernel_stack_top;
    tss.ss0 = 0x10;
    tss.io_map = sizeof tss; /* none: ring 3 has no ports */
    gdt[5] = limit | (uint64_t)(base & 0xFFFFFF) << 16 | 0x0000890000000000 | (uint64_t)(base >> 24) << 56;
    for (int vector = 0; vector < STUBS; vector++)
        set_gate(vector, vector_stubs[vector], 0x8E);
    set_gate(VECTOR_SYSTEM_CALL, vector_stubs[STUBS], 0xEE);
    __asm__ volatile("lgdt %0; lidt %1; ljmp $0x08, $1f; 1: ltr %w2" : : "m"(gdt_pointer), "m"(idt_pointer), "r"(0x28) : "memory");
    pic_init();
    outb(0x70, 0x0F); /* NMI on again */
    (void)inb(0x71);
}

void irq_install(int line, irq_handler *handler)
{
    bool on = irq_save();

    handlers[line] = handler;
    irq_unmask(line);
    irq_restore(on);
}

static void set_mask(int line, bool masked)
{
    bool on = irq_save();
    uint8_t bit = (uint8_t)(1 << (line & 7));

    imr[line >> 3] = (uint8_t)(masked ? imr[line >> 3] | bit : imr[line >> 3] & ~bit);
    outb(line < 8 ? PIC1 + 1 : PIC2 + 1, imr[line >> 3]);
    irq_restore(on);
}

void irq_mask(int line) { set_mask(line, true); }

void irq_unmask(int line) { set_mask(line, false); }

bool cpuid(uint32_t leaf, uint32_t registers[4])
{
    uint32_t changed; /* EFLAGS.ID can be changed where there is CPUID */

    __asm__ volatile("pushf; pushf; xorl $0x200000, (%%esp); popf; pushf; pop %0; xorl (%%esp), %0; popf" : "=r"(changed));
    if (!(changed & 0x200000))
        return false;
    __asm__ volatile("cpuid" : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]), "=d"(registers[3]) : "0"(leaf), "2"(0));
    return true;
}

/* The local APIC beside the PIC ("virtual wire"): LINT0 passes the PIC's interrupts on. */
void apic_install(irq_handler *handler)
{
    volatile uint32_t *apic = memory_map_device(APIC);

    synthetic_handler = handler;
    apic[APIC_SPURIOUS / 4] = APIC_ENABLE | VECTOR_SPURIOUS;
    apic[APIC_LINT0 / 4] = APIC_EXTINT;
    apic[APIC_TPR / 4] = 0;
}

/* Lines 7 and 15 also report requests that went away; those have no bit in the in-service register. */
static bool spurious(int line)
{
    uint16_t pic = line < 8 ? PIC1 : PIC2;

    if ((line & 7) != 7)
        return false;
    outb(pic, OCW3_READ_ISR);
    if (inb(pic) & 0x80)
        return false;
    if (line == 15)
        outb(PIC1, OCW2_EOI); /* the cascade was real */
    return true;
}

static void irq(int line)
{
    if (spurious(line))
        return;
    if (handlers[line])
        handlers[line]();
    if (line >= 8)
        outb(PIC2, OCW2_EOI);
    outb(PIC1, OCW2_EOI);
}

const char *vector_name(uint32_t vector)
{
    static const char *const names[] = {
        "divide error", "debug trap", "NMI", "breakpoint", "overflow", "bound exceeded", "invalid opcode", "no coprocessor",
        "double fault", "coprocessor overrun", "invalid TSS", "segment not present", "stack fault", "general protection fault",
        "page fault", "reserved exception", "floating point error", "alignment check", "machine check", "SIMD error",
    };

    return vector < sizeof names / sizeof *names ? names[vector] : "exception";
}

void trap(struct trap_frame *frame)
{
    if (frame->vector == VECTOR_SYSTEM_CALL) {
        __asm__ volatile("sti");
        frame->eax = (uint32_t)system_call(frame->eax, frame->ebx, frame->ecx, frame->edx);
        __asm__ volatile("cli");
    } else if (frame->vector == VECTOR_SYNTHETIC) {
        if (synthetic_handler)
            synthetic_handler();
    } else if (frame->vector > VECTOR_SYNTHETIC) {
        return; /* VECTOR_SPURIOUS: nothing happened */
    } else if (frame->vector >= VECTOR_IRQ) {
        irq((int)frame->vector - VECTOR_IRQ);
    } else if ((frame->cs & 3) == 3) {
        program_fault(frame);
    } else {
        crash(vector_name(frame->vector), frame);
    }
}
