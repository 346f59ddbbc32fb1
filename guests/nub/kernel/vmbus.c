/* VMBus as a guest speaks it, version 4.0: contact, offers, one GPADL, open, close, unload, and the channel's two rings.

   Messages go out by HvPostMessage and come in from the SINT handler; call() sends one and sleeps until its answer is there.
   Invariant: an index that the host writes is used only after it was checked, and a host that breaks a rule loses the channel. */
#include "vmbus.h"
#include "abi.h"
#include "hyperv.h"
#include "io.h"
#include "lib/text.h"
#include "memory.h"
#include "timer.h"

enum { OFFER = 1, RESCIND, REQUEST_OFFERS, ALL_OFFERS, OPEN, OPEN_RESULT, CLOSE, GPADL_HEADER, GPADL_BODY, GPADL_CREATED,
       GPADL_TEARDOWN, GPADL_TORNDOWN, RELEASED, CONTACT, VERSION, UNLOAD, UNLOADED };

#define VERSION_4_0 0x00040000u
#define CONNECTION 1u /* of messages, below version 5.0 */
#define INSUFFICIENT_BUFFERS 0x13u
#define TIMEOUT (5 * TIMER_HERTZ)
#define GPADL 0xA0001u
#define OFFERS 16
#define RING_PAGES 5u /* control page and data, each way; the GPADL of both fits one message */
#define DATA_SIZE ((RING_PAGES - 1) * 4096u)

/* A ring's control page. Indices are bytes into the data, each written by one side alone. */
struct control {
    volatile uint32_t write, read, mask, pending_send_size, reserved[12], features;
};

struct ring {
    union {
        struct control control;
        uint8_t page[4096];
    };
    uint8_t data[DATA_SIZE];
};

static struct {
    struct ring out, in;
} rings __attribute__((aligned(4096)));

static struct offer {
    uint8_t interface[16];
    uint32_t channel, connection;
} offers[OFFERS];
static uint32_t offered;

static struct {
    bool connected, open;
    struct offer offer;
    struct vmbus_client client;
    uint32_t write, read; /* our own copies of the indices we own */
    bool corked, unsaid;  /* unsaid: a signal is owed */
} bus;

static struct {
    uint32_t type; /* 0: no answer is waited for */
    volatile bool there;
    uint8_t message[HYPERV_MESSAGE];
} answer;

static uint32_t word(const uint8_t *message, uint32_t offset)
{
    uint32_t value;

    memcpy(&value, message + offset, sizeof value);
    return value;
}

/* Messages of up to 60 words: type, 0, then what follows. */
static uint32_t post(const uint32_t *message, uint32_t words)
{
    uint32_t status = 0;

    for (uint32_t tries = 0; tries < TIMEOUT; tries++) {
        status = hyperv_post(CONNECTION, message, words * 4);
        if (status != INSUFFICIENT_BUFFERS)
            break;
        wait_for_interrupt();
    }
    return status;
}

/* Sends a message and waits for one of that type: NULL if it does not come. Interrupts are off but for the waiting. */
static const uint8_t *call(const uint32_t *message, uint32_t words, uint32_t type)
{
    uint32_t start = timer_ticks();

    answer.there = false;
    answer.type = type;
    if (post(message, words) == 0)
        while (!answer.there && timer_ticks() - start < TIMEOUT)
            wait_for_interrupt();
    answer.type = 0;
    return answer.there ? answer.message : NULL;
}

static void note_offer(const uint8_t *message)
{
    struct offer *offer = offers + offered;
    uint32_t sub_channel = word(message, 180) & 0xFFFF;

    if (offered == OFFERS || sub_channel)
        return;
    memcpy(offer->interface, message + 8, sizeof offer->interface);
    offer->channel = word(message, 184);
    offer->connection = word(message, 192);
    offered++;
}

