; Where the kernel is entered: from setup, from every exception and interrupt, and where it leaves for ring 3.

        bits 32
        extern kmain, trap, bss_start, bss_end
        global start, vector_stubs, enter_user, kernel_stack_top

        section .start progbits alloc exec nowrite
start:  mov ax, 0x10
        mov ds, ax
        mov es, ax
        mov ss, ax
        xor eax, eax
        mov fs, ax
        mov gs, ax
        mov esp, kernel_stack_top
        mov edi, bss_start
        mov ecx, bss_end
        sub ecx, edi
        rep stosb
        call kmain
.stop:  cli
        hlt
        jmp .stop

        section .text
; One stub per vector. The processor pushes an error code for 8, 10-14, 17, 21; the others push a zero for the same frame.
%assign n 0
%rep 129
%if n < 64 || n == 128
stub_%[n]:
%if !(n == 8 || (n >= 10 && n <= 14) || n == 17 || n == 21)
        push dword 0
%endif
        push dword n
        jmp to_trap
%endif
%assign n n + 1
%endrep

to_trap: pusha
        push ds
        push es
        push fs
        push gs
        mov ax, 0x10
        mov ds, ax
        mov es, ax
        cld
        push esp                        ; struct trap_frame *
        call trap
        add esp, 4
        pop gs
        pop fs
        pop es
        pop ds
        popa
        add esp, 8                      ; vector, error code
        iret

; void enter_user(uint32_t entry, uint32_t stack): does not return. The kernel stack is left behind: the next trap from ring 3
; starts at its top again (TSS.esp0).
enter_user:
        cli
        mov ecx, [esp + 4]
        mov edx, [esp + 8]
        mov ax, 0x23
        mov ds, ax
        mov es, ax
        mov fs, ax
        mov gs, ax
        push dword 0x23                 ; SS
        push edx                        ; ESP
        push dword 0x202                ; EFLAGS: IF
        push dword 0x1B                 ; CS
        push ecx                        ; EIP
        xor eax, eax
        xor ebx, ebx
        xor ecx, ecx
        xor edx, edx
        xor esi, esi
        xor edi, edi
        xor ebp, ebp
        iret

        section .rodata
vector_stubs:                           ; 0-63, then 128
%assign n 0
%rep 64
        dd stub_%[n]
%assign n n + 1
%endrep
        dd stub_128

        section .bss nobits alloc noexec write align=16
        resb 8192
kernel_stack_top:

        section .note.GNU-stack noalloc noexec nowrite progbits
