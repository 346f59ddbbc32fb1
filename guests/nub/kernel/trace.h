/* Telling the host of a request's way through our own layers while it wants to know (mode.c hears that): one OUT for each step. */
#pragma once
#include "disk.h"
#include "io.h"

enum trace_step {
    TRACE_ASKED = 1, /* on behalf of a program */
    TRACE_CLASS,
    TRACE_DIVERTED, /* by the shunt */
    TRACE_PASSED,   /* by the shunt, to the port driver below */
    TRACE_ATA,
    TRACE_STORVSC,
    TRACE_DONE, /* back at the class driver */
    TRACE_ANSWERED,
};

enum { TRACE_PORT = 0x5F4 };

extern bool trace_wanted;

static inline void trace(enum trace_step step, const struct disk_request *request)
{
    if (trace_wanted)
        outl(TRACE_PORT, (uint32_t)step << 24 | (request->number & 0xFFFFFF));
}
