/* The registers and commands of an ATA drive, and the polled operations (ata_polled.c) that probing and dumping need. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "disk.h"

enum { ATA_DATA = 0x1F0, ATA_FEATURES = 0x1F1, ATA_COUNT = 0x1F2, ATA_LBA_LOW = 0x1F3, ATA_LBA_MID = 0x1F4,
       ATA_LBA_HIGH = 0x1F5, ATA_DEVICE = 0x1F6, ATA_STATUS = 0x1F7, ATA_COMMAND = 0x1F7, ATA_ALT_STATUS = 0x3F6, ATA_CONTROL = 0x3F6 };
enum { ATA_ERR = 0x01, ATA_DRQ = 0x08, ATA_DF = 0x20, ATA_DRDY = 0x40, ATA_BSY = 0x80 };
enum { ATA_NIEN = 0x02, ATA_SRST = 0x04 };
enum { ATA_READ = 0x20, ATA_READ_EXT = 0x24, ATA_READ_MULTIPLE_EXT = 0x29, ATA_WRITE = 0x30, ATA_WRITE_EXT = 0x34,
       ATA_WRITE_MULTIPLE_EXT = 0x39, ATA_READ_MULTIPLE = 0xC4, ATA_WRITE_MULTIPLE = 0xC5, ATA_SET_MULTIPLE = 0xC6,
       ATA_READ_DMA_EXT = 0x25, ATA_WRITE_DMA_EXT = 0x35, ATA_READ_DMA = 0xC8, ATA_WRITE_DMA = 0xCA, ATA_SET_FEATURES = 0xEF,
       ATA_FLUSH = 0xE7, ATA_FLUSH_EXT = 0xEA, ATA_IDENTIFY = 0xEC };

enum { ATA_MODE_MWDMA2 = 0x22 }; /* SET FEATURES, subcommand 3 */

/* Status reads to wait for BSY = 0: as long as is decent with interrupts off, and as long as there is hope. */
#define ATA_SHORT 4000u
#define ATA_LONG 3000000u

#define ATA_LBA28_LIMIT 0x10000000u

bool ata_select(uint32_t device);                               /* false: the drive is busy or in the middle of data */
void ata_address(uint32_t lba, uint32_t count, bool wide);      /* LBA and count registers; count 256 (wide 65536) as 0 */
uint8_t ata_settle(uint32_t spins);                             /* status after the 400 ns, waited for a while to lose BSY */
void ata_soft_reset(void);                                      /* starts it; BSY tells when it is over */
bool ata_identify(struct disk_identity *identity);              /* interrupts of the drive stay off */
uint32_t ata_set_multiple(uint32_t sectors);                    /* what is in force now: `sectors` or 0 */
bool ata_set_transfer_mode(uint32_t mode);
bool ata_write_polled(uint32_t lba, uint32_t count, const void *buffer);
