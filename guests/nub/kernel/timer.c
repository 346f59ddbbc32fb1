/* 8254: channel 0 ticks at 20 Hz on IRQ 0 (rarely enough to be cheap when idle), channel 2 drives the speaker. */
#include "timer.h"
#include "console.h"
#include "cpu.h"
#include "io.h"

enum { PIT_0 = 0x40, PIT_2 = 0x42, PIT_CONTROL = 0x43, PORT_B = 0x61 };
enum { MODE2_CHANNEL0 = 0x34, MODE3_CHANNEL2 = 0xB6, LATCH_CHANNEL0 = 0x00 };

#define PIT_HERTZ 1193182u
#define RELOAD (PIT_HERTZ / TIMER_HERTZ)
#define MICROSECONDS_PER_TICK (1000000u / TIMER_HERTZ)
#define TICK_HANDLERS 4

static volatile uint32_t ticks;
static tick_handler *handlers[TICK_HANDLERS];

static void on_irq(void)
{
    ticks++;
    for (int i = 0; i < TICK_HANDLERS && handlers[i]; i++)
        handlers[i]();
}

void timer_init(void)
{
    outb(PIT_CONTROL, MODE2_CHANNEL0);
    outb(PIT_0, RELOAD & 0xFF);
    outb(PIT_0, RELOAD >> 8);
    irq_install(0, on_irq);
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

uint32_t timer_ticks(void) { return ticks; }

uint32_t timer_microseconds(void)
{
    bool on = irq_save();
    uint32_t whole = ticks, counter;

    outb(PIT_CONTROL, LATCH_CHANNEL0);
    counter = inb(PIT_0);
    counter |= (uint32_t)inb(PIT_0) << 8;
    outb(0x20, 0x0A); /* OCW3: read the IRR */
    if ((inb(0x20) & 1) && counter > RELOAD / 2)
        whole++; /* the counter has started anew, but its interrupt waits for us */
    irq_restore(on);
    if (counter > RELOAD)
        counter = RELOAD;
    return whole * MICROSECONDS_PER_TICK + (RELOAD - counter) * MICROSECONDS_PER_TICK / RELOAD;
}

void timer_sleep(uint32_t length)
{
    uint32_t start = ticks;
    bool on = irq_save();

    while (ticks - start < length && !console_break_pending())
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
