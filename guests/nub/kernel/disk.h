/* The storage stack: application -> class driver (disk.c) -> port driver (ata.c).

   A port driver knows the hardware; the class driver knows what a disk is. Requests go down by the port driver's functions and
   come back by the request's `done`, from interrupt context. A shunt is a port driver too: put in place by disk_set_port(), it
   passes each request on to the port driver of its choice. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "abi.h"

enum disk_operation { DISK_READ, DISK_WRITE, DISK_FLUSH };

struct disk_request {
    enum disk_operation operation;
    uint32_t lba, count; /* sectors of 512 bytes */
    uint8_t *buffer;
    void (*done)(struct disk_request *request); /* interrupts are off when it is called */
    void *context;
    int status;                /* 0 or -E_IO, valid once done */
    struct disk_request *next; /* the queue it waits in */
};

struct disk_identity {
    char model[41], serial[21];
    uint32_t sectors;      /* saturates at 2^32 - 1 */
    uint32_t max_transfer; /* sectors a request may have */
    uint32_t multiple;     /* sectors per interrupt */
    bool lba48, dma;
};

struct port_driver {
    const char *name;
    int (*identify)(struct disk_identity *identity); /* 0, or -E_NOFILES: no disk */
    void (*read)(struct disk_request *request);
    void (*write)(struct disk_request *request);
    void (*flush)(struct disk_request *request);
    int (*set_dma)(bool on);                                       /* 0, or -E_INVAL: no such thing here */
    int (*dump)(uint32_t lba, uint32_t count, const void *buffer); /* polled, interrupts off, whatever state things are in */
    void (*statistics)(struct disk_info *info);
};

extern const struct port_driver ata_port;

/* The class driver. All but disk_submit wait for the end. */
int disk_attach(const struct port_driver *port);
const struct port_driver *disk_set_port(const struct port_driver *port); /* returns the one before; only between requests */
const struct disk_identity *disk_identity(void);                        /* NULL if there is no disk */
void disk_submit(struct disk_request *request);
int disk_read(uint32_t lba, uint32_t count, void *buffer);
int disk_write(uint32_t lba, uint32_t count, const void *buffer);
int disk_flush(void);
int disk_set_dma(bool on);
int disk_dump(uint32_t lba, uint32_t count, const void *buffer);
void disk_info(struct disk_info *info);

void crash_report(void); /* crash.c: tells of the last crash, if the disk holds a dump */
