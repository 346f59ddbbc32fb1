/* The memory and string functions of C. The compiler calls some of them by itself. */
#include "lib/text.h"

void *memcpy(void *to, const void *from, size_t length)
{
    void *start = to;
    size_t words = length / 4;

    __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
    length &= 3;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
    return start;
}

void *memmove(void *to, const void *from, size_t length)
{
    char *out = to;
    const char *in = from;

    if (out <= in || out >= in + length)
        return memcpy(to, from, length);
    while (length--)
        out[length] = in[length];
    return to;
}

void *memset(void *to, int value, size_t length)
{
    void *start = to;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(length) : "a"(value) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t length)
{
    const unsigned char *x = a, *y = b;

    for (; length; length--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *text)
{
    size_t length = 0;

    while (text[length])
        length++;
    return length;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (unsigned char)*a - (unsigned char)*b;
}
