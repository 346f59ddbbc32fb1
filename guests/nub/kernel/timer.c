/* 8254: channel 0 ticks at 20 Hz on IRQ 0, channel 2 drives the speaker.

   Once the time stamp counter is trusted (clocksource.c) it counts the ticks, and an idle kernel stops channel 0: a halted guest
   then costs its host nothing. */
#include "timer.h"
#include "clocksource.h"
#include "console.h"
#include "cpu.h"
#include "io.h"

enum { PIT_0 = 0x40, PIT_2 = 0x42, PIT_CONTROL = 0x43, PORT_B = 0x61, PIC = 0x20, OCW3_READ_IRR = 0x0A };
enum { MODE2_CHANNEL0 = 0x34, MODE3_CHANNEL2 = 0xB6, LATCH_CHANNEL0 = 0x00 };

#define PIT_HERTZ 1193182u
#define RELOAD TIMER_RELOAD
#define MICROSECONDS_PER_TICK (1000000u / TIMER_HERTZ)
#define TICK_HANDLERS 4

static volatile uint32_t ticks;
static tick_handler *handlers[TICK_HANDLERS];

/* PIT counts since the tick that `ticks` stands for. */
static uint32_t since_tick(void)
{
    uint32_t counter;

    outb(PIT_CONTROL, LATCH_CHANNEL0);
    counter = inb(PIT_0);
    counter |= (uint32_t)inb(PIT_0) << 8;
    if (counter > RELOAD)
        counter = RELOAD;
    outb(PIC, OCW3_READ_IRR);
    if ((inb(PIC) & 1) && counter > RELOAD / 2)
        return 2 * RELOAD - counter; /* the counter has started anew, but its interrupt waits for us */
    return RELOAD - counter;
}

static void on_irq(void)
{
    if (!clocksource_trusted()) {
        ticks++;
        clocksource_tick(ticks, since_tick());
    }
    for (int i = 0; i < TICK_HANDLERS && handlers[i]; i++)
        handlers[i]();
}

static void start(void)
{
    outb(PIT_CONTROL, MODE2_CHANNEL0);
    outb(PIT_0, RELOAD & 0xFF);
    outb(PIT_0, RELOAD >> 8);
}

void timer_init(void)
{
    clocksource_init();
    start();
    irq_install(0, on_irq);
}

void timer_idle(void)
{
    if (!clocksource_trusted()) {
        wait_for_interrupt();
        return;
    }
    outb(PIT_CONTROL, MODE2_CHANNEL0); /* no count follows: the channel stands still, its output high */
    irq_mask(0);                       /* for boards where it does not */
    wait_for_interrupt();
    start();
    irq_unmask(0);
}

void timer_on_tick(tick_handler *handler)
{
    for (int i = 0; i < TICK_HANDLERS; i++) {
        if (!handlers[i]) {
            handlers[i] = handler;
            return;
        }
    }
}

uint32_t timer_ticks(void) { return clocksource_trusted() ? clocksource_ticks() : ticks; }

uint32_t timer_microseconds(void)
{
    bool on;
    uint32_t whole, counts;

    if (clocksource_trusted())
        return clocksource_microseconds();
    on = irq_save();
    whole = ticks;
    counts = since_tick();
    irq_restore(on);
    for (; counts >= RELOAD; counts -= RELOAD)
        whole++;
    return whole * MICROSECONDS_PER_TICK + counts * MICROSECONDS_PER_TICK / RELOAD;
}

void timer_sleep(uint32_t length)
{
    uint32_t begin = timer_ticks();
    bool on = irq_save();

    while (timer_ticks() - begin < length && !console_break_pending())
        wait_for_interrupt();
    irq_restore(on);
}

void beep(uint32_t hertz, uint32_t length)
{
    uint32_t reload = PIT_HERTZ / (hertz < 19 ? 19 : hertz > 20000 ? 20000 : hertz);

    outb(PIT_CONTROL, MODE3_CHANNEL2);
    outb(PIT_2, reload & 0xFF);
    outb(PIT_2, (uint8_t)(reload >> 8));
    outb(PORT_B, inb(PORT_B) | 3);
    timer_sleep(length);
    outb(PORT_B, inb(PORT_B) & ~3);
}
