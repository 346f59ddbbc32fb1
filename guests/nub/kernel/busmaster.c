/* SFF-8038i: one table of physical regions, three registers per channel. The controller is the first of PCI class 01 01 with the
   bus-master bit in its programming interface; its registers are at BAR4. */
#include "busmaster.h"
#include "io.h"
#include "memory.h"

enum { CONFIG_ADDRESS = 0xCF8, CONFIG_DATA = 0xCFC };
enum { PCI_COMMAND = 0x04, PCI_CLASS = 0x08, PCI_BAR4 = 0x20, COMMAND_IO = 0x01, COMMAND_MASTER = 0x04 };
enum { BM_COMMAND = 0, BM_STATUS = 2, BM_TABLE = 4 };
enum { START = 0x01, TO_MEMORY = 0x08, STATUS_ERROR = 0x02, STATUS_INTERRUPT = 0x04 };

#define REGIONS 8
#define LAST 0x80000000u
#define FREE_PORTS 0xC000u

static struct {
    uint32_t base, length; /* length: 0 = 64 KiB, LAST in the last entry */
} table[REGIONS] __attribute__((aligned(64)));
static uint16_t port;
static uint8_t direction;

static uint32_t config_read(uint32_t device, uint32_t reg)
{
    outl(CONFIG_ADDRESS, 0x80000000u | device << 8 | reg); /* device: bus, slot, function */
    return inl(CONFIG_DATA);
}

static void config_write(uint32_t device, uint32_t reg, uint32_t value)
{
    outl(CONFIG_ADDRESS, 0x80000000u | device << 8 | reg);
    outl(CONFIG_DATA, value);
}

bool busmaster_find(void)
{
    outl(CONFIG_ADDRESS, 0x80000000u);
    if (inl(CONFIG_ADDRESS) != 0x80000000u)
        return false; /* no PCI in this machine */
    for (uint32_t device = 0; device < 256; device++) { /* bus 0 */
        uint32_t class, bar;

        if ((device & 7) == 0 && (config_read(device, 0) & 0xFFFF) == 0xFFFF) {
            device += 7; /* an empty slot */
            continue;
        }
        class = config_read(device, PCI_CLASS);
        bar = config_read(device, PCI_BAR4);
        if (class >> 16 == 0x0101 && (class & 0x8000) && (bar & 1)) {
            if (!(bar & 0xFFF0)) { /* firmware that leaves PCI to the operating system */
                bar = FREE_PORTS;
                config_write(device, PCI_BAR4, bar);
            }
            port = (uint16_t)(bar & 0xFFF0);
            config_write(device, PCI_COMMAND, (config_read(device, PCI_COMMAND) & 0xFFFF) | COMMAND_IO | COMMAND_MASTER);
            return true;
        }
    }
    return false;
}

bool busmaster_prepare(void *buffer, uint32_t length, bool to_memory)
{
    uint32_t at = memory_physical(buffer), count = 0;

    if (!port || (at & 1))
        return false;
    for (; length && count < REGIONS; count++) { /* no region crosses a 64 KiB line */
        uint32_t some = 0x10000 - (at & 0xFFFF);

        if (some > length)
            some = length;
        table[count].base = at;
        table[count].length = some & 0xFFFF;
        at += some;
        length -= some;
    }
    if (length)
        return false;
    table[count - 1].length |= LAST;
    direction = to_memory ? TO_MEMORY : 0;
    outb(port + BM_COMMAND, direction);
    outl(port + BM_TABLE, (uint32_t)table);
    outb(port + BM_STATUS, inb(port + BM_STATUS) | STATUS_ERROR | STATUS_INTERRUPT); /* written ones clear */
    return true;
}

void busmaster_start(void) { outb(port + BM_COMMAND, direction | START); }

bool busmaster_interrupt(void) { return inb(port + BM_STATUS) & STATUS_INTERRUPT; }

bool busmaster_stop(void)
{
    uint8_t status = inb(port + BM_STATUS);

    outb(port + BM_COMMAND, direction);
    outb(port + BM_STATUS, status | STATUS_ERROR | STATUS_INTERRUPT);
    return !(status & STATUS_ERROR);
}
