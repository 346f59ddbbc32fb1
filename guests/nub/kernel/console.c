/* The console proper: every byte goes to the screen and to COM1; typed bytes from either wait in one ring. */
#include "console.h"
#include "abi.h"
#include "disk.h"
#include "io.h"
#include "lib/text.h"
#include "mode.h"
#include "timer.h"

#define RING 1024 /* a power of two */

static uint8_t color = 0x07;
static volatile char ring[RING];
static volatile uint32_t head, tail;
static volatile bool broken;

void console_write(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        vga_put(text[i], color);
        if (text[i] == '\n')
            serial_put('\r');
        serial_put(text[i]);
    }
    vga_show();
}

void print(const char *pattern, ...)
{
    char text[256];
    va_list args;

    va_start(args, pattern);
    console_write(text, format(text, sizeof text, pattern, args));
    va_end(args);
}

uint8_t console_color(uint8_t attribute)
{
    uint8_t old = color;

    color = attribute;
    return old;
}

void console_input(char c)
{
    if (c == KEY_BREAK) {
        broken = true;
        tail = head; /* what was typed ahead is gone too */
        return;
    }
    if (head - tail < RING) {
        ring[head % RING] = c;
        head++;
    }
}

int console_key(void)
{
    bool on = irq_save();
    int key;

    while (head == tail && !broken) {
        if (mode_poll())
            continue; /* that took a while */
        if (disk_busy())
            wait_for_interrupt();
        else
            timer_idle();
    }
    if (broken) {
        broken = false;
        key = -E_BREAK;
    } else {
        key = ring[tail % RING];
        tail++;
    }
    irq_restore(on);
    return key;
}

bool console_break_pending(void) { return broken; }

bool console_take_break(void)
{
    bool was = broken;

    broken = false;
    return was;
}
