/* The VGA in text mode 3, 80x25. A copy in RAM is what scrolls; video memory is only ever written. */
#include "console.h"
#include "io.h"
#include "lib/text.h"

enum { CRTC_INDEX = 0x3D4, CRTC_DATA = 0x3D5, CURSOR_START = 0x0A, CURSOR_END = 0x0B, CURSOR_HIGH = 0x0E, CURSOR_LOW = 0x0F };
enum { COLUMNS = 80, ROWS = 25 };

static uint16_t *const video = (uint16_t *)0xB8000;
static uint16_t cells[ROWS * COLUMNS];
static uint32_t at;

static void crtc(uint8_t index, uint8_t value)
{
    outb(CRTC_INDEX, index);
    outb(CRTC_DATA, value);
}

void vga_init(uint32_t column, uint32_t row)
{
    memcpy(cells, video, sizeof cells);
    at = (row < ROWS ? row : ROWS - 1) * COLUMNS + (column < COLUMNS ? column : 0);
    crtc(CURSOR_START, 13);
    crtc(CURSOR_END, 14);
    vga_show();
}

static void scroll(uint8_t attribute)
{
    memmove(cells, cells + COLUMNS, (ROWS - 1) * COLUMNS * sizeof *cells);
    for (int i = (ROWS - 1) * COLUMNS; i < ROWS * COLUMNS; i++)
        cells[i] = (uint16_t)(attribute << 8 | ' ');
    memcpy(video, cells, sizeof cells);
    at -= COLUMNS;
}

void vga_put(char c, uint8_t attribute)
{
    switch (c) {
    case '\n':
        at += COLUMNS - at % COLUMNS;
        break;
    case '\r':
        at -= at % COLUMNS;
        break;
    case '\b':
        at -= at > 0;
        break;
    case '\t':
        at += 8 - at % 8;
        break;
    case '\a':
        break;
    default:
        cells[at] = video[at] = (uint16_t)(attribute << 8 | (uint8_t)c);
        at++;
    }
    if (at >= ROWS * COLUMNS)
        scroll(attribute);
}

void vga_show(void)
{
    crtc(CURSOR_HIGH, (uint8_t)(at >> 8));
    crtc(CURSOR_LOW, (uint8_t)at);
}

uint32_t vga_text(char *out, uint32_t size)
{
    uint32_t length = 0;

    for (int row = 0; row < ROWS; row++) {
        int columns = COLUMNS;

        while (columns && ((cells[row * COLUMNS + columns - 1] & 0xFF) | ' ') == ' ')
            columns--;
        for (int column = 0; column < columns && length + 1 < size; column++)
            out[length++] = (char)cells[row * COLUMNS + column];
        if (length < size)
            out[length++] = '\n';
    }
    return length;
}
