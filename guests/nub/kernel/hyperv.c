/* Hyper-V's interface as a guest uses it (Hypervisor Top Level Functional Specification: feature discovery, hypercall interface
   of a 32-bit caller, inter-partition communication).

   One synthetic interrupt, SINT 2, comes to VECTOR_SYNTHETIC and ends itself. Invariant: a message slot is given back (type word
   zero, then EOM if another one waits) before its message is obeyed. */
#include "hyperv.h"
#include "cpu.h"
#include "io.h"
#include "lib/text.h"
#include "memory.h"

enum { LEAF_VENDOR = 0x40000000, LEAF_INTERFACE = 0x40000001, LEAF_FEATURES = 0x40000003 };
enum { MSR_GUEST_OS_ID = 0x40000000, MSR_HYPERCALL = 0x40000001, MSR_SCONTROL = 0x40000080, MSR_SIEFP = 0x40000082,
       MSR_SIMP = 0x40000083, MSR_EOM = 0x40000084, MSR_SINT0 = 0x40000090 };
enum { ENABLE = 1, SINT_MASKED = 1 << 16, SINT_AUTO_EOI = 1 << 17 };
enum { POST_MESSAGE = 0x5C, SIGNAL_EVENT = 0x5D, FAST = 1 << 16 };
enum { FEATURE_SYNIC = 1 << 2, FEATURE_HYPERCALL = 1 << 5, MAY_POST = 1 << 4, MAY_SIGNAL = 1 << 5 };

#define VMBUS_SINT 2u
#define SLOT 256u
#define GUEST_OS_HIGH 0x80000000u /* open source */
#define GUEST_OS_LOW 0x00010000u

static uint8_t hypercall_page[4096] __attribute__((aligned(4096)));
static uint8_t message_page[4096] __attribute__((aligned(4096)));
static uint8_t event_page[4096] __attribute__((aligned(4096)));
static void *hypercall_entry = hypercall_page;

static struct {
    uint32_t connection, reserved, type, size;
    uint8_t payload[HYPERV_MESSAGE];
} post __attribute__((aligned(256))); /* crosses no page */

static void wrmsr(uint32_t index, uint32_t low, uint32_t high)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"(low), "d"(high) : "memory");
}

bool hyperv_present(void)
{
    uint32_t r[4];

    if (!cpuid(1, r) || !(r[2] & 1u << 31))
        return false;
    cpuid(LEAF_VENDOR, r);
    if (r[0] < LEAF_FEATURES || memcmp(r + 1, "Microsoft Hv", 12) != 0)
        return false;
    cpuid(LEAF_INTERFACE, r);
    if (memcmp(r, "Hv#1", 4) != 0)
        return false;
    cpuid(LEAF_FEATURES, r);
    return (r[0] & (FEATURE_SYNIC | FEATURE_HYPERCALL)) == (FEATURE_SYNIC | FEATURE_HYPERCALL) &&
           (r[1] & (MAY_POST | MAY_SIGNAL)) == (MAY_POST | MAY_SIGNAL);
}

/* 32-bit callers: EDX:EAX control, EBX:ECX input; EDX:EAX result. */
static uint32_t hypercall(uint32_t control, uint32_t input_high, uint32_t input_low)
{
    uint32_t status, high;

    __asm__ volatile("call *%2"
                     : "=a"(status), "=d"(high)
                     : "m"(hypercall_entry), "0"(control), "1"(0), "b"(input_high), "c"(input_low), "D"(0), "S"(0)
                     : "memory", "cc");
    return status & 0xFFFF;
}

uint32_t hyperv_post(uint32_t connection, const void *message, uint32_t size)
{
    bool on = irq_save();
    uint32_t status;

    post.connection = connection;
    post.reserved = 0;
    post.type = 1; /* a channel message */
    post.size = size;
    memset(post.payload, 0, sizeof post.payload);
    memcpy(post.payload, message, size);
    status = hypercall(POST_MESSAGE, 0, memory_physical(&post));
    irq_restore(on);
    return status;
}

uint32_t hyperv_signal(uint32_t connection) { return hypercall(SIGNAL_EVENT | FAST, 0, connection); }

static void take_messages(void)
{
    volatile uint32_t *type = (volatile uint32_t *)(message_page + VMBUS_SINT * SLOT);
    static uint8_t message[HYPERV_MESSAGE];

    while (*type) {
        uint32_t none = 0;
        bool channel_message = *type == 1;

        memcpy(message, (const uint8_t *)type + 16, sizeof message);
        __asm__ volatile("xchgl %0, %1" : "+r"(none), "+m"(*type) : : "memory"); /* a barrier, too */
        if (((volatile uint8_t *)type)[5] & 1)
            wrmsr(MSR_EOM, 0, 0);
        if (channel_message)
            vmbus_message(message);
    }
}

static void on_interrupt(void)
{
    volatile uint32_t *flags = (volatile uint32_t *)(event_page + VMBUS_SINT * SLOT);

    take_messages();
    for (uint32_t word = 0; word < SLOT / 4; word++) {
        uint32_t bits = 0;

        if (!flags[word])
            continue;
        __asm__ volatile("xchgl %0, %1" : "+r"(bits), "+m"(flags[word]) : : "memory");
        for (uint32_t bit = 0; bit < 32; bit++)
            if (bits & 1u << bit)
                vmbus_event(word * 32 + bit);
    }
}

bool hyperv_start(void)
{
    memset(message_page, 0, sizeof message_page);
    memset(event_page, 0, sizeof event_page);
    apic_install(on_interrupt);
    wrmsr(MSR_GUEST_OS_ID, GUEST_OS_LOW, GUEST_OS_HIGH);
    wrmsr(MSR_HYPERCALL, (uint32_t)hypercall_page | ENABLE, 0);
    if (hypercall_page[0] != 0x0F) /* VMCALL or VMMCALL */
        return false;
    wrmsr(MSR_SIMP, (uint32_t)message_page | ENABLE, 0);
    wrmsr(MSR_SIEFP, (uint32_t)event_page | ENABLE, 0);
    wrmsr(MSR_SINT0 + VMBUS_SINT, VECTOR_SYNTHETIC | SINT_AUTO_EOI, 0);
    wrmsr(MSR_SCONTROL, ENABLE, 0);
    return true;
}

void hyperv_stop(void)
{
    wrmsr(MSR_SINT0 + VMBUS_SINT, SINT_MASKED | VECTOR_SYNTHETIC, 0);
    wrmsr(MSR_SCONTROL, 0, 0);
    wrmsr(MSR_SIEFP, 0, 0);
    wrmsr(MSR_SIMP, 0, 0);
    wrmsr(MSR_HYPERCALL, 0, 0);
    wrmsr(MSR_GUEST_OS_ID, 0, 0);
}
