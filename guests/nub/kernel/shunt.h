/* The shunt between class and port driver of the emulating stack, and the one back (shunt.c). */
#pragma once
#include "disk.h"

extern const struct port_driver shunt_back_port; /* stands above storvsc in the enlightened stack */

void shunt_init(void);                         /* above ata_port, if the embodiment says so */
void shunt_follow(enum disk_mode mode);        /* the mode switch: nothing is in flight */
void shunt_control(bool open);                 /* the enlightened port driver: opens and closes it, or tells that it itself is gone */
int shunt_embody(uint32_t embodiment);         /* 0 or -E_INVAL */
void shunt_info(struct shunt_info *info);
