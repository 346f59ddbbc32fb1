/* What the kernel and a ring-3 program agree on: system calls, errors, structures, where a program lives. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define USER_BASE 0x40000000u
#define USER_SIZE 0x00080000u /* the whole range a program may own: image from the bottom, stack from the top */
#define USER_STACK 0x00008000u
#define PROGRAM_MAGIC 0x5052474Eu

struct program_header {
    uint32_t magic, entry, text_end, data_end, bss_end;
};

/* int 0x80: EAX = number, EBX, ECX, EDX = arguments; EAX = result, negative = -error. */
enum system_call {
    SYS_EXIT,      /* (): the kernel starts a new shell */
    SYS_WRITE,     /* (text, length): to the console */
    SYS_READLINE,  /* (buffer, size): a line without its end; E_BREAK on ctrl-c */
    SYS_BREAK,     /* (): 1 if ctrl-c was typed since the last look */
    SYS_COLOR,     /* (attribute): VGA attribute byte of what follows; returns the old one */
    SYS_DIR,       /* (index, struct file_info *): E_NOENT if the slot is empty, E_INVAL past the last */
    SYS_STAT,      /* (name, struct file_info *) */
    SYS_READ,      /* (struct file_io *): bytes read */
    SYS_CREATE,    /* (name, length): opens the one file being written; the old one of that name stays until SYS_COMMIT */
    SYS_APPEND,    /* (buffer, length): in multiples of 512 but for the last */
    SYS_COMMIT,    /* (): puts the file into the directory and flushes the disk */
    SYS_DELETE,    /* (name) */
    SYS_DISK_READ, /* (lba, count, buffer): sectors, for measuring */
    SYS_DISK_INFO, /* (struct disk_info *) */
    SYS_DISK_DMA,  /* (on): bus-master DMA instead of PIO; E_INVAL if the machine has none */
    SYS_TIME,      /* (struct time_info *) */
    SYS_MEMORY,    /* (struct memory_info *) */
    SYS_SLEEP,     /* (ticks) */
    SYS_BEEP,      /* (hertz, ticks) */
    SYS_PANIC,     /* (): crashes the kernel on purpose */
    SYS_REBOOT,
    SYS_HALT,
    SYS_COUNT
};

enum error {
    E_NOENT = 1, /* no such file */
    E_NAME,      /* not a file name */
    E_SPACE,     /* no contiguous room */
    E_FULL,      /* directory full */
    E_IO,        /* the disk reported an error */
    E_NOFILES,   /* no disk or no file area */
    E_INVAL,     /* nonsense argument */
    E_BREAK,     /* ctrl-c */
};

#define NAME_SIZE 40 /* with its zero */
#define SECTOR 512u

struct file_info {
    char name[NAME_SIZE];
    uint32_t length, crc, first_lba, modified; /* modified: seconds since 1970 */
};

struct file_io {
    const char *name;
    uint32_t offset; /* multiple of 512 */
    void *buffer;
    uint32_t length;
};

struct disk_info {
    char model[41], serial[21], driver[16];
    uint32_t sectors, multiple, lba48, dma; /* dma: possible */
    uint32_t requests, interrupts, retries, resets, timeouts, lost; /* lost: interrupts that never came */
};

struct time_info {
    uint32_t year, month, day, hour, minute, second; /* RTC; year 0 = no clock */
    uint32_t ticks, hertz, microseconds;             /* microseconds wrap after 71 minutes: subtract */
};

struct memory_range {
    uint32_t base, kib, type; /* below 4 GiB; kib saturates */
};

struct memory_info {
    uint32_t usable_kib, kernel_start, kernel_end, program_kib, ranges;
    struct memory_range range[32];
};
