/* Port driver for the first ATA disk (ports 0x1F0-0x1F7, 0x3F6, IRQ 14): PIO with interrupts (ATA/ATAPI-6, 9.5 and 9.6),
   or bus-master DMA (9.7) where there is such a controller and somebody asked for it.

   One request is on the drive, the others wait in a queue. Everything happens in begin(), which issues a command, and advance(),
   which looks at the status and moves one block of data. Interrupts call advance(); so does the 20 Hz tick when the drive stays
   busy or an interrupt is overdue. Invariant: nobody spins for more than ATA_SHORT status reads with interrupts off. */
#include "ata.h"
#include "busmaster.h"
#include "console.h"
#include "cpu.h"
#include "disk.h"
#include "io.h"
#include "lib/text.h"
#include "timer.h"
#include "trace.h"

#define TIMEOUT (10 * TIMER_HERTZ) /* without any progress */
#define OVERDUE (TIMER_HERTZ / 2)
#define TRIES 4

/* Where the request on the drive is. */
enum state {
    IDLE,
    ISSUE,     /* the drive was not ready for the command: the tick tries again */
    RESETTING, /* SRST given, waiting for BSY = 0 */
    DATA_IN,
    DATA_OUT_FIRST, /* no interrupt announces the first block of a write */
    DATA_OUT,
    NO_DATA,
    DMA,
};

static struct {
    struct disk_request *head, *tail;
    enum state state;
    uint32_t left; /* sectors still to be moved */
    uint8_t *at;
    uint32_t progress; /* tick of the last sign of life */
    uint32_t tries;
    bool held; /* the drive interrupted us, or took the command, and still showed BSY */
} now;

static bool lba48;
static uint32_t multiple; /* 0: READ/WRITE SECTORS, one sector a block */
static bool dma_there, dma_wanted;
static struct disk_info counted;

static void begin(void);

static void complete(int status)
{
    struct disk_request *request = now.head;

    now.state = IDLE;
    now.head = request->next;
    if (now.head) {
        now.tries = 0;
        begin();
    }
    disk_done(request, status);
}

static void fail(void)
{
    if (++now.tries >= TRIES) {
        complete(-E_IO);
        return;
    }
    counted.retries++;
    if (now.state == DMA)
        (void)busmaster_stop();
    if (now.tries == 1 && !(inb(ATA_ALT_STATUS) & (ATA_BSY | ATA_DRQ))) {
        begin(); /* a plain error: the same again */
        return;
    }
    counted.resets++;
    now.state = RESETTING;
    now.progress = timer_ticks();
    ata_soft_reset();
}

static uint8_t command_for(const struct disk_request *request, bool wide)
{
    if (now.state == DMA)
        return request->operation == DISK_READ ? (wide ? ATA_READ_DMA_EXT : ATA_READ_DMA) : wide ? ATA_WRITE_DMA_EXT : ATA_WRITE_DMA;
    switch (request->operation) {
    case DISK_READ:
        return multiple ? (wide ? ATA_READ_MULTIPLE_EXT : ATA_READ_MULTIPLE) : wide ? ATA_READ_EXT : ATA_READ;
    case DISK_WRITE:
        return multiple ? (wide ? ATA_WRITE_MULTIPLE_EXT : ATA_WRITE_MULTIPLE) : wide ? ATA_WRITE_EXT : ATA_WRITE;
    default:
        return lba48 ? ATA_FLUSH_EXT : ATA_FLUSH;
    }
}

static void move_block(void)
{
    uint32_t sectors = multiple && now.left > multiple ? multiple : multiple ? now.left : 1;

    if (now.head->operation == DISK_READ)
        insw(ATA_DATA, now.at, sectors * (SECTOR / 2));
    else
        outsw(ATA_DATA, now.at, sectors * (SECTOR / 2));
    now.at += sectors * SECTOR;
    now.left -= sectors;
    now.progress = timer_ticks();
}

/* The drive has something to say, or may have: `status` is what it says. */
static void advance(uint8_t status)
{
    now.held = status & ATA_BSY;
    if (now.held)
        return; /* the tick looks again */
    if (status & (ATA_ERR | ATA_DF)) {
        fail();
        return;
    }
    switch (now.state) {
    case DATA_IN:
        if (status & ATA_DRQ) {
            move_block();
            if (now.left == 0)
                complete(0);
        }
        break;
    case DATA_OUT_FIRST:
        if (status & ATA_DRQ) {
            now.state = DATA_OUT;
            move_block();
        }
        break;
    case DATA_OUT:
        if (!(status & ATA_DRQ) == (now.left != 0))
            fail(); /* the drive and we disagree on how much there is */
        else if (now.left)
            move_block();
        else
            complete(0);
        break;
    case NO_DATA:
        if (!(status & ATA_DRQ))
            complete(0);
        break;
    case DMA:
        if (status & ATA_DRQ)
            break;
        now.left = 0;
        if (busmaster_stop())
            complete(0);
        else
            fail();
        break;
    default:
        break;
    }
}

