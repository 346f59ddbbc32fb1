/* MC146818: date and time of day. */
#include "io.h"
#include "timer.h"

enum { SECONDS = 0, MINUTES = 2, HOURS = 4, DAY = 7, MONTH = 8, YEAR = 9, STATUS_A = 10, STATUS_B = 11, CENTURY = 0x32 };
enum { UIP = 0x80, BINARY = 0x04, HOURS_24 = 0x02, PM = 0x80 };

static uint8_t cmos(uint8_t address)
{
    outb(0x70, address);
    return inb(0x71);
}

static uint32_t number(uint8_t value, uint8_t status_b)
{
    return status_b & BINARY ? value : (uint32_t)(value >> 4) * 10 + (value & 15);
}

static void read_once(struct time_info *time)
{
    uint8_t b = cmos(STATUS_B), hour = cmos(HOURS);
    uint32_t century = number(cmos(CENTURY), b);

    time->second = number(cmos(SECONDS), b);
    time->minute = number(cmos(MINUTES), b);
    time->hour = number(hour & ~PM, b);
    if (!(b & HOURS_24))
        time->hour = time->hour % 12 + (hour & PM ? 12 : 0);
    time->day = number(cmos(DAY), b);
    time->month = number(cmos(MONTH), b);
    time->year = number(cmos(YEAR), b) + (century >= 19 && century <= 21 ? century * 100 : 2000);
}

void rtc_read(struct time_info *time)
{
    uint32_t second = 60;

    for (int tries = 0; tries < 10; tries++) { /* the same second twice, with no update between */
        for (uint32_t spin = 0; (cmos(STATUS_A) & UIP) && spin < 10000; spin++)
            ;
        read_once(time);
        if (time->second == second)
            break;
        second = time->second;
    }
    if (time->month < 1 || time->month > 12 || time->day < 1 || time->day > 31 || time->hour > 23)
        time->year = 0;
}

uint32_t rtc_seconds(void)
{
    static const uint16_t before[12] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    struct time_info t;
    uint32_t years, days;

    rtc_read(&t);
    if (t.year < 1970)
        return 0;
    years = t.year - 1970;
    days = years * 365 + (years + 1) / 4 + before[t.month - 1] + t.day - 1; /* right until 2099 */
    if (t.year % 4 == 0 && t.month > 2)
        days++;
    return ((days * 24 + t.hour) * 60 + t.minute) * 60 + t.second;
}
