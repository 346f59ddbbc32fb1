/* Commands about the two storage stacks: which one works, what the shunt does, what user mode is told of. */
#include "sys.h"

static const char *const modes[] = {"emulated", "enlightened", "shunt-only"};
static const char *const embodiments[] = {"late", "told", "default", "port"};

const char *mode_name(uint32_t mode) { return mode < MODE_ASK ? modes[mode] : "?"; }

static uint32_t find(const char *name, const char *const *names, uint32_t count)
{
    uint32_t i = 0;

    while (i < count && strcmp(name, names[i]) != 0)
        i++;
    return i;
}

void cmd_mode(char *args)
{
    const char *name = word(&args);
    uint32_t mode = name ? find(name, modes, MODE_ASK) : MODE_ASK;
    struct shunt_info shunt;
    int error;

    if (name && mode == MODE_ASK) {
        print("Say: mode emulated, mode enlightened, or mode shunt-only.\n");
        return;
    }
    error = call(SYS_MODE, mode, 0, 0);
    if (error < 0) {
        complain(error);
        return;
    }
    mode = (uint32_t)call(SYS_MODE, MODE_ASK, 0, 0);
    call(SYS_SHUNT, SHUNT_ASK, (uint32_t)&shunt, 0);
    print("mode: %s\n", mode_name(mode));
    if (mode != MODE_EMULATED && !shunt.accepting)
        print("The host took the channel away: requests go to the emulated disk.\n");
}

static void status(void)
{
    static const char *const meanings[] = {
        "comes with the enlightened stack, diverts everything", "always there, does as the mode says",
        "always there, diverts unless the enlightened driver does not accept", "always there, the enlightened driver opens and closes it",
    };
    struct shunt_info shunt;

    call(SYS_SHUNT, SHUNT_ASK, (uint32_t)&shunt, 0);
    print("shunt: %s, %s\n", shunt.present ? "present" : "absent",
          !shunt.present || !shunt.diverting ? "passing"
          : call(SYS_MODE, MODE_ASK, 0, 0) == MODE_SHUNT_ONLY ? "diverting reads and writes"
                                                              : "diverting");
    print("embodiment: %s (%s)\n", embodiments[shunt.embodiment], meanings[shunt.embodiment]);
    print("shunt back: %s\n", shunt.back ? "diverting" : "inert");
    print("requests: diverted %u, passed on %u, returned %u\n", shunt.diverted, shunt.passed, shunt.returned);
}

void cmd_shunt(char *args)
{
    const char *what = word(&args);
    uint32_t embodiment = what ? find(what, embodiments, SHUNT_ASK) : SHUNT_ASK;

    if (what && embodiment == SHUNT_ASK && strcmp(what, "status") != 0) {
        print("Say: shunt status, shunt late, shunt told, shunt default, or shunt port.\n");
        return;
    }
    if (embodiment != SHUNT_ASK)
        call(SYS_SHUNT, embodiment, 0, 0);
    status();
}

static bool show(enum stack stack)
{
    struct disk_info info;

    if (call(SYS_DEVICE, stack, (uint32_t)&info, 0) != 0)
        return false;
    print("  %s, serial %s, %u sectors, driver %s\n", info.model, info.serial, info.sectors, info.driver);
    return true;
}

void cmd_devices(char *args)
{
    const char *what = word(&args);
    uint32_t count = 0;

    if (!what) {
        for (uint32_t stack = STACK_EMULATING; stack <= STACK_ENLIGHTENED; stack++)
            count += show(stack);
        print("%u disk%s.\n", count, count == 1 ? "" : "s");
    } else if (strcmp(what, "emulating") == 0 || strcmp(what, "enlightened") == 0) {
        if (!show(what[1] == 'm' ? STACK_EMULATING : STACK_ENLIGHTENED))
            print("The %s class driver tells nothing.\n", what);
    } else {
        print("Say: devices, devices emulating, or devices enlightened.\n");
    }
}
