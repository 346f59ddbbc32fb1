/* Commands about the disk itself. */
#include "sys.h"

#define TOTAL (4u * 1024 * 1024)
#define MOST 256u /* requests of one size, at most */
#define SIZES 3

static const uint32_t sizes[SIZES] = {64 * 1024, 4096, 512};

static void usage(void) { print("Say: bench disk [read|write] [DEPTH]; the depth is 1 to 16.\n"); }

static int measure(struct bench *bench, uint32_t size)
{
    int error;

    bench->size = size;
    bench->requests = TOTAL / size < MOST ? TOTAL / size : MOST;
    error = call(SYS_BENCH, (uint32_t)bench, 0, 0);
    if (error)
        return error;
    if (bench->microseconds == 0)
        bench->microseconds = 1;
    print("%5u B: %8u KB/s  %6u us/request, p50 %u, p99 %u  (%u requests, %u us)\n", size,
          bench->requests * (size / 512) * 500000u / bench->microseconds, /* fits: at most TOTAL bytes */
          bench->microseconds / bench->requests, bench->p50, bench->p99, bench->requests, bench->microseconds);
    return 0;
}

void cmd_bench(char *args)
{
    struct bench bench = {.depth = 1, .buffer = chunk};
    uint32_t spent[SIZES], requests[SIZES];
    const char *text = word(&args);
    int error = 0;

    if (!text || strcmp(text, "disk") != 0) {
        usage();
        return;
    }
    while ((text = word(&args)) != NULL) {
        bool write = strcmp(text, "write") == 0;

        if (write || strcmp(text, "read") == 0)
            bench.write = write;
        else if (!number(text, &bench.depth) || bench.depth < 1 || bench.depth > 16) {
            usage();
            return;
        }
    }
    for (uint32_t i = 0; i < SIZES && !error; i++) {
        error = measure(&bench, sizes[i]);
        spent[i] = bench.microseconds;
        requests[i] = bench.requests;
    }
    if (error) {
        call(SYS_BREAK, 0, 0, 0);
        complain(error);
        return;
    }
    print("bench %s %s depth=%u", mode_name(bench.mode), bench.write ? "write" : "read", bench.depth); /* for programs */
    for (uint32_t i = 0; i < SIZES; i++)
        print(" %u:%u:%u", sizes[i], requests[i], spent[i]);
    print("\n");
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
