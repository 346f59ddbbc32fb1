/* The shell: a prompt, a table of commands. */
#include "sys.h"

uint8_t chunk[CHUNK] __attribute__((aligned(4096)));

static command cmd_help;

static const struct {
    const char *name, *usage, *help;
    command *run;
} commands[] = {
    {"help", "", "this list", cmd_help},
    {"dir", "", "the files: name, length, CRC-32, date", cmd_dir},
    {"read", "FILE", "prints a file (ctrl-c stops)", cmd_read},
    {"write", "FILE TEXT...", "makes a file of one line", cmd_write},
    {"delete", "FILE", "removes a file", cmd_delete},
    {"copy", "A B", "makes B a copy of A", cmd_copy},
    {"sum", "FILE", "CRC-32 of a file, compared with the directory's", cmd_sum},
    {"disk", "[pio|dma]", "the disk, its driver, its counters; or how data is moved", cmd_disk},
    {"bench", "disk ...", "[read|write] [DEPTH]: requests of 64 KiB, 4 KiB, 512 B", cmd_bench},
    {"mode", "[NAME]", "emulated, enlightened, shunt-only (keys F2, F3, F4)", cmd_mode},
    {"shunt", "[status]", "the shunt driver; late, told, default or port changes it", cmd_shunt},
    {"devices", "", "the disks a program is told of", cmd_devices},
    {"time", "", "date and time, and ticks since the start", cmd_time},
    {"mem", "", "the memory map", cmd_mem},
    {"beep", "[HERTZ]", "sounds the speaker", cmd_beep},
    {"color", "[NAME]", "colour of the text; without a name, shows them", cmd_color},
    {"echo", "TEXT...", "prints the text", cmd_echo},
    {"crash", "[shell]", "makes a fault in the kernel, or in the shell", cmd_crash},
    {"reboot", "", "restarts the machine", cmd_reboot},
    {"halt", "", "switches the machine off", cmd_halt},
};

void print(const char *pattern, ...)
{
    char text[256];
    va_list args;

    va_start(args, pattern);
    call(SYS_WRITE, (uint32_t)text, format(text, sizeof text, pattern, args), 0);
    va_end(args);
}

void complain(int error)
{
    static const char *const sentences[] = {
        [0] = "Something is wrong.",
        [E_NOENT] = "There is no such file.",
        [E_NAME] = "That is not a file name.",
        [E_SPACE] = "There is no room for that.",
        [E_FULL] = "The directory is full.",
        [E_IO] = "The disk reported an error.",
        [E_NOFILES] = "There is no file area on this disk.",
        [E_INVAL] = "The kernel does not accept that.",
        [E_BREAK] = "Stopped.",
        [E_NODEV] = "There is no such device.",
        [E_PLAIN] = "This machine has no hypervisor to speak to, only hardware: the emulating stack stays.",
        [E_NOBUS] = "The hypervisor does not answer on VMBus: the mode stays.",
        [E_NOCHANNEL] = "The host offers no disk controller on VMBus: the mode stays.",
        [E_OTHERDISK] = "The host's controller does not have the disk we run from: the mode stays.",
    };
    uint32_t index = (uint32_t)-error;

    print("%s\n", sentences[index < sizeof sentences / sizeof *sentences ? index : 0]);
}

char *word(char **args)
{
    char *start = *args, *end;

    while (*start == ' ')
        start++;
    for (end = start; *end && *end != ' '; end++)
        ;
    *args = end;
    if (*end) {
        *end = 0;
        *args = end + 1;
    }
    return *start ? start : NULL;
}

bool number(const char *text, uint32_t *value)
{
    *value = 0;
    if (!*text)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || *value > 400000000)
            return false;
        *value = *value * 10 + (uint32_t)(*text - '0');
    }
    return true;
}

static void cmd_help(char *args)
{
    (void)args;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        print("  %-7s%-13s %s\n", commands[i].name, commands[i].usage, commands[i].help);
}

static void obey(char *line)
{
    char *name = word(&line);

    if (!name)
        return;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            commands[i].run(line);
            return;
        }
    }
    print("what? (try help)\n");
}

_Noreturn void main(void)
{
    static char line[160];

    for (;;) {
        print("ok> ");
        if (call(SYS_READLINE, (uint32_t)line, sizeof line, 0) >= 0)
            obey(line);
    }
}
