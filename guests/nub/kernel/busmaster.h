/* Bus-master DMA of the first IDE channel (SFF-8038i), found by PCI. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

bool busmaster_find(void);                                            /* is there one? Enables it on PCI */
bool busmaster_prepare(void *buffer, uint32_t length, bool to_memory); /* false: this buffer cannot be used */
void busmaster_start(void);
bool busmaster_interrupt(void);                                       /* has the controller seen the drive's interrupt? */
bool busmaster_stop(void);                                            /* true if the transfer was without error */
