/* The time stamp counter as the clock, where the processor has one: measured against the PIT before it is trusted.

   Each tick gives an interval in both counters; the median of some is right even if ticks were late or lost. From then on ticks
   and microseconds are computed from the counter when asked for, and the PIT is only the alarm: it may stand still. Invariant:
   tick numbers go on without a step at the moment of trust. */
#include "clocksource.h"
#include "abi.h"
#include "cpu.h"
#include "timer.h"

#define INTERVALS 9
#define MICROSECONDS_PER_TICK (1000000u / TIMER_HERTZ)

static struct {
    bool there;
    uint32_t measured, interval[INTERVALS]; /* counts per tick, in order of size */
    uint32_t per_tick;                      /* the one trusted; 0 = none yet */
    uint64_t last, start;                   /* start: what the counter was at tick 0 */
    uint32_t last_late;
} tsc;

static uint64_t now(void)
{
    uint64_t value;
    __asm__ volatile("rdtsc" : "=A"(value));
    return value;
}

/* The quotient must fit. */
static uint32_t divide(uint64_t value, uint32_t by, uint32_t *rest)
{
    uint32_t quotient;
    __asm__("divl %4" : "=a"(quotient), "=d"(*rest) : "0"((uint32_t)value), "1"((uint32_t)(value >> 32)), "rm"(by));
    return quotient;
}

void clocksource_init(void)
{
    uint32_t registers[4];

    tsc.there = cpuid(1, registers) && (registers[3] & 1 << 4);
}

bool clocksource_trusted(void) { return tsc.per_tick != 0; }

static void keep(uint64_t counts, uint32_t pit_counts)
{
    uint32_t rest, value, at = tsc.measured;

    if (counts >> 31 || pit_counts < TIMER_RELOAD / 2)
        return;
    value = divide(counts * TIMER_RELOAD, pit_counts, &rest);
    for (; at && tsc.interval[at - 1] > value; at--)
        tsc.interval[at] = tsc.interval[at - 1];
    tsc.interval[at] = value;
    tsc.measured++;
}

void clocksource_tick(uint32_t tick, uint32_t late)
{
    uint64_t at = now();
    uint32_t rest;

    if (!tsc.there || tsc.per_tick)
        return;
    if (tsc.last)
        keep(at - tsc.last, TIMER_RELOAD + late - tsc.last_late);
    tsc.last = at;
    tsc.last_late = late;
    if (tsc.measured < INTERVALS)
        return;
    tsc.measured = 0;
    if (tsc.interval[INTERVALS / 2] < TIMER_HERTZ * 1000)
        return; /* a counter that hardly counts */
    tsc.per_tick = tsc.interval[INTERVALS / 2];
    tsc.start = at - (uint64_t)tick * tsc.per_tick - divide((uint64_t)tsc.per_tick * late, TIMER_RELOAD, &rest);
}

uint32_t clocksource_ticks(void)
{
    uint32_t rest;

    return divide(now() - tsc.start, tsc.per_tick, &rest);
}

uint32_t clocksource_microseconds(void)
{
    uint32_t rest, more, ticks = divide(now() - tsc.start, tsc.per_tick, &rest);

    return ticks * MICROSECONDS_PER_TICK + divide((uint64_t)rest * MICROSECONDS_PER_TICK, tsc.per_tick, &more);
}
