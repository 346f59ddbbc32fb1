/* Which way the disk is reached, and switching it (mode.c). */
#pragma once
#include <stdbool.h>
#include "abi.h"

int mode_init(void);                     /* finds the disk; the mode is MODE_EMULATED */
enum disk_mode mode_current(void);
int mode_set(uint32_t mode);             /* waits; 0, or the error that kept the mode as it was */
void mode_request(enum disk_mode mode);  /* from an interrupt: a key, or the host */
bool mode_poll(void);                    /* does what was requested; false if nothing was */
int bench_run(struct bench *bench);      /* bench.c */
