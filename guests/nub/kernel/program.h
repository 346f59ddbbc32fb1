/* The one ring-3 program, the shell: started, restarted when it dies, served. */
#pragma once
#include "cpu.h"

_Noreturn void program_start(void);
_Noreturn void program_fault(const struct trap_frame *frame);
int system_call(uint32_t number, uint32_t a, uint32_t b, uint32_t c); /* syscall.c */
