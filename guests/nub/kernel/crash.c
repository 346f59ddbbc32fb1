/* The kernel's own end: a screen with the registers and a dump on the disk.

   The dump is written by the port driver that talks to the hardware itself, polled, with interrupts off: nothing else can be
   trusted by then. It lies at DUMP_LBA (guests/README.md): one sector of header, then the text screen. */
#include "console.h"
#include "cpu.h"
#include "disk.h"
#include "io.h"
#include "lib/text.h"
#include "timer.h"

#define DUMP_LBA 240
#define DUMP_SECTORS 9
#define DUMP_MAGIC 0x4D55444E /* "NDUM" */

struct dump {
    uint32_t magic, ticks, cr2, cr3, length; /* length: bytes of screen text after this sector */
    char why[44];
    struct trap_frame frame;
};

static uint8_t image[DUMP_SECTORS * 512] __attribute__((aligned(4)));

static uint32_t cr2(void)
{
    uint32_t value;
    __asm__ volatile("movl %%cr2, %0" : "=r"(value));
    return value;
}

static uint32_t cr3(void)
{
    uint32_t value;
    __asm__ volatile("movl %%cr3, %0" : "=r"(value));
    return value;
}

static int dump(const char *why, const struct trap_frame *frame)
{
    struct dump *header = (struct dump *)image;
    size_t length = strlen(why);

    memset(image, 0, sizeof image);
    header->magic = DUMP_MAGIC;
    header->ticks = timer_ticks();
    header->cr2 = cr2();
    header->cr3 = cr3();
    memcpy(header->why, why, length < sizeof header->why ? length : sizeof header->why - 1);
    if (frame)
        header->frame = *frame;
    header->length = vga_text((char *)image + 512, sizeof image - 512);
    return disk_dump(DUMP_LBA, DUMP_SECTORS, image);
}

_Noreturn void crash(const char *why, const struct trap_frame *frame)
{
    static bool again;

    __asm__ volatile("cli");
    console_color(0x1F);
    if (again) { /* the crash crashed: no more attempts */
        print("\nThe crash screen failed as well: %s.\n", why);
        for (;;)
            __asm__ volatile("hlt");
    }
    again = true;
    print("\n*** The kernel has crashed: %s ***\n", why);
    if (frame) {
        bool user = (frame->cs & 3) == 3;

        print("EAX %08x  EBX %08x  ECX %08x  EDX %08x\n", frame->eax, frame->ebx, frame->ecx, frame->edx);
        print("ESI %08x  EDI %08x  EBP %08x  ESP %08x\n", frame->esi, frame->edi, frame->ebp,
              user ? frame->esp : (uint32_t)(&frame->esp));
        print("EIP %08x  CS %04x  EFLAGS %08x  error %04x  CR2 %08x\n", frame->eip, frame->cs, frame->eflags, frame->error, cr2());
    }
    print("Writing the dump ... ");
    print(dump(why, frame) == 0 ? "done.\n" : "failed.\n");
    print("Reset the machine to start again.");
    for (;;)
        __asm__ volatile("cli; hlt");
}

void crash_report(void)
{
    struct dump *header = (struct dump *)image;

    if (disk_read(DUMP_LBA, 1, image) != 0 || header->magic != DUMP_MAGIC)
        return;
    header->why[sizeof header->why - 1] = 0;
    print("The last run crashed: %s at EIP %08x, tick %u.\n", header->why, header->frame.eip, header->ticks);
    header->magic = 0;
    (void)disk_write(DUMP_LBA, 1, image);
    (void)disk_flush();
}
