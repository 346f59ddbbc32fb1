; The ring-3 program, carried inside the kernel image.
        section .rodata
        global shell_image, shell_image_end
        align 16
shell_image:
        incbin SHELL_BINARY
shell_image_end:

        section .note.GNU-stack noalloc noexec nowrite progbits
