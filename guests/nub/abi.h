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
    SYS_MODE,      /* (enum disk_mode): switches; (MODE_ASK): the mode in force */
    SYS_SHUNT,     /* (enum shunt_embodiment or SHUNT_ASK, struct shunt_info * or NULL) */
    SYS_DEVICE,    /* (enum stack, struct disk_info *): asks a class driver; E_NODEV if it tells nothing */
    SYS_BENCH,     /* (struct bench *) */
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
    E_NODEV,     /* no such device, as far as one is told */
    E_PLAIN,     /* no hypervisor with an enlightened interface */
    E_NOBUS,     /* it does not answer */
    E_NOCHANNEL, /* it offers no disk controller */
    E_OTHERDISK, /* the controller does not have the disk we started from */
    E_GONE,      /* the device went away; inside the kernel only: a shunt sends the request elsewhere */
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

/* How the requests for the disk go. */
enum disk_mode {
    MODE_EMULATED,    /* class driver, ATA port driver, port accesses */
    MODE_ENLIGHTENED, /* what comes to the emulating stack is shunted to the port driver over VMBus */
    MODE_SHUNT_ONLY,  /* no enlightened stack: the shunt itself sends reads and writes over VMBus, and all else to the ATA port driver */
    MODE_ASK,
};

/* When there is a shunt, and what it goes by. */
enum shunt_embodiment {
    SHUNT_LATE,    /* it comes and goes with the enlightened stack, and diverts everything */
    SHUNT_TOLD,    /* always there, does as the mode switch tells it */
    SHUNT_DEFAULT, /* always there, diverts unless the enlightened port driver does not accept */
    SHUNT_PORT,    /* always there, opened and closed by the enlightened port driver */
    SHUNT_ASK,
};

struct shunt_info {
    uint32_t embodiment, present, diverting, back; /* back: the enlightened stack's shunt sends requests to the emulating one */
    uint32_t diverted, passed, returned;           /* returned: diverted, but the enlightened side was gone */
    uint32_t accepting;                            /* the enlightened port driver takes requests */
};

enum stack { STACK_EMULATING, STACK_ENLIGHTENED };

struct bench {
    uint32_t write, size, depth, requests; /* size: bytes a request, at most 64 KiB; depth: requests in flight */
    void *buffer;                          /* of `size` bytes, shared by all */
    uint32_t microseconds, p50, p99, mode; /* results: time in all, what half and 99 % of the requests stayed below */
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
