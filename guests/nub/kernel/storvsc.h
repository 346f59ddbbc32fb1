/* The enlightened port driver: disk requests as SCSI over VMBus (storvsc.c). */
#pragma once
#include <stdbool.h>
#include "disk.h"

extern const struct port_driver storvsc_port;

int storvsc_start(const struct disk_identity *like); /* 0, -E_PLAIN, -E_NOBUS, -E_NOCHANNEL, -E_IO, or -E_OTHERDISK: not the same disk */
void storvsc_stop(void);                             /* nothing may be in flight */
bool storvsc_accepts(void);

/* For who sends requests without being a class driver (the shunt); -E_GONE comes back if the channel is not there any more. */
void storvsc_submit(struct disk_request *request);