/* DMA if wanted and possible; after two failed tries PIO has its turn. */
static bool by_dma(const struct disk_request *request)
{
    return dma_wanted && now.tries < 2 && request->operation != DISK_FLUSH &&
           busmaster_prepare(request->buffer, request->count * SECTOR, request->operation == DISK_READ);
}

/* Issues the head of the queue, or leaves it in ISSUE for the tick when the drive is not ready. */
static void begin(void)
{
    struct disk_request *request = now.head;
    bool wide = lba48 && (request->lba >= ATA_LBA28_LIMIT || request->count > ATA_LBA28_LIMIT - request->lba);

    if (now.state != ISSUE)
        now.progress = timer_ticks();
    now.state = ISSUE;
    now.left = request->operation == DISK_FLUSH ? 0 : request->count;
    now.at = request->buffer;
    if (!ata_select(wide ? 0x40 : 0xE0 | (request->lba >> 24 & 0x0F)))
        return;
    if (request->operation != DISK_FLUSH)
        ata_address(request->lba, request->count, wide);
    if (by_dma(request))
        now.state = DMA;
    else
        now.state = request->operation == DISK_READ ? DATA_IN : request->operation == DISK_WRITE ? DATA_OUT_FIRST : NO_DATA;
    outb(ATA_COMMAND, command_for(request, wide));
    if (now.state == DMA)
        busmaster_start();
    if (now.state == DATA_OUT_FIRST)
        advance(ata_settle(ATA_SHORT));
}

static void on_irq(void)
{
    bool moved = now.state != DMA || busmaster_interrupt(); /* asked first: all data is in memory once it says so */
    uint8_t status = inb(ATA_STATUS);                       /* takes the line down */

    counted.interrupts++;
    if (!moved)
        return;
    if (now.state >= DATA_IN && now.state != DATA_OUT_FIRST)
        advance(status);
}

/* Not busy: is the drive at a point where it must have interrupted? During DMA, DRQ means that data is still moving. */
static bool due(uint8_t status)
{
    if (now.state == DMA)
        return !(status & ATA_DRQ);
    return (status & (ATA_DRQ | ATA_ERR | ATA_DF)) || now.left == 0;
}

static void on_tick(void)
{
    uint32_t quiet = timer_ticks() - now.progress;
    uint8_t status;

    if (now.state == IDLE)
        return;
    status = inb(ATA_ALT_STATUS);
    if (quiet > TIMEOUT) {
        counted.timeouts++;
        fail();
    } else if (now.state == ISSUE) {
        begin();
    } else if (status & ATA_BSY) {
        return;
    } else if (now.state == RESETTING) {
        multiple = ata_set_multiple(multiple);
        begin();
    } else if (now.held || now.state == DATA_OUT_FIRST) {
        advance(inb(ATA_STATUS));
    } else if (quiet > OVERDUE && due(status)) {
        counted.lost++;
        advance(inb(ATA_STATUS));
    }
}

static void enqueue(struct disk_request *request)
{
    bool on = irq_save();

    trace(TRACE_ATA, request);
    request->next = NULL;
    if (now.head) {
        now.tail->next = request;
        now.tail = request;
    } else {
        now.head = now.tail = request;
        now.tries = 0;
        begin();
    }
    irq_restore(on);
}

static int identify(struct disk_identity *identity)
{
    if (!ata_identify(identity))
        return -E_NOFILES;
    lba48 = identity->lba48;
    multiple = ata_set_multiple(identity->multiple);
    identity->multiple = multiple ? multiple : 1;
    identity->max_transfer = 256;
    dma_there = identity->dma && busmaster_find() && ata_set_transfer_mode(ATA_MODE_MWDMA2);
    irq_install(14, on_irq);
    timer_on_tick(on_tick);
    outb(ATA_CONTROL, 0);
    return 0;
}

static int query(void) { return 0; }

static int set_dma(bool on)
{
    if (on && !dma_there)
        return -E_INVAL;
    dma_wanted = on;
    return 0;
}

static int dump(uint32_t lba, uint32_t count, const void *buffer)
{
    now.state = IDLE; /* what was under way is lost, as the rest of the system */
    return ata_write_polled(lba, count, buffer) ? 0 : -E_IO;
}

static void statistics(struct disk_info *info)
{
    memcpy(info->driver, dma_wanted ? "ata dma" : "ata pio", 8);
    info->dma = dma_there;
    info->interrupts = counted.interrupts;
    info->retries = counted.retries;
    info->resets = counted.resets;
    info->timeouts = counted.timeouts;
    info->lost = counted.lost;
}

const struct port_driver ata_port = {
    .name = "ata",
    .identify = identify,
    .query = query,
    .set_dma = set_dma,
    .read = enqueue,
    .write = enqueue,
    .flush = enqueue,
    .dump = dump,
    .statistics = statistics,
};
