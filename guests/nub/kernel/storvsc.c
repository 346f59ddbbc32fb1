/* Port driver for a SCSI disk behind VMBus: StorVSC, protocol 6.2 or 6.0.

   Up to SLOTS requests are with the host at once and come back in any order; the others wait in a queue. Invariant: a slot's
   request is done exactly once, by the host's completion or because the channel is gone (-E_GONE). */
#include "storvsc.h"
#include "io.h"
#include "lib/text.h"
#include "memory.h"
#include "shunt.h"
#include "timer.h"
#include "trace.h"
#include "vmbus.h"

enum { COMPLETE_IO = 1, EXECUTE_SRB = 3, BEGIN_INITIALIZATION = 7, END_INITIALIZATION = 8, QUERY_PROTOCOL_VERSION = 9,
       QUERY_PROPERTIES = 10 };
enum { INQUIRY = 0x12, READ_CAPACITY_10 = 0x25, READ_10 = 0x28, WRITE_10 = 0x2A, SYNCHRONIZE_CACHE_10 = 0x35 };
enum { OUT = 0, IN = 1, NONE = 2 };
enum { SRB_SUCCESS = 1, SRB_CODE = 0x3F, PAGE_SERIAL = 0x80 };

#define SLOTS 16u
#define TRIES 4
#define LUNS 8u
#define SYNCHRONOUS 0x100u /* transaction id of command(); requests have theirs from id_of() */
#define MAX_SECTORS 256u
#define MAX_PAGES (MAX_SECTORS * SECTOR / 4096 + 1)
#define TIMEOUT (5 * TIMER_HERTZ)

static const uint8_t scsi_interface[16] = {0xD9, 0x63, 0x61, 0xBA, 0xA1, 0x04, 0x29, 0x4D, 0xB6, 0x05, 0x72, 0xE2, 0xFF, 0xB1, 0xDC, 0x7F};

/* A vstor packet with a SCSI request. */
struct vstor {
    uint32_t operation, flags, status;
    uint16_t length;
    uint8_t srb_status, scsi_status, port, path, target, lun, cdb_length, sense_length, direction, reserved;
    uint32_t transfer_length;
    uint8_t cdb[20]; /* sense data in the reply */
    uint16_t reserved2;
    uint8_t tag, action;
    uint32_t srb_flags, timeout, sort_key;
} __attribute__((packed));

static struct {
    bool accepts;
    uint8_t lun;
    uint32_t max_transfer; /* bytes */
    struct disk_identity identity;
    struct slot {
        struct disk_request *request; /* NULL: free */
        uint32_t tries;
    } slot[SLOTS];
    struct disk_request *head, *tail; /* those that wait for a slot */
    struct disk_info counted;
    volatile bool answered; /* command() */
    struct vstor answer;
} now;

static bool send(uint32_t id, const struct vstor *packet, const void *buffer, uint32_t length)
{
    struct {
        uint32_t reserved, ranges, bytes, offset;
        struct {
            uint32_t low, high;
        } page[MAX_PAGES];
    } between = {0, 1, length, 0, {{0, 0}}};
    uint32_t at = memory_physical(buffer), pages;

    if (!length)
        return vmbus_send(PACKET_IN_BAND, id, NULL, 0, packet, sizeof *packet);
    between.offset = at & 4095;
    pages = (between.offset + length + 4095) / 4096;
    for (uint32_t i = 0; i < pages; i++)
        between.page[i].low = at / 4096 + i;
    return vmbus_send(PACKET_GPA_DIRECT, id, &between, 16 + pages * 8, packet, sizeof *packet);
}

static struct vstor scsi(uint8_t opcode, uint8_t direction, uint32_t length)
{
    struct vstor packet = {.operation = EXECUTE_SRB, .flags = 1, .length = 0x34, .lun = now.lun, .cdb_length = 10, .sense_length = 20,
                           .direction = direction, .transfer_length = length, .cdb = {opcode}, .tag = 0xFF, .timeout = 60};

    return packet;
}

/* -- requests */

/* The request's number, and from 1 on in the low byte, the slot. */
static uint32_t id_of(uint32_t index) { return now.slot[index].request->number << 8 | (index + 1); }

