/* Physical memory as the firmware told it, and the page tables. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "abi.h"
#include "boot.h"

int memory_init(const struct boot_info *boot); /* turns paging on; -E_SPACE if there is too little RAM for a program */
uint32_t memory_usable_kib(void);
void memory_info(struct memory_info *info);

void *memory_map_device(uint32_t address); /* one page of device registers, where they are; at most one 4 MiB region in all */
uint32_t memory_physical(const void *address); /* of the kernel's or the program's memory; contiguous in each */

/* The program's range [USER_BASE, USER_BASE + USER_SIZE): page by page present or not, writable or not. */
void user_unmap_all(void);
void user_map(uint32_t from, uint32_t to, bool writable);
bool user_range(const void *start, uint32_t length, bool writable); /* may a system call touch this for the program? */
