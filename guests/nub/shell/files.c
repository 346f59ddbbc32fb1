/* Commands on files. */
#include "sys.h"

static void usage(const char *text) { print("Say: %s.\n", text); }

static int stat(const char *name, struct file_info *info) { return call(SYS_STAT, (uint32_t)name, (uint32_t)info, 0); }

static int read_at(const char *name, uint32_t offset)
{
    struct file_io io = {name, offset, chunk, sizeof chunk};

    return call(SYS_READ, (uint32_t)&io, 0, 0);
}

/* Seconds since 1970 as a date. */
static void print_date(uint32_t seconds)
{
    static const uint8_t lengths[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    uint32_t day = seconds / 86400, year = 1970, month = 0;

    for (; day >= 365u + (year % 4 == 0); year++)
        day -= 365u + (year % 4 == 0);
    for (; day >= lengths[month] + (uint32_t)(month == 1 && year % 4 == 0); month++)
        day -= lengths[month] + (uint32_t)(month == 1 && year % 4 == 0);
    print("%04u-%02u-%02u %02u:%02u", year, month + 1, day + 1, seconds / 3600 % 24, seconds / 60 % 60);
}

void cmd_dir(char *args)
{
    struct file_info info;
    uint32_t files = 0, bytes = 0;
    int error;

    (void)args;
    for (uint32_t slot = 0;; slot++) {
        error = call(SYS_DIR, slot, (uint32_t)&info, 0);
        if (error == -E_NOENT)
            continue;
        if (error)
            break;
        print("  %-24s %8u  %08x  ", info.name, info.length, info.crc);
        print_date(info.modified);
        print("\n");
        files++;
        bytes += info.length;
    }
    if (error == -E_INVAL)
        print("%u files, %u bytes.\n", files, bytes);
    else
        complain(error);
}

void cmd_read(char *args)
{
    const char *name = word(&args);
    uint32_t offset = 0;
    int length;
    char last = '\n';

    if (!name) {
        usage("read FILE");
        return;
    }
    while ((length = read_at(name, offset)) > 0) {
        for (int i = 0; i < length; i++)
            if ((chunk[i] < ' ' && chunk[i] != '\n' && chunk[i] != '\t') || chunk[i] > 126)
                chunk[i] = '.';
        last = (char)chunk[length - 1];
        for (int at = 0; at < length; at += 256) {
            if (call(SYS_BREAK, 0, 0, 0)) {
                print("\n");
                complain(-E_BREAK);
                return;
            }
            call(SYS_WRITE, (uint32_t)(chunk + at), (uint32_t)(length - at < 256 ? length - at : 256), 0);
        }
        offset += (uint32_t)length;
    }
    if (last != '\n')
        print("\n");
    if (length < 0)
        complain(length);
}

void cmd_write(char *args)
{
    const char *name = word(&args);
    size_t length = strlen(args);
    int error;

    if (!name || !length) {
        usage("write FILE TEXT");
        return;
    }
    args[length++] = '\n'; /* the line buffer ends with a zero there */
    error = call(SYS_CREATE, (uint32_t)name, length, 0);
    if (!error)
        error = call(SYS_APPEND, (uint32_t)args, length, 0);
    if (!error)
        error = call(SYS_COMMIT, 0, 0, 0);
    if (error)
        complain(error);
}

void cmd_delete(char *args)
{
    const char *name = word(&args);
    int error;

    if (!name) {
        usage("delete FILE");
        return;
    }
    error = call(SYS_DELETE, (uint32_t)name, 0, 0);
    if (error)
        complain(error);
}

void cmd_copy(char *args)
{
    const char *from = word(&args), *to = word(&args);
    struct file_info info;
    uint32_t offset = 0;
    int error;

    if (!from || !to) {
        usage("copy A B");
        return;
    }
    error = stat(from, &info);
    if (!error)
        error = call(SYS_CREATE, (uint32_t)to, info.length, 0);
    while (!error && offset < info.length) {
        int length = read_at(from, offset);

        error = length < 0 ? length : call(SYS_APPEND, (uint32_t)chunk, (uint32_t)length, 0);
        offset += (uint32_t)length;
    }
    if (!error)
        error = call(SYS_COMMIT, 0, 0, 0);
    if (error)
        complain(error);
}

void cmd_sum(char *args)
{
    const char *name = word(&args);
    struct file_info info;
    uint32_t offset = 0, crc = 0;
    int length;

    if (!name) {
        usage("sum FILE");
        return;
    }
    length = stat(name, &info);
    while (length >= 0 && (length = read_at(name, offset)) > 0) {
        crc = crc32(crc, chunk, (size_t)length);
        offset += (uint32_t)length;
    }
    if (length < 0)
        complain(length);
    else
        print("%08x %s: %s.\n", crc, name, crc == info.crc ? "as written" : "NOT what was written");
}
