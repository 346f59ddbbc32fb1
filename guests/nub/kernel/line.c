/* Reading a line: left, right, home, end, backspace, delete, ctrl-u, ctrl-c, and up and down through the last lines. */
#include "abi.h"
#include "console.h"
#include "lib/text.h"

#define LINES 8
#define LINE 160

static char history[LINES][LINE];
static uint32_t count; /* lines ever kept */

struct editor {
    char *line;
    size_t size, length, at;
    uint32_t shown; /* which line of the history, count = none */
};

static void back(size_t columns)
{
    while (columns--)
        console_write("\b", 1);
}

/* Shows the line again from the cursor on, wiping `gone` columns after it. */
static void redraw(const struct editor *e, size_t gone)
{
    console_write(e->line + e->at, e->length - e->at);
    for (size_t i = 0; i < gone; i++)
        console_write(" ", 1);
    back(e->length - e->at + gone);
}

static void insert(struct editor *e, char c)
{
    if (e->length + 1 >= e->size)
        return;
    memmove(e->line + e->at + 1, e->line + e->at, e->length - e->at);
    e->line[e->at++] = c;
    e->length++;
    console_write(&c, 1);
    if (e->at < e->length)
        redraw(e, 0);
}

static void delete(struct editor *e)
{
    if (e->at == e->length)
        return;
    memmove(e->line + e->at, e->line + e->at + 1, e->length - e->at - 1);
    e->length--;
    redraw(e, 1);
}

static void replace(struct editor *e, const char *text)
{
    size_t old = e->length, length = strlen(text);

    back(e->at);
    e->length = length < e->size ? length : e->size - 1;
    memcpy(e->line, text, e->length);
    e->at = 0;
    redraw(e, old > e->length ? old - e->length : 0);
    console_write(e->line, e->length);
    e->at = e->length;
}

static void recall(struct editor *e, int step)
{
    uint32_t wanted = e->shown + (uint32_t)step, oldest = count > LINES ? count - LINES : 0;

    if (wanted < oldest || wanted > count)
        return;
    e->shown = wanted;
    replace(e, wanted == count ? "" : history[wanted % LINES]);
}

static void keep(const struct editor *e)
{
    if (e->length == 0 || e->length >= LINE || (count && strcmp(history[(count - 1) % LINES], e->line) == 0))
        return;
    memcpy(history[count % LINES], e->line, e->length + 1);
    count++;
}

static void control(struct editor *e, int key)
{
    switch (key) {
    case KEY_BACKSPACE:
        if (e->at) {
            back(1);
            e->at--;
            delete(e);
        }
        break;
    case KEY_DELETE:
        delete(e);
        break;
    case KEY_LEFT:
        if (e->at) {
            back(1);
            e->at--;
        }
        break;
    case KEY_RIGHT:
        if (e->at < e->length)
            console_write(e->line + e->at++, 1);
        break;
    case KEY_HOME:
        back(e->at);
        e->at = 0;
        break;
    case KEY_END:
        console_write(e->line + e->at, e->length - e->at);
        e->at = e->length;
        break;
    case KEY_KILL:
        replace(e, "");
        break;
    case KEY_UP:
        recall(e, -1);
        break;
    case KEY_DOWN:
        recall(e, 1);
        break;
    }
}

int line_read(char *line, size_t size)
{
    struct editor e = {line, size, 0, 0, count};

    for (;;) {
        int key = console_key();

        if (key == -E_BREAK) {
            print("^C\n");
            return key;
        }
        if (key == KEY_ENTER || key == '\r') {
            control(&e, KEY_END);
            print("\n");
            line[e.length] = 0;
            keep(&e);
            return (int)e.length;
        }
        if (key >= ' ' && key < 127)
            insert(&e, (char)key);
        else
            control(&e, key);
    }
}
