/* What boot/setup.asm leaves at 0x500. */
#pragma once
#include <stdint.h>

#define BOOT_INFO_ADDRESS 0x500
#define BOOT_INFO_MAGIC 0x3142554Eu /* "NUB1" */
#define BOOT_RANGES 32

struct boot_range {
    uint32_t base, base_high, length, length_high, type, attributes;
};

struct boot_info {
    uint32_t magic, drive, ranges, high_kib, column, row;
    struct boot_range range[BOOT_RANGES];
};
