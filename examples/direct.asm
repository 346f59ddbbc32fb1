; A Linux program (x86-64, a whole ELF file): direct I/O on a device, one request after the other.
;   direct DEVICE read|write SIZE COUNT SKIP     SIZE at most 65536 bytes; SKIP in requests
; Exit status 0 if every request moved all its bytes. nasm -f bin -o direct examples/direct.asm; avmm/control/demo_linux.py has its bytes.
bits 64
org 0x400000
buffer  equ 0x410000            ; page-aligned, as O_DIRECT wants it
top     equ 0x420000

        db 0x7F, "ELF", 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
        dw 2, 62                ; an executable for x86-64
        dd 1
        dq start, header - $$, 0
        dd 0
        dw 64, 56, 1, 0, 0, 0
header:
        dd 1, 7                 ; PT_LOAD, read, write and execute
        dq 0, $$, $$, end - $$, top - $$, 0x1000

start:
        mov rsi, [rsp + 40]     ; argv[4], count
        call number
        mov rbp, rax
        mov rsi, [rsp + 32]     ; argv[3], size
        call number
        mov rbx, rax
        mov rsi, [rsp + 48]     ; argv[5], skip
        call number
        mul rbx
        mov r12, rax            ; offset
        mov rsi, [rsp + 24]     ; argv[2]
        xor r13d, r13d
        cmp byte [rsi], 'w'
        sete r13b
        add r13d, 17            ; pread64, or pwrite64
        mov eax, 2              ; open(argv[1], O_RDWR | O_DIRECT)
        mov rdi, [rsp + 16]
        mov esi, 0x4002
        syscall
        test eax, eax
        js failed
        mov r14d, eax
next:
        mov eax, r13d
        mov edi, r14d
        mov esi, buffer
        mov rdx, rbx
        mov r10, r12
        syscall
        cmp rax, rbx
        jne failed
        add r12, rbx
        dec rbp
        jnz next
        xor edi, edi
        jmp leave_
failed:
        mov edi, 1
leave_:
        mov eax, 60
        syscall

number:                         ; rsi: decimal digits; returns rax
        xor eax, eax
digit:
        movzx edx, byte [rsi]
        sub edx, '0'
        jb done
        imul eax, eax, 10
        add eax, edx
        inc rsi
        jmp digit
done:
        ret
end:
