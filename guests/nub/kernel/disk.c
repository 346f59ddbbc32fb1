/* The class driver: one disk a stack, requests checked and cut to what the port driver takes, callers put to sleep until done.

   Invariant: a request is counted in flight from when it goes down to just before its `done`; while requests are held none goes
   down, so after disk_hold() the stacks below may be changed. */
#include "disk.h"
#include "io.h"
#include "lib/text.h"
#include "mode.h"
#include "trace.h"

struct disk emulating_disk = {.name = "emulating"}, enlightened_disk = {.name = "enlightened"};

static volatile uint32_t in_flight;
static bool held;
static struct disk_request *waiting, **waiting_end = &waiting;

int disk_attach(struct disk *disk, const struct port_driver *port)
{
    int error = port->identify(&disk->identity);

    if (error)
        return error;
    disk->port = port;
    return 0;
}

void disk_detach(struct disk *disk) { disk->port = NULL; }

const struct port_driver *disk_set_port(struct disk *disk, const struct port_driver *next)
{
    const struct port_driver *before = disk->port;

    disk->port = next;
    return before;
}

const struct disk_identity *disk_identity(void) { return emulating_disk.port ? &emulating_disk.identity : NULL; }

struct disk *disk_visible(void)
{
    if (enlightened_disk.port && enlightened_disk.port->query() == 0)
        return &enlightened_disk;
    return emulating_disk.port && emulating_disk.port->query() == 0 ? &emulating_disk : NULL;
}

void disk_done(struct disk_request *request, int status)
{
    bool (*filter)(struct disk_request *) = request->filter;

    request->status = status;
    request->filter = NULL;
    if (filter && filter(request))
        return;
    trace(TRACE_DONE, request);
    in_flight--;
    request->done(request);
}

static int check(const struct disk *disk, const struct disk_request *request)
{
    if (!disk->port)
        return -E_NOFILES;
    if (request->operation == DISK_FLUSH)
        return 0;
    return request->count == 0 || request->count > disk->identity.max_transfer || request->lba >= disk->identity.sectors ||
           request->count > disk->identity.sectors - request->lba ? -E_INVAL : 0;
}

static void send(struct disk_request *request)
{
    const struct port_driver *port = request->disk->port;
    int error = check(request->disk, request);

    in_flight++;
    request->disk->requests++;
    if (error)
        disk_done(request, error);
    else if (request->operation == DISK_READ)
        port->read(request);
    else if (request->operation == DISK_WRITE)
        port->write(request);
    else
        port->flush(request);
}

uint32_t disk_number(void)
{
    static uint32_t last;

    return ++last;
}

void disk_submit(struct disk *disk, struct disk_request *request)
{
    bool on = irq_save();

    trace(TRACE_CLASS, request);
    request->disk = disk;
    request->filter = NULL;
    request->next = NULL;
    if (held) {
        *waiting_end = request;
        waiting_end = &request->next;
    } else {
        send(request);
    }
    irq_restore(on);
}

void disk_hold(void)
{
    bool on = irq_save();

    held = true;
    while (in_flight)
        wait_for_interrupt();
    irq_restore(on);
}

void disk_release(void)
{
    bool on = irq_save();
    struct disk_request *request = waiting;

    held = false;
    waiting = NULL;
    waiting_end = &waiting;
    while (request) {
        struct disk_request *next = request->next;

        request->next = NULL;
        send(request);
        request = next;
    }
    irq_restore(on);
}

bool disk_busy(void) { return in_flight != 0; }

static void wake(struct disk_request *request) { *(volatile bool *)request->context = true; }

static int perform(struct disk *disk, enum disk_operation operation, uint32_t lba, uint32_t count, void *buffer)
{
    volatile bool done = false;
    struct disk_request request = {.operation = operation, .number = disk_number(), .lba = lba, .count = count, .buffer = buffer,
                                   .done = wake, .context = (void *)&done};
    bool on;

    (void)mode_poll(); /* between two requests is where a mode asked for meanwhile takes effect */
    trace(TRACE_ASKED, &request);
    on = irq_save();
    disk_submit(disk, &request);
    while (!done)
        wait_for_interrupt();
    irq_restore(on);
    trace(TRACE_ANSWERED, &request);
    return request.status;
}

int disk_transfer(struct disk *disk, enum disk_operation operation, uint32_t lba, uint32_t count, void *buffer)
{
    uint8_t *at = buffer;

    while (count) {
        uint32_t limit = disk->identity.max_transfer, some = count < limit ? count : limit;
        int error = disk->port ? perform(disk, operation, lba, some, at) : -E_NOFILES;

        if (error)
            return error;
        lba += some;
        count -= some;
        at += some * SECTOR;
    }
    return 0;
}

int disk_read(uint32_t lba, uint32_t count, void *buffer) { return disk_transfer(&emulating_disk, DISK_READ, lba, count, buffer); }

int disk_write(uint32_t lba, uint32_t count, const void *buffer)
{
    return disk_transfer(&emulating_disk, DISK_WRITE, lba, count, (void *)buffer);
}

int disk_flush(void) { return emulating_disk.port ? perform(&emulating_disk, DISK_FLUSH, 0, 0, NULL) : 0; }

int disk_set_dma(bool on)
{
    const struct port_driver *port = emulating_disk.port;

    if (!port)
        return -E_NOFILES;
    return port->set_dma ? port->set_dma(on) : -E_INVAL;
}

int disk_dump(uint32_t lba, uint32_t count, const void *buffer)
{
    return emulating_disk.port ? emulating_disk.port->dump(lba, count, buffer) : -E_NOFILES;
}

int disk_info(const struct disk *disk, struct disk_info *info)
{
    memset(info, 0, sizeof *info);
    if (!disk->port || disk->port->query() != 0)
        return -E_NODEV;
    memcpy(info->model, disk->identity.model, sizeof info->model);
    memcpy(info->serial, disk->identity.serial, sizeof info->serial);
    info->sectors = disk->identity.sectors;
    info->multiple = disk->identity.multiple;
    info->lba48 = disk->identity.lba48;
    disk->port->statistics(info);
    info->requests = disk->requests;
    return 0;
}
