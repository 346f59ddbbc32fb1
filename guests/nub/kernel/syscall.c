/* int 0x80: each pointer from ring 3 is checked against the program's pages before the kernel uses it. */
#include "abi.h"
#include "console.h"
#include "cpu.h"
#include "disk.h"
#include "files.h"
#include "lib/text.h"
#include "memory.h"
#include "mode.h"
#include "power.h"
#include "program.h"
#include "shunt.h"
#include "timer.h"

/* Copies a name in; -E_NAME if it is too long, -E_INVAL if it leaves the program's pages. */
static int name_from(char *name, uint32_t user)
{
    for (uint32_t i = 0; i < NAME_SIZE; i++) {
        if (!user_range((const char *)user + i, 1, false))
            return -E_INVAL;
        name[i] = ((const char *)user)[i];
        if (!name[i])
            return 0;
    }
    return -E_NAME;
}

static int sys_write(uint32_t text, uint32_t length)
{
    if (!user_range((const void *)text, length, false))
        return -E_INVAL;
    console_write((const char *)text, length);
    return (int)length;
}

static int sys_readline(uint32_t buffer, uint32_t size)
{
    if (size == 0 || !user_range((void *)buffer, size, true))
        return -E_INVAL;
    return line_read((char *)buffer, size);
}

static int sys_dir(uint32_t index, uint32_t info)
{
    if (!user_range((void *)info, sizeof(struct file_info), true))
        return -E_INVAL;
    return files_slot(index, (struct file_info *)info);
}

static int sys_stat(uint32_t user_name, uint32_t info)
{
    char name[NAME_SIZE];
    int error = name_from(name, user_name);

    if (error || !user_range((void *)info, sizeof(struct file_info), true))
        return error ? error : -E_INVAL;
    return files_stat(name, (struct file_info *)info);
}

static int sys_read(uint32_t user_io)
{
    char name[NAME_SIZE];
    struct file_io io;
    int error;

    if (!user_range((void *)user_io, sizeof io, false))
        return -E_INVAL;
    io = *(const struct file_io *)user_io;
    error = name_from(name, (uint32_t)io.name);
    if (error || !user_range(io.buffer, io.length, true))
        return error ? error : -E_INVAL;
    return files_read(name, io.offset, io.buffer, io.length);
}

static int sys_create(uint32_t user_name, uint32_t length)
{
    char name[NAME_SIZE];
    int error = name_from(name, user_name);

    return error ? error : files_create(name, length);
}

static int sys_append(uint32_t buffer, uint32_t length)
{
    return user_range((const void *)buffer, length, false) ? files_append((const void *)buffer, length) : -E_INVAL;
}

static int sys_delete(uint32_t user_name)
{
    char name[NAME_SIZE];
    int error = name_from(name, user_name);

    return error ? error : files_delete(name);
}

static int sys_disk_read(uint32_t lba, uint32_t count, uint32_t buffer)
{
    if (count > USER_SIZE / SECTOR || !user_range((void *)buffer, count * SECTOR, true))
        return -E_INVAL;
    return disk_visible() ? disk_transfer(disk_visible(), DISK_READ, lba, count, (void *)buffer) : -E_NOFILES;
}

static int sys_disk_info(uint32_t info)
{
    if (!user_range((void *)info, sizeof(struct disk_info), true))
        return -E_INVAL;
    return disk_visible() ? disk_info(disk_visible(), (struct disk_info *)info) : -E_NOFILES;
}

static int sys_shunt(uint32_t embodiment, uint32_t info)
{
    int error = embodiment == SHUNT_ASK ? 0 : shunt_embody(embodiment);

    if (error || !info)
        return error;
    if (!user_range((void *)info, sizeof(struct shunt_info), true))
        return -E_INVAL;
    shunt_info((struct shunt_info *)info);
    return 0;
}

static int sys_device(uint32_t stack, uint32_t info)
{
    if (!user_range((void *)info, sizeof(struct disk_info), true))
        return -E_INVAL;
    return disk_info(stack == STACK_ENLIGHTENED ? &enlightened_disk : &emulating_disk, (struct disk_info *)info);
}

static int sys_bench(uint32_t user_bench)
{
    struct bench *bench = (struct bench *)user_bench;

    if (!user_range(bench, sizeof *bench, true) || bench->size > 64 * 1024 || !user_range(bench->buffer, bench->size, true))
        return -E_INVAL;
    return bench_run(bench);
}

static int sys_time(uint32_t info)
{
    struct time_info *time = (struct time_info *)info;

    if (!user_range(time, sizeof *time, true))
        return -E_INVAL;
    time->microseconds = timer_microseconds(); /* first: the RTC takes its time */
    time->ticks = timer_ticks();
    time->hertz = TIMER_HERTZ;
    rtc_read(time);
    return 0;
}

static int sys_memory(uint32_t info)
{
    if (!user_range((void *)info, sizeof(struct memory_info), true))
        return -E_INVAL;
    memory_info((struct memory_info *)info);
    return 0;
}

int system_call(uint32_t number, uint32_t a, uint32_t b, uint32_t c)
{
    switch (number) {
    case SYS_EXIT: program_start();
    case SYS_WRITE: return sys_write(a, b);
    case SYS_READLINE: return sys_readline(a, b);
    case SYS_BREAK: return console_take_break();
    case SYS_COLOR: return console_color((uint8_t)a);
    case SYS_DIR: return sys_dir(a, b);
    case SYS_STAT: return sys_stat(a, b);
    case SYS_READ: return sys_read(a);
    case SYS_CREATE: return sys_create(a, b);
    case SYS_APPEND: return sys_append(a, b);
    case SYS_COMMIT: return files_commit();
    case SYS_DELETE: return sys_delete(a);
    case SYS_DISK_READ: return sys_disk_read(a, b, c);
    case SYS_DISK_INFO: return sys_disk_info(a);
    case SYS_DISK_DMA: return disk_set_dma(a != 0);
    case SYS_TIME: return sys_time(a);
    case SYS_MEMORY: return sys_memory(a);
    case SYS_SLEEP: timer_sleep(a); return 0;
    case SYS_BEEP: beep(a, b); return 0;
    case SYS_PANIC: *(volatile uint32_t *)0 = 0; return 0; /* page 0 is absent */
    case SYS_MODE: return a == MODE_ASK ? (int)mode_current() : mode_set(a);
    case SYS_SHUNT: return sys_shunt(a, b);
    case SYS_DEVICE: return sys_device(a, b);
    case SYS_BENCH: return sys_bench(a);
    case SYS_REBOOT: power_reboot();
    case SYS_HALT: power_off();
    default: return -E_INVAL;
    }
}
