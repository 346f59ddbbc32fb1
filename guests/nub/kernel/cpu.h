/* Descriptor tables, traps and the crash of the kernel itself. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct trap_frame {
    uint32_t gs, fs, es, ds;
    uint32_t edi, esi, ebp, esp_at_pusha, ebx, edx, ecx, eax;
    uint32_t vector, error;
    uint32_t eip, cs, eflags;
    uint32_t esp, ss; /* only when the trap came from ring 3 */
};

enum { VECTOR_PAGE_FAULT = 14, VECTOR_IRQ = 0x20, VECTOR_SYNTHETIC = 0x30, VECTOR_SPURIOUS = 0x3F, VECTOR_SYSTEM_CALL = 0x80 };

typedef void irq_handler(void);

void cpu_init(void);                              /* GDT, TSS, IDT, PIC; all lines masked */
void irq_install(int line, irq_handler *handler); /* and unmasks the line */
void irq_mask(int line);
void irq_unmask(int line);
void apic_install(irq_handler *handler);              /* VECTOR_SYNTHETIC, which ends itself; enables the local APIC, the PIC stays */
bool cpuid(uint32_t leaf, uint32_t registers[4]);     /* EAX, EBX, ECX, EDX; false on a processor that is too old */
const char *vector_name(uint32_t vector);

/* The crash screen: prints `why` and the registers, has the disk's port driver write the dump, and stops for good. */
_Noreturn void crash(const char *why, const struct trap_frame *frame);

_Noreturn void enter_user(uint32_t entry, uint32_t stack); /* entry.asm */
