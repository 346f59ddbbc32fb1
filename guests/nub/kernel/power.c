/* Power off through ACPI's PM1a_CNT register, reset through the keyboard controller. */
#include "power.h"
#include "console.h"
#include "disk.h"
#include "io.h"
#include "mode.h"

enum { PM1A_CNT = 0xB004, PM1A_CNT_PIIX4 = 0x604, SLP_EN = 0x2000 }; /* SLP_TYP 0 is S5 on both boards */
enum { KBC_COMMAND = 0x64, KBC_RESET = 0xFE, RESET_CONTROL = 0xCF9 };

_Noreturn void power_off(void)
{
    (void)mode_set(MODE_EMULATED); /* no channel stays open behind us */
    if (disk_flush() != 0)
        print("The disk could not be flushed.\n");
    print("System halted.\n");
    __asm__ volatile("cli");
    outw(PM1A_CNT, SLP_EN);
    outw(PM1A_CNT_PIIX4, SLP_EN);
    for (;;)
        __asm__ volatile("cli; hlt");
}

_Noreturn void power_reboot(void)
{
    static const struct {
        uint16_t limit;
        uint32_t base;
    } __attribute__((packed)) no_idt = {0, 0};

    (void)mode_set(MODE_EMULATED); /* no channel stays open behind us */
    if (disk_flush() != 0)
        print("The disk could not be flushed.\n");
    print("Restarting.\n");
    __asm__ volatile("cli");
    for (uint32_t spin = 0; (inb(KBC_COMMAND) & 2) && spin < 20000; spin++)
        ;
    outb(KBC_COMMAND, KBC_RESET);
    for (uint32_t spin = 0; spin < 20000; spin++)
        (void)inb(0x80);
    outb(RESET_CONTROL, 0x06);
    __asm__ volatile("lidt %0; int3" : : "m"(no_idt)); /* a triple fault resets any PC */
    for (;;)
        __asm__ volatile("hlt");
}
