/* Commands about the disk itself. */
#include "sys.h"

#define TOTAL (1024u * 1024)

static uint32_t microseconds(void)
{
    struct time_info time;

    call(SYS_TIME, (uint32_t)&time, 0, 0);
    return time.microseconds;
}

/* Reads TOTAL bytes from the start of the disk, `size` at a time. */
static int measure(uint32_t size)
{
    uint32_t requests = TOTAL / size, sectors = size / SECTOR, start = microseconds(), spent;

    for (uint32_t i = 0; i < requests; i++) {
        int error = call(SYS_DISK_READ, i * sectors, sectors, (uint32_t)chunk);

        if (!error && call(SYS_BREAK, 0, 0, 0))
            error = -E_BREAK;
        if (error)
            return error;
    }
    spent = microseconds() - start;
    if (spent == 0)
        spent = 1;
    print("%5u B: %8u KB/s  %6u us/request  (%u requests, %u us)\n", size, TOTAL / 1024 * 1000000u / spent, spent / requests,
          requests, spent);
    return 0;
}

void cmd_bench(char *args)
{
    static const uint32_t sizes[] = {64 * 1024, 4096, 512};
    const char *what = word(&args);
    int error = 0;

    if (!what || strcmp(what, "disk") != 0) {
        print("Say: bench disk.\n");
        return;
    }
    for (size_t i = 0; i < 3 && !error; i++)
        error = measure(sizes[i]);
    if (error)
        complain(error);
}

void cmd_disk(char *args)
{
    struct disk_info info;
    const char *mode = word(&args);

    if (mode) {
        bool dma = strcmp(mode, "dma") == 0;

        if (!dma && strcmp(mode, "pio") != 0)
            print("Say: disk pio, or disk dma.\n");
        else if (call(SYS_DISK_DMA, dma, 0, 0) != 0)
            print("This machine has no bus-master DMA.\n");
        return;
    }
    if (call(SYS_DISK_INFO, (uint32_t)&info, 0, 0) != 0) {
        print("There is no disk.\n");
        return;
    }
    print("model: %s, serial %s\n", info.model, info.serial);
    print("size: %u sectors, %u an interrupt, LBA%s\n", info.sectors, info.multiple, info.lba48 ? "48" : "28");
    print("driver: %s%s\n", info.driver, info.dma ? " (pio and dma possible)" : "");
    print("requests %u, interrupts %u, retries %u, resets %u, timeouts %u, lost interrupts %u\n", info.requests, info.interrupts,
          info.retries, info.resets, info.timeouts, info.lost);
}
