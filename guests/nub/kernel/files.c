/* The file area on the disk.

   A file is written to free sectors first and enters the directory with one sector write at the commit: after a power cut there
   is the old file or the new one. Invariant: the directory in memory is the one on the disk. */
#include "files.h"
#include "disk.h"
#include "lib/text.h"
#include "timer.h"

#define SUPERBLOCK_LBA 256
#define ENTRIES 64
#define PER_SECTOR (SECTOR / sizeof(struct entry))

struct superblock {
    char magic[8]; /* "NUBFILES" */
    uint32_t version, directory_lba, entries, data_lba, data_sectors, crc; /* crc: of the bytes before it */
};

struct entry {
    char name[NAME_SIZE]; /* empty: a free slot */
    uint32_t first_lba, length, crc, modified;
    uint32_t reserved[2];
};

static struct superblock super;
static struct entry directory[ENTRIES] __attribute__((aligned(4)));
static uint8_t bounce[SECTOR] __attribute__((aligned(4)));

static struct {
    bool open;
    struct entry entry;
    uint32_t written;
} writer;

static uint32_t sectors(uint32_t length) { return length / SECTOR + (length % SECTOR != 0); }

int files_mount(void)
{
    const struct disk_identity *disk = disk_identity();

    super.entries = 0;
    if (!disk || disk_read(SUPERBLOCK_LBA, 1, bounce) != 0)
        return -E_NOFILES;
    memcpy(&super, bounce, sizeof super);
    if (memcmp(super.magic, "NUBFILES", 8) != 0 || super.version != 1 || super.entries != ENTRIES ||
        super.crc != crc32(0, &super, offsetof(struct superblock, crc)) || super.data_lba >= disk->sectors ||
        super.data_sectors > disk->sectors - super.data_lba ||
        disk_read(super.directory_lba, sizeof directory / SECTOR, directory) != 0) {
        super.entries = 0;
        return -E_NOFILES;
    }
    for (uint32_t i = 0; i < ENTRIES; i++)
        directory[i].name[NAME_SIZE - 1] = 0;
    return 0;
}

static int store(uint32_t slot)
{
    uint32_t sector = slot / PER_SECTOR;
    int error = disk_write(super.directory_lba + sector, 1, directory + sector * PER_SECTOR);

    return error ? error : disk_flush();
}

static int find(const char *name)
{
    if (!super.entries)
        return -E_NOFILES;
    for (int slot = 0; slot < ENTRIES; slot++)
        if (directory[slot].name[0] && strcmp(directory[slot].name, name) == 0)
            return slot;
    return -E_NOENT;
}

static bool good_name(const char *name)
{
    size_t length = strlen(name);

    if (length == 0 || length >= NAME_SIZE)
        return false;
    for (; *name; name++)
        if (*name <= ' ' || *name >= 127 || *name == '/')
            return false;
    return true;
}

int files_slot(uint32_t index, struct file_info *info)
{
    const struct entry *entry = directory + index;

    if (!super.entries)
        return -E_NOFILES;
    if (index >= ENTRIES)
        return -E_INVAL;
    if (!entry->name[0])
        return -E_NOENT;
    memcpy(info->name, entry->name, NAME_SIZE);
    info->length = entry->length;
    info->crc = entry->crc;
    info->first_lba = entry->first_lba;
    info->modified = entry->modified;
    return 0;
}

int files_stat(const char *name, struct file_info *info)
{
    int slot = find(name);

    return slot < 0 ? slot : files_slot((uint32_t)slot, info);
}

int files_read(const char *name, uint32_t offset, void *buffer, uint32_t length)
{
    int slot = find(name), error = 0;
    const struct entry *entry = directory + slot;
    uint32_t lba, whole, rest;

    if (slot < 0)
        return slot;
    if (offset >= entry->length)
        return 0;
    if (offset % SECTOR)
        return -E_INVAL;
    if (length > entry->length - offset)
        length = entry->length - offset;
    lba = entry->first_lba + offset / SECTOR;
    whole = length / SECTOR;
    rest = length % SECTOR;
    if (whole)
        error = disk_read(lba, whole, buffer);
    if (!error && rest) {
        error = disk_read(lba + whole, 1, bounce);
        memcpy((uint8_t *)buffer + whole * SECTOR, bounce, rest);
    }
    return error ? error : (int)length;
}

/* The lowest gap of `wanted` sectors: starts at the data area, jumps over whatever is in the way. */
static uint32_t allocate(uint32_t wanted)
{
    uint32_t at = super.data_lba, end = super.data_lba + super.data_sectors;

    for (;;) {
        bool moved = false;

        if (wanted > end - at)
            return 0;
        for (int i = 0; i < ENTRIES; i++) {
            const struct entry *e = directory + i;
            uint32_t after = e->first_lba + sectors(e->length);

            if (e->name[0] && e->first_lba < at + wanted && at < after) {
                if (after > end)
                    return 0;
                at = after;
                moved = true;
            }
        }
        if (!moved)
            return at;
    }
}

uint32_t files_free(uint32_t wanted) { return super.entries && !writer.open ? allocate(wanted) : 0; }

int files_create(const char *name, uint32_t length)
{
    int slot = find(name);
    bool room = slot >= 0;

    files_abandon();
    if (slot == -E_NOFILES)
        return slot;
    if (!good_name(name))
        return -E_NAME;
    for (int i = 0; i < ENTRIES && !room; i++)
        room = !directory[i].name[0];
    if (!room)
        return -E_FULL;
    memset(&writer, 0, sizeof writer);
    memcpy(writer.entry.name, name, strlen(name));
    writer.entry.length = length;
    writer.entry.first_lba = allocate(sectors(length));
    if (!writer.entry.first_lba)
        return -E_SPACE;
    writer.open = true;
    return 0;
}

int files_append(const void *data, uint32_t length)
{
    uint32_t lba = writer.entry.first_lba + writer.written / SECTOR, whole = length / SECTOR, rest = length % SECTOR;
    int error = 0;

    if (!writer.open || writer.written % SECTOR || length > writer.entry.length - writer.written ||
        (rest && writer.written + length != writer.entry.length))
        return -E_INVAL;
    if (whole)
        error = disk_write(lba, whole, data);
    if (!error && rest) {
        memset(bounce, 0, sizeof bounce);
        memcpy(bounce, (const uint8_t *)data + whole * SECTOR, rest);
        error = disk_write(lba + whole, 1, bounce);
    }
    if (error)
        return error;
    writer.entry.crc = crc32(writer.entry.crc, data, length);
    writer.written += length;
    return 0;
}

int files_commit(void)
{
    int slot, error;
    struct entry before;

    if (!writer.open || writer.written != writer.entry.length)
        return -E_INVAL;
    writer.open = false;
    writer.entry.modified = rtc_seconds();
    slot = find(writer.entry.name);
    for (int i = 0; i < ENTRIES && slot < 0; i++)
        if (!directory[i].name[0])
            slot = i;
    before = directory[slot];
    error = disk_flush(); /* the data before the entry that speaks of it */
    if (error)
        return error;
    directory[slot] = writer.entry;
    error = store((uint32_t)slot);
    if (error)
        directory[slot] = before;
    return error;
}

int files_delete(const char *name)
{
    int slot = find(name), error;
    struct entry before;

    if (slot < 0)
        return slot;
    before = directory[slot];
    memset(directory + slot, 0, sizeof *directory);
    error = store((uint32_t)slot);
    if (error)
        directory[slot] = before;
    return error;
}

void files_abandon(void) { writer.open = false; }
