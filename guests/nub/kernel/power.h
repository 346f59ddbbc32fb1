/* The two ways out. Both flush the disk first. */
#pragma once

_Noreturn void power_off(void);
_Noreturn void power_reboot(void);
