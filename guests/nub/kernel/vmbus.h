/* The virtual machine bus: one connection, and one channel at a time, which is all we need (vmbus.c). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum { PACKET_IN_BAND = 6, PACKET_GPA_DIRECT = 9, PACKET_COMPLETION = 11 };

struct packet {
    uint16_t type, offset8, length8, flags; /* offset and length in units of 8 bytes */
    uint32_t id, id_high;
};

struct vmbus_client {
    void (*event)(void); /* the host put something into our ring, or made room in its own; interrupts off */
    void (*gone)(void);  /* the host takes the channel away; interrupts off */
};

/* All may wait, and may be called only from a program's context. */
int vmbus_connect(void);                                                      /* 0, -E_PLAIN or -E_NOBUS */
int vmbus_open(const uint8_t interface[16], const struct vmbus_client *client); /* 0 or -E_NOCHANNEL */
void vmbus_close(void);                                                       /* channel and connection */

/* The ring, with interrupts off. Between cork and uncork packets gather, and the host is signalled once. */
void vmbus_cork(void);
void vmbus_uncork(void);
/* `between` lies between descriptor and payload; both are multiples of 8 bytes. False: the ring is full. */
bool vmbus_send(uint32_t type, uint32_t id, const void *between, uint32_t between_size, const void *payload, uint32_t size);
void vmbus_mask(void);      /* no events while we look at our ring anyway */
bool vmbus_unmask(void);    /* false: something came in between, look again */
uint32_t vmbus_receive(struct packet *packet, void *payload, uint32_t size); /* payload bytes; 0: nothing there. For long ones, the start */
