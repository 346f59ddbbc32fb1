/* The console: VGA text and COM1 out, keyboard and COM1 in, lines typed and edited. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* console.c */
void console_write(const char *text, size_t length);
void print(const char *pattern, ...);
uint8_t console_color(uint8_t attribute); /* returns the one before */
void console_input(char c);               /* from a keyboard or UART interrupt */
int console_key(void);                    /* waits; E_BREAK negative on ctrl-c */
bool console_break_pending(void);
bool console_take_break(void);

/* line.c: reads a line with editing and history into `line`; its length, or -E_BREAK */
int line_read(char *line, size_t size);

/* Keys that are not ASCII text, as the control characters line.c knows. */
enum { KEY_LEFT = 2, KEY_BREAK = 3, KEY_DELETE = 4, KEY_END = 5, KEY_RIGHT = 6, KEY_BACKSPACE = 8, KEY_ENTER = 10, KEY_DOWN = 14,
       KEY_UP = 16, KEY_KILL = 21, KEY_HOME = 1 };

/* vga.c */
void vga_init(uint32_t column, uint32_t row);
void vga_put(char c, uint8_t attribute);
void vga_show(void);                         /* cursor to where the text is */
uint32_t vga_text(char *out, uint32_t size); /* the screen as lines */

/* serial.c */
void serial_init(void);
bool serial_present(void);
void serial_put(char c);

/* keyboard.c */
void keyboard_init(void);
