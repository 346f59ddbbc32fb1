/* A storage stack: application -> class driver (disk.c) -> port driver (ata.c, or storvsc.c over VMBus).

   A port driver knows the hardware; the class driver knows what a disk is. Requests go down by the port driver's functions and
   come back by disk_done(), from interrupt context. A shunt (shunt.c) is a port driver too: put in place by disk_set_port(), it
   passes each request on to the port driver of its choice. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "abi.h"

enum disk_operation { DISK_READ, DISK_WRITE, DISK_FLUSH };

struct disk_request {
    enum disk_operation operation;
    uint32_t number;     /* names it on its way; disk_number() gives the next one */
    uint32_t lba, count; /* sectors of 512 bytes */
    uint8_t *buffer;
    void (*done)(struct disk_request *request); /* interrupts are off when it is called */
    void *context;
    int status;                /* 0 or -E_IO, valid once done */
    struct disk_request *next; /* the queue it waits in */
    struct disk *disk;         /* the class driver it came from */
    bool (*filter)(struct disk_request *request); /* a shunt's: sees it before `done`; true if it went elsewhere */
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
    int (*identify)(struct disk_identity *identity); /* finds the disk: 0, or -E_NOFILES */
    int (*query)(void);                              /* may user mode know of it? 0, or -E_NODEV */
    void (*read)(struct disk_request *request);
    void (*write)(struct disk_request *request);
    void (*flush)(struct disk_request *request);
    int (*set_dma)(bool on);                                       /* 0, or -E_INVAL: no such thing here */
    int (*dump)(uint32_t lba, uint32_t count, const void *buffer); /* polled, interrupts off, whatever state things are in */
    void (*statistics)(struct disk_info *info);
};

extern const struct port_driver ata_port;

/* The class driver, once for each stack. */
struct disk {
    const char *name;
    const struct port_driver *port; /* the top of what is below; NULL: nothing */
    struct disk_identity identity;
    uint32_t requests;
};

extern struct disk emulating_disk, enlightened_disk;

int disk_attach(struct disk *disk, const struct port_driver *port);
void disk_detach(struct disk *disk);                         /* nothing may be in flight */
const struct port_driver *disk_set_port(struct disk *disk, const struct port_driver *port); /* returns the one before; likewise */
struct disk *disk_visible(void);                             /* the one that user mode is told of; NULL: none */
int disk_info(const struct disk *disk, struct disk_info *info); /* -E_NODEV: it tells nothing */

/* Requests. Held ones wait in the class driver until they are released. */
uint32_t disk_number(void);
void disk_submit(struct disk *disk, struct disk_request *request);
void disk_done(struct disk_request *request, int status); /* by port drivers */
void disk_hold(void);                                     /* and waits until nothing is in flight */
void disk_release(void);
bool disk_busy(void);
int disk_transfer(struct disk *disk, enum disk_operation operation, uint32_t lba, uint32_t count, void *buffer);

/* What the kernel itself uses: the emulating stack, which it was started from. They wait for the end. */
const struct disk_identity *disk_identity(void); /* NULL if there is no disk */
int disk_read(uint32_t lba, uint32_t count, void *buffer);
int disk_write(uint32_t lba, uint32_t count, const void *buffer);
int disk_flush(void);
int disk_set_dma(bool on);
int disk_dump(uint32_t lba, uint32_t count, const void *buffer);

void crash_report(void); /* crash.c: tells of the last crash, if the disk holds a dump */
