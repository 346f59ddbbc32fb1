/* Loads the shell out of the kernel image into its own pages and enters it; a fault in ring 3 ends it and loads it afresh. */
#include "program.h"
#include "abi.h"
#include "console.h"
#include "files.h"
#include "lib/text.h"
#include "memory.h"

extern const char shell_image[], shell_image_end[];

static uint32_t read_cr2(void)
{
    uint32_t value;
    __asm__ volatile("movl %%cr2, %0" : "=r"(value));
    return value;
}

_Noreturn void program_start(void)
{
    const struct program_header *header = (const void *)shell_image;
    uint32_t size = (uint32_t)(shell_image_end - shell_image), stack = USER_BASE + USER_SIZE;

    if (header->magic != PROGRAM_MAGIC || header->bss_end > stack - USER_STACK - 4096)
        crash("the shell in the kernel image is damaged", NULL);
    user_unmap_all();
    user_map(USER_BASE, header->bss_end, true);
    user_map(stack - USER_STACK, stack, true); /* the pages between stay absent and catch a stack that grows too far */
    memset((void *)USER_BASE, 0, header->bss_end - USER_BASE);
    memset((void *)(stack - USER_STACK), 0, USER_STACK);
    memcpy((void *)USER_BASE, shell_image, size);
    user_map(USER_BASE, header->text_end, false);
    files_abandon();
    enter_user(header->entry, stack - 16);
}

_Noreturn void program_fault(const struct trap_frame *frame)
{
    uint8_t color = console_color(0x0C);

    print("\nThe shell was stopped: %s", vector_name(frame->vector));
    if (frame->vector == VECTOR_PAGE_FAULT)
        print(" at address %08x", read_cr2());
    print(", EIP %08x, error %04x. Starting a new one.\n", frame->eip, frame->error);
    console_color(color);
    program_start();
}
