/* Memory, strings, formatting and CRC-32: the same source in the kernel and in ring 3. */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t length);
void *memmove(void *to, const void *from, size_t length);
void *memset(void *to, int value, size_t length);
int memcmp(const void *a, const void *b, size_t length);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);

/* %s %c %d %u %x %%, with a width, '0' and '-'. Always ends `out` with a zero; returns the length written. */
size_t format(char *out, size_t size, const char *pattern, va_list args);

/* CRC-32 (IEEE 802.3, as zlib): start with 0 and pass the last result on. */
uint32_t crc32(uint32_t crc, const void *data, size_t length);
