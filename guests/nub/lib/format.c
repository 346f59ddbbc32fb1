/* format(): a printf small enough to read. */
#include "lib/text.h"

struct sink {
    char *out;
    size_t size, length;
};

static void put(struct sink *sink, char c)
{
    if (sink->length + 1 < sink->size)
        sink->out[sink->length++] = c;
}

static void pad(struct sink *sink, char with, size_t have, size_t width)
{
    for (; have < width; have++)
        put(sink, with);
}

static size_t digits(char *end, uint32_t value, uint32_t base)
{
    size_t count = 0;

    do {
        *--end = "0123456789abcdef"[value % base];
        value /= base;
        count++;
    } while (value);
    return count;
}

static void put_field(struct sink *sink, const char *text, size_t length, size_t width, bool left, char with)
{
    if (!left)
        pad(sink, with, length, width);
    for (size_t i = 0; i < length; i++)
        put(sink, text[i]);
    if (left)
        pad(sink, ' ', length, width);
}

static void put_number(struct sink *sink, uint32_t value, uint32_t base, bool negative, size_t width, bool left, char with)
{
    char text[12];
    size_t length = digits(text + sizeof text, value, base);

    if (negative)
        text[sizeof text - ++length] = '-';
    put_field(sink, text + sizeof text - length, length, width, left, with);
}

size_t format(char *out, size_t size, const char *pattern, va_list args)
{
    struct sink sink = {out, size, 0};

    for (; *pattern; pattern++) {
        if (*pattern != '%') {
            put(&sink, *pattern);
            continue;
        }
        bool left = *++pattern == '-';
        if (left)
            pattern++;
        char with = *pattern == '0' ? '0' : ' ';
        size_t width = 0;
        for (; *pattern >= '0' && *pattern <= '9'; pattern++)
            width = width * 10 + (size_t)(*pattern - '0');
        switch (*pattern) {
        case 's': {
            const char *text = va_arg(args, const char *);
            put_field(&sink, text, strlen(text), width, left, ' ');
            break;
        }
        case 'c': {
            char c = (char)va_arg(args, int);
            put_field(&sink, &c, 1, width, left, ' ');
            break;
        }
        case 'd': {
            int32_t value = va_arg(args, int32_t);
            put_number(&sink, value < 0 ? -(uint32_t)value : (uint32_t)value, 10, value < 0, width, left, with);
            break;
        }
        case 'u':
            put_number(&sink, va_arg(args, uint32_t), 10, false, width, left, with);
            break;
        case 'x':
            put_number(&sink, va_arg(args, uint32_t), 16, false, width, left, with);
            break;
        case '\0': /* a lone % at the end */
            pattern--;
            break;
        default:
            put(&sink, *pattern);
        }
    }
    if (size)
        out[sink.length] = 0;
    return sink.length;
}
