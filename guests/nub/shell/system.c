/* Commands about the machine. */
#include "sys.h"

static const char *const colors[16] = {
    "black", "blue", "green", "cyan", "red", "magenta", "brown", "gray",
    "darkgray", "brightblue", "brightgreen", "brightcyan", "brightred", "pink", "yellow", "white",
};

void cmd_time(char *args)
{
    struct time_info t;

    (void)args;
    call(SYS_TIME, (uint32_t)&t, 0, 0);
    if (t.year)
        print("%04u-%02u-%02u %02u:%02u:%02u", t.year, t.month, t.day, t.hour, t.minute, t.second);
    else
        print("no clock");
    print(", %u ticks of 1/%u s since the start\n", t.ticks, t.hertz);
}

void cmd_mem(char *args)
{
    static const char *const types[] = {"other", "usable", "reserved", "ACPI tables", "ACPI NVS", "bad"};
    struct memory_info m;

    (void)args;
    call(SYS_MEMORY, (uint32_t)&m, 0, 0);
    for (uint32_t i = 0; i < m.ranges; i++)
        print("  %08x %8u KiB  %s\n", m.range[i].base, m.range[i].kib, types[m.range[i].type < 6 ? m.range[i].type : 0]);
    print("%u KiB usable; kernel %08x-%08x, room for a program %u KiB.\n", m.usable_kib, m.kernel_start, m.kernel_end, m.program_kib);
}

void cmd_beep(char *args)
{
    const char *text = word(&args);
    uint32_t hertz = 880;

    if (text && (!number(text, &hertz) || hertz < 20 || hertz > 20000)) {
        print("A pitch is a number from 20 to 20000.\n");
        return;
    }
    call(SYS_BEEP, hertz, 4, 0);
}

void cmd_color(char *args)
{
    const char *name = word(&args);

    for (uint32_t i = 0; i < 16; i++) {
        if (!name) {
            uint32_t old = (uint32_t)call(SYS_COLOR, i ? i : 0x70, 0, 0); /* black on grey, to be seen */

            print("%s", colors[i]);
            call(SYS_COLOR, old, 0, 0);
            print(i < 15 ? " " : "\n");
        } else if (strcmp(name, colors[i]) == 0) {
            call(SYS_COLOR, i ? i : 0x70, 0, 0);
            return;
        }
    }
    if (name)
        print("There is no such colour.\n");
}

void cmd_echo(char *args) { print("%s\n", args); }

void cmd_crash(char *args)
{
    const char *what = word(&args);

    if (what && strcmp(what, "shell") == 0)
        *(volatile uint32_t *)0x00010000 = 0; /* the kernel's first page: not ours to write */
    else
        call(SYS_PANIC, 0, 0, 0);
}

void cmd_reboot(char *args)
{
    (void)args;
    call(SYS_REBOOT, 0, 0, 0);
}

void cmd_halt(char *args)
{
    (void)args;
    call(SYS_HALT, 0, 0, 0);
}
