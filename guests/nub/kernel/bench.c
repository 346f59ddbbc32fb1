/* Measuring the disk: a number of requests of one size, so many in flight, on the stack that user mode sees.

   Writes go to free sectors of the file area, reads come from the start of the disk. Invariant: returns only when no request of
   its own is left. */
#include "console.h"
#include "disk.h"
#include "files.h"
#include "io.h"
#include "lib/text.h"
#include "mode.h"
#include "timer.h"
#include "trace.h"

#define DEPTH 16
#define REGION 1024u /* sectors that are used over and over */

#define SAMPLES 1024u

static struct disk_request requests[DEPTH];
static uint32_t started[DEPTH], sample[SAMPLES], samples;

static struct {
    struct disk *disk;
    uint32_t first, sectors, at; /* the region; `at` is where the next request goes */
    uint32_t left;               /* requests still to be sent */
    volatile uint32_t flying;
    int status;
} run;

static void next(struct disk_request *request)
{
    if (run.at + request->count > run.sectors)
        run.at = 0;
    request->lba = run.first + run.at;
    run.at += request->count;
    run.left--;
    run.flying++;
    started[request - requests] = timer_microseconds();
    request->number = disk_number();
    trace(TRACE_ASKED, request);
    disk_submit(run.disk, request);
}

static void done(struct disk_request *request)
{
    trace(TRACE_ANSWERED, request);
    run.flying--;
    if (samples < SAMPLES)
        sample[samples++] = timer_microseconds() - started[request - requests];
    if (request->status)
        run.status = request->status;
    if (console_break_pending())
        run.status = -E_BREAK;
    if (run.left && !run.status)
        next(request);
}

static void sort(void)
{
    for (uint32_t i = 1; i < samples; i++) {
        uint32_t value = sample[i], at = i;

        for (; at && sample[at - 1] > value; at--)
            sample[at] = sample[at - 1];
        sample[at] = value;
    }
}

static void measure(const struct bench *bench)
{
    bool on = irq_save();

    for (uint32_t i = 0; i < bench->depth && run.left; i++) {
        requests[i] = (struct disk_request){.operation = bench->write ? DISK_WRITE : DISK_READ, .count = bench->size / SECTOR,
                                            .buffer = bench->buffer, .done = done};
        next(requests + i);
    }
    while (run.flying)
        if (!mode_poll())
            wait_for_interrupt();
    irq_restore(on);
}

int bench_run(struct bench *bench)
{
    uint32_t start, count = bench->size / SECTOR;

    if (bench->size == 0 || bench->size % SECTOR || bench->depth == 0 || bench->depth > DEPTH || bench->requests == 0)
        return -E_INVAL;
    (void)mode_poll();
    run.disk = disk_visible();
    if (!run.disk)
        return -E_NOFILES;
    run.first = 0;
    run.sectors = run.disk->identity.sectors < REGION ? run.disk->identity.sectors : REGION;
    if (count > run.sectors)
        return -E_INVAL;
    while (bench->write && !(run.first = files_free(run.sectors))) { /* as much as there is, but room for one request */
        run.sectors /= 2;
        if (run.sectors < count)
            return -E_SPACE;
    }
    run.at = 0;
    run.left = bench->requests;
    run.status = 0;
    samples = 0;
    start = timer_microseconds();
    measure(bench);
    bench->microseconds = timer_microseconds() - start;
    bench->mode = mode_current();
    sort();
    if (samples) {
        bench->p50 = sample[(samples - 1) / 2];
        bench->p99 = sample[(samples - 1) * 99 / 100];
    }
    return run.status;
}
