/* The class driver: one disk, requests checked and cut to what the port driver takes, callers put to sleep until done. */
#include "disk.h"
#include "io.h"
#include "lib/text.h"

static const struct port_driver *port;
static struct disk_identity identity;
static volatile bool in_use; /* one waiting caller is all there is; requests themselves queue in the port driver */
static uint32_t requests;

int disk_attach(const struct port_driver *candidate)
{
    int error = candidate->identify(&identity);

    if (error)
        return error;
    port = candidate;
    return 0;
}

const struct port_driver *disk_set_port(const struct port_driver *next)
{
    bool on = irq_save();
    const struct port_driver *before = port;

    while (in_use)
        wait_for_interrupt();
    port = next;
    irq_restore(on);
    return before;
}

const struct disk_identity *disk_identity(void) { return port ? &identity : NULL; }

static void finish(struct disk_request *request, int status)
{
    request->status = status;
    request->done(request);
}

void disk_submit(struct disk_request *request)
{
    bool on = irq_save(), transfer = request->operation != DISK_FLUSH;

    requests++;
    if (!port)
        finish(request, -E_NOFILES);
    else if (transfer && (request->count == 0 || request->count > identity.max_transfer || request->lba >= identity.sectors ||
                          request->count > identity.sectors - request->lba))
        finish(request, -E_INVAL);
    else if (request->operation == DISK_READ)
        port->read(request);
    else if (request->operation == DISK_WRITE)
        port->write(request);
    else
        port->flush(request);
    irq_restore(on);
}

static void wake(struct disk_request *request) { *(volatile bool *)request->context = true; }

static int perform(enum disk_operation operation, uint32_t lba, uint32_t count, void *buffer)
{
    volatile bool done = false;
    struct disk_request request = {operation, lba, count, buffer, wake, (void *)&done, 0, NULL};
    bool on = irq_save();

    in_use = true;
    disk_submit(&request);
    while (!done)
        wait_for_interrupt();
    in_use = false;
    irq_restore(on);
    return request.status;
}

static int transfer(enum disk_operation operation, uint32_t lba, uint32_t count, uint8_t *buffer)
{
    while (count) {
        uint32_t some = count < identity.max_transfer ? count : identity.max_transfer;
        int error = port ? perform(operation, lba, some, buffer) : -E_NOFILES;

        if (error)
            return error;
        lba += some;
        count -= some;
        buffer += some * SECTOR;
    }
    return 0;
}

int disk_read(uint32_t lba, uint32_t count, void *buffer) { return transfer(DISK_READ, lba, count, buffer); }

int disk_write(uint32_t lba, uint32_t count, const void *buffer) { return transfer(DISK_WRITE, lba, count, (uint8_t *)buffer); }

int disk_flush(void) { return port ? perform(DISK_FLUSH, 0, 0, NULL) : 0; }

int disk_set_dma(bool on)
{
    if (!port)
        return -E_NOFILES;
    return port->set_dma ? port->set_dma(on) : -E_INVAL;
}

int disk_dump(uint32_t lba, uint32_t count, const void *buffer) { return port ? port->dump(lba, count, buffer) : -E_NOFILES; }

void disk_info(struct disk_info *info)
{
    memset(info, 0, sizeof *info);
    if (!port)
        return;
    memcpy(info->model, identity.model, sizeof info->model);
    memcpy(info->serial, identity.serial, sizeof info->serial);
    memcpy(info->driver, port->name, strlen(port->name) + 1);
    info->sectors = identity.sectors;
    info->multiple = identity.multiple;
    info->lba48 = identity.lba48;
    port->statistics(info);
    info->requests = requests;
}
