/* Paging: the first 4 MiB one to one for the kernel (page 0 absent, to catch null pointers), one page table for the program. */
#include "memory.h"
#include "lib/text.h"

#define PAGE 4096u
#define USER_PHYSICAL 0x00100000u /* the program's pages, from 1 MiB */

enum { PRESENT = 1, WRITABLE = 2, USER = 4, UNCACHED = 16 };

extern char bss_end[];

static uint32_t directory[1024] __attribute__((aligned(4096)));
static uint32_t kernel_pages[1024] __attribute__((aligned(4096)));
static uint32_t user_pages[1024] __attribute__((aligned(4096)));
static uint32_t device_pages[1024] __attribute__((aligned(4096)));
static struct memory_info memory;

static void note_range(const struct boot_range *range)
{
    struct memory_range *to = memory.range + memory.ranges;

    if (range->base_high || (range->length | range->length_high) == 0)
        return;
    to->base = range->base;
    to->kib = range->length_high >= 0x400 ? 0xFFFFFFFF : range->length_high << 22 | range->length >> 10;
    to->type = range->type;
    memory.ranges++;
    if (range->type == 1)
        memory.usable_kib += to->kib;
}

static bool has_ram(uint32_t from, uint32_t to)
{
    for (uint32_t i = 0; i < memory.ranges; i++) {
        const struct memory_range *range = memory.range + i;

        if (range->type == 1 && range->base <= from && (to - range->base) / 1024 <= range->kib)
            return true;
    }
    return false;
}

int memory_init(const struct boot_info *boot)
{
    for (uint32_t i = 0; i < boot->ranges && i < BOOT_RANGES; i++)
        note_range(boot->range + i);
    if (memory.ranges == 0) { /* firmware without E820 */
        note_range(&(struct boot_range){.base = 0, .length = 0x9F000, .type = 1});
        note_range(&(struct boot_range){.base = 0x100000, .length = boot->high_kib << 10, .length_high = boot->high_kib >> 22, .type = 1});
    }
    memory.kernel_start = 0x10000;
    memory.kernel_end = (uint32_t)bss_end;
    memory.program_kib = USER_SIZE / 1024;

    for (uint32_t i = 1; i < 1024; i++)
        kernel_pages[i] = i * PAGE | WRITABLE | PRESENT;
    directory[0] = (uint32_t)kernel_pages | WRITABLE | PRESENT;
    directory[USER_BASE >> 22] = (uint32_t)user_pages | USER | WRITABLE | PRESENT;
    __asm__ volatile("movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0; jmp 1f; 1:" /* PG, WP */
                     : : "r"(directory) : "eax", "memory");
    return has_ram(USER_PHYSICAL, USER_PHYSICAL + USER_SIZE) ? 0 : -E_SPACE;
}

uint32_t memory_usable_kib(void) { return memory.usable_kib; }

void memory_info(struct memory_info *info) { *info = memory; }

uint32_t memory_physical(const void *address)
{
    uint32_t at = (uint32_t)address;

    return at < USER_BASE ? at : at - USER_BASE + USER_PHYSICAL;
}

static void flush_tlb(void) { __asm__ volatile("movl %0, %%cr3" : : "r"(directory) : "memory"); }

void *memory_map_device(uint32_t address)
{
    directory[address >> 22] = (uint32_t)device_pages | WRITABLE | PRESENT;
    device_pages[address >> 12 & 1023] = (address & ~(PAGE - 1)) | UNCACHED | WRITABLE | PRESENT;
    flush_tlb();
    return (void *)address;
}

void user_unmap_all(void)
{
    memset(user_pages, 0, sizeof user_pages);
    flush_tlb();
}

void user_map(uint32_t from, uint32_t to, bool writable)
{
    for (uint32_t at = from & ~(PAGE - 1); at < to; at += PAGE)
        user_pages[(at - USER_BASE) / PAGE] = (USER_PHYSICAL + at - USER_BASE) | USER | (writable ? WRITABLE : 0) | PRESENT;
    flush_tlb();
}

bool user_range(const void *start, uint32_t length, bool writable)
{
    uint32_t from = (uint32_t)start - USER_BASE;

    if (from >= USER_SIZE || length > USER_SIZE - from)
        return false;
    for (uint32_t page = from / PAGE; page * PAGE < from + length; page++)
        if (!(user_pages[page] & PRESENT) || (writable && !(user_pages[page] & WRITABLE)))
            return false;
    return true;
}
