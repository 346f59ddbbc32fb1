/* The mode switch: drains what is in flight, starts or stops the enlightened side, tells the shunt, lets requests go on.

   A program that writes a file meanwhile notices nothing: its next request waits in the class driver and takes the new way.
   Who wants a switch: a program, a key, or the host, by a port that reads what it wants (all ones where there is none) and is told
   how each switch ended. Invariant: when starting the enlightened side fails, everything is as before. */
#include "mode.h"
#include "cpu.h"
#include "disk.h"
#include "io.h"
#include "shunt.h"
#include "storvsc.h"
#include "trace.h"

enum { HOST_PORT = 0x5F0, HOST_LINE = 10 };

bool trace_wanted;

static enum disk_mode mode = MODE_EMULATED;
static volatile int wanted = -1;
static bool switching;

static void tell_host(int error) { outw(HOST_PORT, (uint16_t)(mode | (uint32_t)-error << 8)); }

static void on_host(void)
{
    uint16_t wish = inw(HOST_PORT);

    trace_wanted = wish >> 8 == 1;
    if ((wish & 0xFF) < MODE_ASK)
        mode_request(wish & 0xFF);
}

int mode_init(void)
{
    int error = disk_attach(&emulating_disk, &ata_port);

    if (error)
        return error;
    shunt_init();
    irq_install(HOST_LINE, on_host);
    tell_host(0);
    return 0;
}

enum disk_mode mode_current(void) { return mode; }

static int switch_to(enum disk_mode next)
{
    int error = 0;

    if (next != MODE_EMULATED && !storvsc_accepts())
        error = storvsc_start(&emulating_disk.identity);
    if (!error && next == MODE_ENLIGHTENED && !enlightened_disk.port)
        error = disk_attach(&enlightened_disk, &shunt_back_port); /* and stays: it has the shunt back */
    if (error)
        return error;
    mode = next;
    shunt_follow(next);
    if (next == MODE_EMULATED && storvsc_accepts())
        storvsc_stop();
    return 0;
}

int mode_set(uint32_t next)
{
    int error;

    if (next >= MODE_ASK || switching)
        return -E_INVAL;
    if (!emulating_disk.port)
        return -E_NOFILES;
    switching = true;
    disk_hold();
    error = switch_to(next);
    disk_release();
    switching = false;
    tell_host(error);
    return error;
}

void mode_request(enum disk_mode next) { wanted = (int)next; }

bool mode_poll(void)
{
    int next = wanted;

    if (next < 0 || switching)
        return false;
    wanted = -1;
    (void)mode_set((uint32_t)next);
    return true;
}