static bool issue(uint32_t index)
{
    const struct disk_request *request = now.slot[index].request;
    struct vstor packet;

    if (request->operation == DISK_FLUSH) {
        packet = scsi(SYNCHRONIZE_CACHE_10, NONE, 0);
        return send(id_of(index), &packet, NULL, 0);
    }
    packet = request->operation == DISK_READ ? scsi(READ_10, IN, request->count * SECTOR) : scsi(WRITE_10, OUT, request->count * SECTOR);
    for (int i = 0; i < 4; i++)
        packet.cdb[2 + i] = (uint8_t)(request->lba >> (24 - 8 * i));
    packet.cdb[7] = (uint8_t)(request->count >> 8);
    packet.cdb[8] = (uint8_t)request->count;
    return send(id_of(index), &packet, request->buffer, request->count * SECTOR);
}

/* Takes requests from the queue as long as there are slots and room in the ring. */
static void issue_waiting(void)
{
    for (uint32_t i = 0; i < SLOTS && now.head && now.accepts; i++) {
        if (now.slot[i].request)
            continue;
        now.slot[i].request = now.head;
        now.slot[i].tries = 0;
        if (!issue(i)) {
            now.slot[i].request = NULL; /* the next completion, or the host's signal that there is room, tries again */
            return;
        }
        now.head = now.head->next;
    }
}

void storvsc_submit(struct disk_request *request)
{
    bool on = irq_save();

    trace(TRACE_STORVSC, request);
    if (!now.accepts) {
        disk_done(request, -E_GONE);
    } else {
        request->next = NULL;
        if (now.head)
            now.tail->next = request;
        else
            now.head = request;
        now.tail = request;
        issue_waiting();
    }
    irq_restore(on);
}

static void complete(uint32_t index, const struct vstor *reply)
{
    struct slot *slot = now.slot + index;
    struct disk_request *request = slot->request;
    bool good = reply->operation == COMPLETE_IO && reply->status == 0 && (reply->srb_status & SRB_CODE) == SRB_SUCCESS &&
                reply->scsi_status == 0;

    if (!request)
        return;
    if (!good && ++slot->tries < TRIES) { /* a unit attention is gone at the second try */
        now.counted.retries++;
        if (issue(index))
            return;
    }
    slot->request = NULL;
    disk_done(request, good ? 0 : -E_IO);
}

static void drain(void)
{
    struct packet packet;
    struct vstor reply;

    for (;;) {
        memset(&reply, 0, sizeof reply);
        if (!vmbus_receive(&packet, &reply, sizeof reply))
            break;
        if (packet.type != PACKET_COMPLETION)
            continue; /* "look for LUNs again": we know ours */
        if (packet.id == SYNCHRONOUS && !now.answered) {
            now.answer = reply;
            now.answered = true;
        } else if ((packet.id & 0xFF) - 1 < SLOTS) {
            complete((packet.id & 0xFF) - 1, &reply);
        }
    }
}

static void on_event(void)
{
    now.counted.interrupts++;
    vmbus_cork(); /* what is submitted by those that are done goes out together */
    do {
        vmbus_mask();
        drain();
    } while (!vmbus_unmask());
    issue_waiting();
    vmbus_uncork();
}

/* The host took the channel away, or broke a rule. */
static void on_gone(void)
{
    struct disk_request *waiting = now.head;

    now.accepts = false;
    now.head = NULL;
    shunt_control(false);
    for (uint32_t i = 0; i < SLOTS; i++) {
        struct disk_request *request = now.slot[i].request;

        now.slot[i].request = NULL;
        if (request)
            disk_done(request, -E_GONE);
    }
    while (waiting) {
        struct disk_request *next = waiting->next;

        disk_done(waiting, -E_GONE);
        waiting = next;
    }
}

/* -- starting */

/* One packet and its completion, with nothing else under way: false if it does not come. */
static bool command(const struct vstor *packet, const void *buffer, uint32_t length)
{
    bool on = irq_save();
    uint32_t start = timer_ticks();

    now.answered = false;
    if (send(SYNCHRONOUS, packet, buffer, length))
        while (!now.answered && timer_ticks() - start < TIMEOUT)
            wait_for_interrupt();
    irq_restore(on);
    return now.answered;
}

static bool step(uint32_t operation, uint16_t value)
{
    struct vstor packet = {.operation = operation, .flags = 1, .length = value};

    return command(&packet, NULL, 0) && now.answer.status == 0;
}

static bool initialize(void)
{
    if (!step(BEGIN_INITIALIZATION, 0))
        return false;
    if (!step(QUERY_PROTOCOL_VERSION, 0x0602) && !step(QUERY_PROTOCOL_VERSION, 0x0600))
        return false;
    if (!step(QUERY_PROPERTIES, 0))
        return false;
    memcpy(&now.max_transfer, (const uint8_t *)&now.answer + 12 + 12, sizeof now.max_transfer);
    return step(END_INITIALIZATION, 0);
}

