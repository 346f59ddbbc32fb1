/* The time stamp counter as a clock (clocksource.c). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

void clocksource_init(void);
void clocksource_tick(uint32_t tick, uint32_t late); /* while it is measured: tick number, PIT counts since it was due */
bool clocksource_trusted(void);                      /* the two below may be used */
uint32_t clocksource_ticks(void);
uint32_t clocksource_microseconds(void);
