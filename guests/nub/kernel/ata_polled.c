/* ATA by polling: register access shared with ata.c, probing at start, and the crash dump. */
#include "ata.h"
#include "io.h"
#include "lib/text.h"

/* 400 ns: the time a drive may take to show BSY after a command or a selection. */
static uint8_t after_400ns(void)
{
    for (int i = 0; i < 3; i++)
        (void)inb(ATA_ALT_STATUS);
    return inb(ATA_ALT_STATUS);
}

uint8_t ata_settle(uint32_t spins)
{
    uint8_t status = after_400ns();

    for (uint32_t spin = 0; (status & ATA_BSY) && spin < spins; spin++)
        status = inb(ATA_ALT_STATUS);
    return status;
}

bool ata_select(uint32_t device)
{
    uint8_t status = inb(ATA_ALT_STATUS);

    if (status & (ATA_BSY | ATA_DRQ))
        return false;
    outb(ATA_DEVICE, (uint8_t)device);
    return !(inb(ATA_ALT_STATUS) & (ATA_BSY | ATA_DRQ)); /* no 400 ns: it is the same drive as before */
}

void ata_address(uint32_t lba, uint32_t count, bool wide)
{
    if (wide) { /* the registers are two bytes deep, the high byte first */
        outb(ATA_COUNT, (uint8_t)(count >> 8));
        outb(ATA_LBA_LOW, (uint8_t)(lba >> 24));
        outb(ATA_LBA_MID, 0);
        outb(ATA_LBA_HIGH, 0);
    }
    outb(ATA_COUNT, (uint8_t)count);
    outb(ATA_LBA_LOW, (uint8_t)lba);
    outb(ATA_LBA_MID, (uint8_t)(lba >> 8));
    outb(ATA_LBA_HIGH, (uint8_t)(lba >> 16));
}

void ata_soft_reset(void)
{
    outb(ATA_CONTROL, ATA_SRST);
    for (int i = 0; i < 16; i++) /* 5 us */
        (void)inb(ATA_ALT_STATUS);
    outb(ATA_CONTROL, 0);
    (void)after_400ns();
}

/* Polls with the drive's interrupt off, puts it on again. */
static uint8_t polled_command(uint8_t command, uint32_t spins)
{
    uint8_t status;

    outb(ATA_CONTROL, ATA_NIEN);
    outb(ATA_COMMAND, command);
    status = ata_settle(spins);
    (void)inb(ATA_STATUS);
    outb(ATA_CONTROL, 0);
    return status;
}

uint32_t ata_set_multiple(uint32_t sectors)
{
    if (sectors == 0 || !ata_select(0xE0))
        return 0;
    outb(ATA_COUNT, (uint8_t)sectors);
    return polled_command(ATA_SET_MULTIPLE, ATA_SHORT) & (ATA_BSY | ATA_ERR | ATA_DF) ? 0 : sectors;
}

bool ata_set_transfer_mode(uint32_t mode)
{
    if (!ata_select(0xE0))
        return false;
    outb(ATA_FEATURES, 0x03);
    outb(ATA_COUNT, (uint8_t)mode);
    return !(polled_command(ATA_SET_FEATURES, ATA_LONG) & (ATA_BSY | ATA_ERR | ATA_DF));
}

/* Identify strings have their characters swapped in pairs and are padded with spaces. */
static void text_of(char *to, const uint16_t *words, uint32_t length)
{
    for (uint32_t i = 0; i < length; i += 2) {
        to[i] = (char)(words[i / 2] >> 8);
        to[i + 1] = (char)words[i / 2];
    }
    while (length && (to[length - 1] == ' ' || to[length - 1] == 0))
        length--;
    to[length] = 0;
    while (*to == ' ') /* serial numbers are often aligned to the right */
        memmove(to, to + 1, length--);
}

bool ata_identify(struct disk_identity *identity)
{
    uint16_t words[256];
    uint8_t status = inb(ATA_STATUS);

    if (status == 0xFF || status == 0x7F)
        return false; /* nobody drives the bus */
    outb(ATA_CONTROL, ATA_NIEN);
    (void)ata_settle(ATA_LONG);
    outb(ATA_DEVICE, 0xE0); /* whichever drive the firmware was talking to */
    (void)after_400ns();
    if (!ata_select(0xE0))
        return false;
    outb(ATA_COMMAND, ATA_IDENTIFY);
    status = ata_settle(ATA_LONG);
    if (status == 0 || (status & (ATA_BSY | ATA_ERR | ATA_DRQ)) != ATA_DRQ)
        return false; /* no drive, or a packet device */
    insw(ATA_DATA, words, 256);
    (void)inb(ATA_STATUS);
    text_of(identity->serial, words + 10, 20);
    text_of(identity->model, words + 27, 40);
    identity->lba48 = words[83] >> 14 == 1 && (words[83] & 1 << 10);
    identity->sectors = words[60] | (uint32_t)words[61] << 16;
    if (identity->lba48) {
        uint32_t wide = words[100] | (uint32_t)words[101] << 16;

        if (words[102] || words[103])
            wide = 0xFFFFFFFF;
        if (wide > identity->sectors)
            identity->sectors = wide;
    }
    identity->dma = (words[49] & 1 << 8) && (words[63] & 1 << 2); /* multiword DMA 2 */
    identity->multiple = words[47] & 0xFF;
    return identity->sectors != 0;
}

bool ata_write_polled(uint32_t lba, uint32_t count, const void *buffer)
{
    const uint8_t *at = buffer;

    ata_soft_reset(); /* the drive may be in the middle of anything */
    outb(ATA_CONTROL, ATA_NIEN);
    (void)ata_settle(ATA_LONG);
    for (; count; count--, lba++, at += SECTOR) {
        if (!ata_select(0xE0 | (lba >> 24 & 0x0F)))
            return false;
        ata_address(lba, 1, false);
        outb(ATA_COMMAND, ATA_WRITE);
        if ((ata_settle(ATA_LONG) & (ATA_BSY | ATA_DRQ | ATA_ERR | ATA_DF)) != ATA_DRQ)
            return false;
        outsw(ATA_DATA, at, SECTOR / 2);
        if (ata_settle(ATA_LONG) & (ATA_BSY | ATA_DRQ | ATA_ERR | ATA_DF))
            return false;
    }
    return !(polled_command(ATA_FLUSH, ATA_LONG) & (ATA_BSY | ATA_ERR | ATA_DF));
}
