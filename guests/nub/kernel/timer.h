/* Time: the PIT's ticks, a microsecond count made from its counter, the speaker, the RTC. */
#pragma once
#include <stdint.h>
#include "abi.h"

#define TIMER_HERTZ 20u
#define TIMER_RELOAD (1193182u / TIMER_HERTZ) /* PIT counts of a tick */

typedef void tick_handler(void);

void timer_init(void);
void timer_on_tick(tick_handler *handler); /* called at each tick, interrupts off */
uint32_t timer_ticks(void);
uint32_t timer_microseconds(void); /* wraps */
void timer_sleep(uint32_t ticks);
void timer_idle(void); /* interrupts off: waits for one as wait_for_interrupt() does, without ticks meanwhile if it can */
void beep(uint32_t hertz, uint32_t ticks);
void rtc_read(struct time_info *time);  /* year 0 if there is no clock */
uint32_t rtc_seconds(void);             /* since 1970; 0 if there is no clock */
