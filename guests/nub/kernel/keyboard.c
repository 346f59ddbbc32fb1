/* The PS/2 keyboard behind an 8042, IRQ 1, scan code set 1 (translated), US layout. */
#include "console.h"
#include "cpu.h"
#include "io.h"
#include "mode.h"

enum { DATA = 0x60, STATUS = 0x64, COMMAND = 0x64 };
enum { OUTPUT_FULL = 0x01, INPUT_FULL = 0x02, FROM_MOUSE = 0x20 };
enum { READ_MODE = 0x20, WRITE_MODE = 0x60, MODE_IRQ1 = 0x01, MODE_KEYBOARD_OFF = 0x10, MODE_TRANSLATE = 0x40 };
enum { KEYBOARD_LEDS = 0xED, KEYBOARD_ENABLE = 0xF4, ACK = 0xFA, RESEND = 0xFE };
enum { LEFT_SHIFT = 0x2A, RIGHT_SHIFT = 0x36, CTRL = 0x1D, ALT = 0x38, CAPS = 0x3A, F2 = 0x3C, F3 = 0x3D, F4 = 0x3E, NUM = 0x45,
       RELEASED = 0x80, EXTENDED = 0xE0, PAUSE = 0xE1 };

static const char plain[] = "\0\0331234567890-=\b\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[] = "\0\033!@#$%^&*()_+\b\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";
static const char keypad[] = "789-456+1230."; /* 0x47 on */

static bool shift_left, shift_right, ctrl, alt, caps, extended;
static int pause_bytes;
static bool leds_wanted;

static bool can_write(void)
{
    for (uint32_t spin = 0; spin < 20000; spin++)
        if (!(inb(STATUS) & INPUT_FULL))
            return true;
    return false;
}

static int answer(void)
{
    for (uint32_t spin = 0; spin < 20000; spin++)
        if (inb(STATUS) & OUTPUT_FULL)
            return inb(DATA);
    return -1;
}

static void set_leds(void)
{
    if (can_write())
        outb(DATA, KEYBOARD_LEDS); /* the lamps follow at the keyboard's ACK */
    leds_wanted = true;
}

static char extended_key(uint8_t code)
{
    switch (code) {
    case 0x48: return KEY_UP;
    case 0x50: return KEY_DOWN;
    case 0x4B: return KEY_LEFT;
    case 0x4D: return KEY_RIGHT;
    case 0x47: return KEY_HOME;
    case 0x4F: return KEY_END;
    case 0x53: return KEY_DELETE;
    case 0x1C: return KEY_ENTER;
    case 0x35: return '/';
    default: return 0;
    }
}

static char key(uint8_t code)
{
    bool shift = shift_left || shift_right;
    char c;

    if (code >= 0x47 && code < 0x47 + sizeof keypad - 1)
        return keypad[code - 0x47];
    if (code >= sizeof plain - 1)
        return 0;
    c = plain[code];
    if (c >= 'a' && c <= 'z') {
        if (ctrl)
            return c - 'a' + 1;
        return shift != caps ? c - 32 : c;
    }
    return ctrl || c == 27 ? 0 : shift ? shifted[code] : c;
}

static void scan_code(uint8_t code)
{
    bool down = !(code & RELEASED), was_extended = extended;
    char c;

    if (pause_bytes) { /* E1 1D 45 E1 9D C5: nothing we use */
        pause_bytes--;
        return;
    }
    extended = code == EXTENDED;
    if (extended)
        return;
    if (code == PAUSE) {
        pause_bytes = 2;
        return;
    }
    switch (code & ~RELEASED) {
    case LEFT_SHIFT:
        if (!was_extended) /* E0 2A is a shift made up by the keyboard */
            shift_left = down;
        return;
    case RIGHT_SHIFT:
        if (!was_extended)
            shift_right = down;
        return;
    case CTRL:
        ctrl = down;
        return;
    case ALT:
        alt = down;
        return;
    case CAPS:
        if (down) {
            caps = !caps;
            set_leds();
        }
        return;
    case NUM:
        return;
    case F2:
    case F3:
    case F4:
        if (down)
            mode_request(MODE_EMULATED + (code - F2));
        return;
    }
    if (!down || alt)
        return;
    c = was_extended ? extended_key(code) : key(code);
    if (c)
        console_input(c);
}

static void on_irq(void)
{
    for (int i = 0; i < 16; i++) {
        uint8_t status = inb(STATUS), code;

        if (!(status & OUTPUT_FULL))
            return;
        code = inb(DATA);
        if (status & FROM_MOUSE)
            continue;
        if (code == ACK || code == RESEND) {
            if (code == ACK && leds_wanted && can_write())
                outb(DATA, caps ? 4 : 0);
            leds_wanted = false;
        } else {
            scan_code(code);
        }
    }
}

void keyboard_init(void)
{
    int mode;

    for (int i = 0; i < 32 && (inb(STATUS) & OUTPUT_FULL); i++)
        (void)inb(DATA);
    if (!can_write())
        return; /* no controller: the serial line is the keyboard */
    outb(COMMAND, READ_MODE);
    mode = answer();
    if (mode < 0)
        return;
    if (can_write())
        outb(COMMAND, WRITE_MODE);
    if (can_write())
        outb(DATA, (uint8_t)((mode | MODE_IRQ1 | MODE_TRANSLATE) & ~MODE_KEYBOARD_OFF));
    irq_install(1, on_irq);
    if (can_write())
        outb(DATA, KEYBOARD_ENABLE);
}
