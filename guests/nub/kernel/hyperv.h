/* The hypervisor's enlightened interface: CPUID, synthetic MSRs, hypercalls, the synthetic interrupt controller (hyperv.c). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define HYPERV_MESSAGE 240u /* the most a message carries */

bool hyperv_present(void);
bool hyperv_start(void); /* false: the interface is not what it says */
void hyperv_stop(void);

/* HvPostMessage and HvSignalEvent; the status of the hypercall, 0 = success. */
uint32_t hyperv_post(uint32_t connection, const void *message, uint32_t size);
uint32_t hyperv_signal(uint32_t connection);

/* In vmbus.c, called with interrupts off: what came in on VMBus's synthetic interrupt. */
void vmbus_message(const uint8_t *message);
void vmbus_event(uint32_t flag);