static bool ask(uint8_t opcode, uint8_t page, uint8_t *data, uint32_t size)
{
    struct vstor packet = scsi(opcode, IN, size);

    for (int tries = 0; tries < TRIES; tries++) {
        memset(data, 0, size);
        if (opcode == INQUIRY) {
            packet.cdb_length = 6;
            packet.cdb[1] = page != 0;
            packet.cdb[2] = page;
            packet.cdb[4] = (uint8_t)size;
        }
        if (!command(&packet, data, size))
            return false;
        if ((now.answer.srb_status & SRB_CODE) == SRB_SUCCESS && now.answer.scsi_status == 0)
            return true;
    }
    return false;
}

/* Text of a fixed width, without the spaces around it. */
static void text_of(char *to, const uint8_t *from, uint32_t length, uint32_t room)
{
    while (length && *from == ' ')
        from++, length--;
    while (length && (from[length - 1] == ' ' || from[length - 1] == 0))
        length--;
    if (length > room - 1)
        length = room - 1;
    memcpy(to, from, length);
    to[length] = 0;
}

static uint32_t big_endian(const uint8_t *at) { return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]; }

/* The LUN that is the disk we know: same serial number, same size. */
static bool find(const struct disk_identity *like)
{
    static uint8_t data[96] __attribute__((aligned(16)));
    struct disk_identity *identity = &now.identity;
    size_t vendor;

    memset(identity, 0, sizeof *identity);
    for (now.lun = 0; now.lun < LUNS; now.lun++) {
        if (!ask(INQUIRY, 0, data, sizeof data) || data[0] != 0) /* 7F: nothing there */
            continue;
        text_of(identity->model, data + 8, 8, sizeof identity->model); /* the vendor */
        vendor = strlen(identity->model);
        identity->model[vendor++] = ' ';
        text_of(identity->model + vendor, data + 16, 16, sizeof identity->model - vendor);
        if (!ask(INQUIRY, PAGE_SERIAL, data, sizeof data))
            continue;
        text_of(identity->serial, data + 4, data[3] < sizeof data - 4 ? data[3] : sizeof data - 4, sizeof identity->serial);
        if (!ask(READ_CAPACITY_10, 0, data, 8) || big_endian(data + 4) != SECTOR)
            continue;
        identity->sectors = big_endian(data) == 0xFFFFFFFF ? 0xFFFFFFFF : big_endian(data) + 1;
        identity->multiple = identity->max_transfer = now.max_transfer / SECTOR < MAX_SECTORS ? now.max_transfer / SECTOR : MAX_SECTORS;
        if (identity->max_transfer && identity->sectors == like->sectors && strcmp(identity->serial, like->serial) == 0)
            return true;
    }
    return false;
}

int storvsc_start(const struct disk_identity *like)
{
    static const struct vmbus_client client = {on_event, on_gone};
    int error;

    memset(now.slot, 0, sizeof now.slot);
    now.head = NULL;
    error = vmbus_connect();
    if (!error)
        error = vmbus_open(scsi_interface, &client);
    if (!error && !initialize())
        error = -E_IO;
    if (!error && !find(like))
        error = -E_OTHERDISK;
    if (error) {
        if (error != -E_PLAIN)
            vmbus_close();
        return error;
    }
    now.accepts = true;
    shunt_control(true);
    return 0;
}

void storvsc_stop(void)
{
    now.accepts = false;
    shunt_control(false);
    vmbus_close();
}

bool storvsc_accepts(void) { return now.accepts; }

/* -- as a port driver */

static int identify(struct disk_identity *identity)
{
    if (!now.accepts)
        return -E_NOFILES;
    *identity = now.identity;
    return 0;
}

static int query(void) { return now.accepts ? 0 : -E_NODEV; }

static int dump(uint32_t lba, uint32_t count, const void *buffer)
{
    (void)lba, (void)count, (void)buffer;
    return -E_IO; /* a crashed kernel has no interrupts: the emulating stack does it */
}

static void statistics(struct disk_info *info)
{
    memcpy(info->driver, "vmbus storvsc", 14);
    info->interrupts = now.counted.interrupts;
    info->retries = now.counted.retries;
}

const struct port_driver storvsc_port = {
    .name = "storvsc",
    .identify = identify,
    .query = query,
    .read = storvsc_submit,
    .write = storvsc_submit,
    .flush = storvsc_submit,
    .dump = dump,
    .statistics = statistics,
};
