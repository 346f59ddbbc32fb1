/* The shunt driver: sits between class driver and ATA port driver, looks like the one to the other, and diverts requests to the
   enlightened port driver. While it diverts all of them it also keeps user mode from finding the emulated disk below it, and the
   crash dump always passes.

   Four embodiments of when it is there and what it goes by (enum shunt_embodiment). In MODE_SHUNT_ONLY there is no enlightened
   stack above the channel: the shunt sends reads and writes by it, all else goes on to the ATA port driver. The enlightened stack
   has a shunt as well, inert until that port driver stops accepting: then requests that still come that way take the emulating
   stack. Invariant: a diverted request that comes back with -E_GONE was not performed, and goes the other way. */
#include "shunt.h"
#include "lib/text.h"
#include "storvsc.h"
#include "trace.h"

static struct {
    enum shunt_embodiment embodiment;
    enum disk_mode mode;
    bool present, told, opened;
    uint32_t diverted, passed, returned;
} shunt = {.embodiment = SHUNT_TOLD};

static const struct port_driver shunt_port;

static bool diverting(void)
{
    if (!shunt.present)
        return false;
    switch (shunt.embodiment) {
    case SHUNT_LATE: return true;
    case SHUNT_TOLD: return shunt.told;
    case SHUNT_DEFAULT: return storvsc_accepts();
    default: return shunt.opened;
    }
}

/* Everything, and there is somebody to take it. */
static bool diverting_all(void) { return shunt.mode != MODE_SHUNT_ONLY && diverting() && storvsc_accepts(); }

static void to_ata(struct disk_request *request)
{
    if (request->operation == DISK_READ)
        ata_port.read(request);
    else if (request->operation == DISK_WRITE)
        ata_port.write(request);
    else
        ata_port.flush(request);
}

/* Between disk_done() and the request's owner. */
static bool came_back(struct disk_request *request)
{
    if (request->status != -E_GONE)
        return false;
    shunt.returned++;
    to_ata(request);
    return true;
}

static void submit(struct disk_request *request)
{
    bool primary = request->operation != DISK_FLUSH;

    if (shunt.mode == MODE_SHUNT_ONLY ? primary && storvsc_accepts() : diverting()) {
        shunt.diverted++;
        trace(TRACE_DIVERTED, request);
        request->filter = came_back;
        storvsc_submit(request);
    } else {
        shunt.passed++;
        trace(TRACE_PASSED, request);
        to_ata(request);
    }
}

static int identify(struct disk_identity *identity) { return ata_port.identify(identity); }

static int query(void) { return diverting_all() ? -E_NODEV : ata_port.query(); }

static int set_dma(bool on) { return diverting_all() ? -E_INVAL : ata_port.set_dma(on); }

static int dump(uint32_t lba, uint32_t count, const void *buffer) { return ata_port.dump(lba, count, buffer); }

static void statistics(struct disk_info *info)
{
    ata_port.statistics(info);
    if (shunt.mode == MODE_SHUNT_ONLY) {
        char both[16] = "shunt, ";

        memcpy(both + 7, info->driver, 8);
        memcpy(info->driver, both, sizeof both);
    }
}

static const struct port_driver shunt_port = {
    .name = "shunt",
    .identify = identify,
    .query = query,
    .set_dma = set_dma,
    .read = submit,
    .write = submit,
    .flush = submit,
    .dump = dump,
    .statistics = statistics,
};

static void place(bool present)
{
    shunt.present = present;
    if (emulating_disk.port)
        (void)disk_set_port(&emulating_disk, present ? &shunt_port : &ata_port);
}

void shunt_init(void) { place(shunt.embodiment != SHUNT_LATE); }

void shunt_follow(enum disk_mode mode)
{
    shunt.mode = mode;
    shunt.told = mode == MODE_ENLIGHTENED;
    place(shunt.embodiment != SHUNT_LATE || mode != MODE_EMULATED);
}

void shunt_control(bool open) { shunt.opened = open; }

int shunt_embody(uint32_t embodiment)
{
    if (embodiment >= SHUNT_ASK)
        return -E_INVAL;
    disk_hold();
    shunt.embodiment = embodiment;
    shunt_follow(shunt.mode);
    disk_release();
    return 0;
}

/* -- the shunt back */

static bool inert(void) { return storvsc_accepts() && shunt.mode == MODE_ENLIGHTENED; }

static void to_emulating(struct disk_request *request)
{
    const struct port_driver *port = emulating_disk.port;

    if (request->operation == DISK_READ)
        port->read(request);
    else if (request->operation == DISK_WRITE)
        port->write(request);
    else
        port->flush(request);
}

static void back_submit(struct disk_request *request)
{
    if (inert()) {
        request->filter = came_back;
        storvsc_submit(request);
    } else {
        to_emulating(request);
    }
}

static int back_query(void) { return inert() ? 0 : -E_NODEV; }

static int back_identify(struct disk_identity *identity) { return storvsc_port.identify(identity); }

static int back_set_dma(bool on)
{
    (void)on;
    return -E_INVAL;
}

static void back_statistics(struct disk_info *info) { storvsc_port.statistics(info); }

const struct port_driver shunt_back_port = {
    .name = "shunt back",
    .identify = back_identify,
    .query = back_query,
    .set_dma = back_set_dma,
    .read = back_submit,
    .write = back_submit,
    .flush = back_submit,
    .dump = dump,
    .statistics = back_statistics,
};

void shunt_info(struct shunt_info *info)
{
    info->embodiment = shunt.embodiment;
    info->present = shunt.present;
    info->diverting = shunt.mode == MODE_SHUNT_ONLY ? storvsc_accepts() : diverting();
    info->back = enlightened_disk.port != NULL && !inert();
    info->diverted = shunt.diverted;
    info->passed = shunt.passed;
    info->returned = shunt.returned;
    info->accepting = storvsc_accepts();
}