static void rescind(uint32_t channel)
{
    const uint32_t released[] = {RELEASED, 0, channel};

    if (bus.open && bus.offer.channel == channel) {
        bus.open = false;
        bus.client.gone();
    }
    for (uint32_t i = 0; i < offered; i++)
        if (offers[i].channel == channel)
            offers[i] = offers[--offered];
    (void)hyperv_post(CONNECTION, released, sizeof released);
}

void vmbus_message(const uint8_t *message)
{
    uint32_t type = word(message, 0);

    if (type == OFFER)
        note_offer(message);
    else if (type == RESCIND)
        rescind(word(message, 8));
    else if (type == answer.type && !answer.there) {
        memcpy(answer.message, message, sizeof answer.message);
        answer.there = true;
    }
}

void vmbus_event(uint32_t flag)
{
    if (bus.open && flag == bus.offer.channel)
        bus.client.event();
}

static int connect(void)
{
    static const uint32_t contact[] = {CONTACT, 0, VERSION_4_0, 0, 0, 0, 0, 0, 0, 0}, request[] = {REQUEST_OFFERS, 0};
    const uint8_t *reply;

    offered = 0;
    if (!hyperv_start())
        return -E_PLAIN;
    reply = call(contact, sizeof contact / 4, VERSION);
    if (!reply || !reply[8])
        return -E_NOBUS;
    bus.connected = true;
    return call(request, 2, ALL_OFFERS) ? 0 : -E_NOBUS;
}

int vmbus_connect(void)
{
    bool on;
    int error;

    if (!hyperv_present())
        return -E_PLAIN;
    on = irq_save();
    error = connect();
    irq_restore(on);
    return error;
}

static int open(void)
{
    uint32_t gpadl[5 + 2 + 2 * 2 * RING_PAGES] = {GPADL_HEADER, 0, bus.offer.channel, GPADL,
                                                  (8 + 2 * RING_PAGES * 8) | 1 << 16, 2 * RING_PAGES * 4096, 0};
    uint32_t request[37] = {OPEN, 0, bus.offer.channel, bus.offer.channel, GPADL, 0, RING_PAGES};
    const uint8_t *reply;

    memset(&rings, 0, sizeof rings);
    rings.out.control.features = rings.in.control.features = 1; /* pending_send_size */
    bus.write = bus.read = 0;
    bus.corked = bus.unsaid = false;
    for (uint32_t page = 0; page < 2 * RING_PAGES; page++)
        gpadl[7 + 2 * page] = memory_physical(&rings) / 4096 + page;
    reply = call(gpadl, 7 + 2 * 2 * RING_PAGES, GPADL_CREATED);
    if (!reply || word(reply, 16) != 0)
        return -E_NOCHANNEL;
    bus.open = true; /* an event may come before the answer */
    reply = call(request, 37, OPEN_RESULT);
    bus.open = reply && word(reply, 16) == 0;
    return bus.open ? 0 : -E_NOCHANNEL;
}

int vmbus_open(const uint8_t interface[16], const struct vmbus_client *client)
{
    bool on = irq_save();
    int error = -E_NOCHANNEL;

    for (uint32_t i = 0; i < offered && error; i++) {
        if (memcmp(offers[i].interface, interface, 16) == 0) {
            bus.offer = offers[i];
            bus.client = *client;
            error = open();
        }
    }
    irq_restore(on);
    return error;
}

void vmbus_close(void)
{
    static const uint32_t unload[] = {UNLOAD, 0};
    bool on = irq_save();

    if (bus.open) {
        const uint32_t close[] = {CLOSE, 0, bus.offer.channel}, teardown[] = {GPADL_TEARDOWN, 0, bus.offer.channel, GPADL};

        bus.open = false;
        (void)post(close, 3);
        (void)call(teardown, 4, GPADL_TORNDOWN);
    }
    if (bus.connected) {
        bus.connected = false;
        (void)call(unload, 2, UNLOADED);
    }
    if (hyperv_present())
        hyperv_stop();
    irq_restore(on);
}

