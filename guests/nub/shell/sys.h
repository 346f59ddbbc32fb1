/* System calls as functions, and what the shell's files share. */
#pragma once
#include "abi.h"
#include "lib/text.h"

static inline int call(enum system_call number, uint32_t a, uint32_t b, uint32_t c)
{
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

#define CHUNK (64u * 1024)
extern uint8_t chunk[CHUNK]; /* the one large buffer */

void print(const char *pattern, ...);
void complain(int error);          /* one sentence */
char *word(char **args);           /* cuts the next word off; NULL if there is none */
bool number(const char *text, uint32_t *value);
const char *mode_name(uint32_t mode); /* stacks.c */

/* Commands: `args` is the rest of the line. */
typedef void command(char *args);
command cmd_dir, cmd_read, cmd_write, cmd_delete, cmd_copy, cmd_sum;                       /* files.c */
command cmd_bench, cmd_disk;                                                               /* disk.c */
command cmd_mode, cmd_shunt, cmd_devices;                                                  /* stacks.c */
command cmd_time, cmd_mem, cmd_beep, cmd_color, cmd_echo, cmd_crash, cmd_reboot, cmd_halt; /* system.c */
