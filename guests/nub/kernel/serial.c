/* COM1, 16550 or older, 115200 8N1: a second screen and keyboard. Input by IRQ 4, output polled. */
#include "console.h"
#include "cpu.h"
#include "io.h"
#include "mode.h"

enum { COM1 = 0x3F8, DATA = COM1, IER = COM1 + 1, FCR = COM1 + 2, IIR = COM1 + 2, LCR = COM1 + 3, MCR = COM1 + 4, LSR = COM1 + 5,
       MSR = COM1 + 6, SCRATCH = COM1 + 7 };
enum { DATA_READY = 0x01, THR_EMPTY = 0x20, NO_INTERRUPT = 0x01 };

static bool present;

/* ESC [ A and its relatives, as terminals send them for the arrow keys, and for F2 to F4. */
static char translate(char c)
{
    static int escape;
    static bool after_cr;

    if (c == '\n' && after_cr) { /* CR LF is one key */
        after_cr = false;
        return 0;
    }
    after_cr = c == '\r';
    if (c == 27) {
        escape = 1;
        return 0;
    }
    if (escape == 1) {
        escape = c == '[' || c == 'O' ? 2 : 0;
        return 0;
    }
    if (escape == 2) {
        escape = c >= '0' && c <= '9' ? 2 : 0;
        switch (c) {
        case 'A': return KEY_UP;
        case 'B': return KEY_DOWN;
        case 'C': return KEY_RIGHT;
        case 'D': return KEY_LEFT;
        case 'H': return KEY_HOME;
        case 'F': return KEY_END;
        case 'Q': mode_request(MODE_EMULATED); return 0;
        case 'R': mode_request(MODE_ENLIGHTENED); return 0;
        case 'S': mode_request(MODE_SHUNT_ONLY); return 0;
        default: return 0;
        }
    }
    if (c == 127)
        return KEY_BACKSPACE;
    return c == '\r' ? KEY_ENTER : c;
}

static void on_irq(void)
{
    /* Until the line is down: the PIC sees edges, and an interrupt left pending would be the last. */
    for (int other = 0; other < 16 && !(inb(IIR) & NO_INTERRUPT);) {
        if (inb(LSR) & DATA_READY) {
            char c = translate((char)inb(DATA));
            if (c)
                console_input(c);
        } else {
            (void)inb(MSR);
            other++;
        }
    }
}

bool serial_present(void) { return present; }

void serial_init(void)
{
    outb(SCRATCH, 0x5A);
    present = inb(SCRATCH) == 0x5A;
    outb(SCRATCH, 0xA5);
    present = present && inb(SCRATCH) == 0xA5;
    if (!present)
        return;
    outb(IER, 0);
    outb(LCR, 0x80); /* DLAB */
    outb(DATA, 1);
    outb(IER, 0);
    outb(LCR, 0x03);
    outb(FCR, 0x01); /* FIFO on, trigger at one byte; what the firmware left unread stays */
    outb(MCR, 0x0B); /* DTR, RTS, OUT2: the interrupt reaches the PIC */
    irq_install(4, on_irq);
    outb(IER, 0x01);
}

void serial_put(char c)
{
    if (!present)
        return;
    for (uint32_t spin = 0; !(inb(LSR) & THR_EMPTY) && spin < 20000; spin++)
        ;
    outb(DATA, (uint8_t)c);
}