/* -- the rings */

static void fail(void)
{
    bus.open = false;
    bus.client.gone();
}

static bool sound(uint32_t index) { return index < DATA_SIZE && index % 8 == 0; }

static void barrier(void) { __asm__ volatile("lock; addl $0, (%%esp)" : : : "memory"); }

void vmbus_cork(void) { bus.corked = true; }

void vmbus_uncork(void)
{
    bool signal = bus.unsaid;

    bus.corked = bus.unsaid = false;
    if (signal)
        (void)hyperv_signal(bus.offer.connection);
}

static void put(uint32_t *at, const void *data, uint32_t size)
{
    uint32_t first = DATA_SIZE - *at < size ? DATA_SIZE - *at : size;

    memcpy(rings.out.data + *at, data, first);
    memcpy(rings.out.data, (const uint8_t *)data + first, size - first);
    *at = (*at + size) % DATA_SIZE;
}

bool vmbus_send(uint32_t type, uint32_t id, const void *between, uint32_t between_size, const void *payload, uint32_t size)
{
    uint32_t length = sizeof(struct packet) + between_size + size, before = bus.write, at = before, read = rings.out.control.read;
    const struct packet packet = {(uint16_t)type, (uint16_t)((sizeof packet + between_size) / 8), (uint16_t)(length / 8), 1, id, 0};
    const uint32_t footer[2] = {0, before};

    if (!bus.open)
        return false;
    if (!sound(read)) {
        fail();
        return false;
    }
    if (DATA_SIZE - 8 - (before - read) % DATA_SIZE < length + sizeof footer)
        return false;
    put(&at, &packet, sizeof packet);
    put(&at, between, between_size);
    put(&at, payload, size);
    put(&at, footer, sizeof footer);
    barrier();
    rings.out.control.write = bus.write = at;
    barrier();
    if (!rings.out.control.mask && rings.out.control.read == before) /* it had seen everything: it may be asleep */
        bus.unsaid = true;
    if (!bus.corked)
        vmbus_uncork();
    return true;
}

void vmbus_mask(void) { rings.in.control.mask = 1; }

bool vmbus_unmask(void)
{
    rings.in.control.mask = 0;
    barrier();
    return !bus.open || rings.in.control.write == bus.read;
}

static void get(uint32_t at, void *data, uint32_t size)
{
    uint32_t first;

    at %= DATA_SIZE;
    first = DATA_SIZE - at < size ? DATA_SIZE - at : size;
    memcpy(data, rings.in.data + at, first);
    memcpy((uint8_t *)data + first, rings.in.data, size - first);
}

uint32_t vmbus_receive(struct packet *packet, void *payload, uint32_t size)
{
    uint32_t write, there, length, free_before, wanted;

    if (!bus.open)
        return 0;
    write = rings.in.control.write;
    barrier();
    there = (write - bus.read) % DATA_SIZE;
    if (there == 0)
        return 0;
    if (!sound(write) || there < sizeof *packet + 8) {
        fail();
        return 0;
    }
    get(bus.read, packet, sizeof *packet);
    length = packet->length8 * 8u;
    if (packet->offset8 < 2 || packet->length8 <= packet->offset8 || length + 8 > there) {
        fail();
        return 0;
    }
    if (size > length - packet->offset8 * 8u)
        size = length - packet->offset8 * 8u;
    get(bus.read + packet->offset8 * 8u, payload, size);
    bus.read = (bus.read + length + 8) % DATA_SIZE;
    barrier();
    free_before = DATA_SIZE - 8 - there;
    rings.in.control.read = bus.read;
    barrier();
    wanted = rings.in.control.pending_send_size & ~7u;
    if (wanted && free_before < wanted && wanted <= free_before + length + 8)
        (void)hyperv_signal(bus.offer.connection);
    return size;
}
