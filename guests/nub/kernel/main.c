/* nub, the kernel of the avmm guest: starts everything in order and hands over to the shell. */
#include "boot.h"
#include "console.h"
#include "cpu.h"
#include "disk.h"
#include "files.h"
#include "io.h"
#include "lib/text.h"
#include "memory.h"
#include "mode.h"
#include "program.h"
#include "timer.h"

static struct boot_info boot;

static void banner(void)
{
    const struct disk_identity *disk = disk_identity();
    uint8_t color = console_color(0x0F);

    print("avmm guest 1.0\n");
    console_color(color);
    print("memory: %u KiB\n", memory_usable_kib());
    if (disk)
        print("disk: %s, %u KiB\n", disk->model, disk->sectors / 2);
    else
        print("disk: none\n");
}

_Noreturn void kmain(void)
{
    memcpy(&boot, (const void *)BOOT_INFO_ADDRESS, sizeof boot);
    if (boot.magic != BOOT_INFO_MAGIC) /* entered by something that is not our setup */
        memset(&boot, 0, sizeof boot);
    vga_init(boot.column, boot.row);
    cpu_init();
    serial_init();
    if (memory_init(&boot) != 0)
        crash("the machine has too little memory (2 MiB are needed)", NULL);
    timer_init();
    keyboard_init();
    irq_restore(true);
    (void)mode_init();
    banner();
    crash_report();
    if (files_mount() != 0 && disk_identity())
        print("There is no file area on this disk.\n");
    program_start();
}
