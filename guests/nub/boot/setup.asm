; Setup: runs at 1000:0000 in real mode, asks the firmware what only it can tell, and enters the kernel in protected mode.
;
; Leaves `struct boot_info` (kernel/boot.h) at 0x500: the E820 memory map, the boot drive and the cursor. The kernel follows
; this file in memory, 2048 bytes on.

        bits 16
        org 0

LINEAR  equ 0x10000                     ; where this file is
KERNEL  equ LINEAR + 2048
INFO    equ 0x500
MAP     equ INFO + 24                   ; 24 bytes an entry
MAX     equ 32

setup:  mov ax, cs
        mov ds, ax
        xor ax, ax
        mov es, ax
        cld
        mov dword [es:INFO], 0x3142554E ; "NUB1"
        movzx eax, dl
        mov [es:INFO + 4], eax

        call a20
        call memory_map
        mov si, newline
        call print

        mov ah, 0x03                    ; the kernel goes on writing where the firmware stopped
        xor bx, bx
        int 0x10
        movzx eax, dl
        mov [es:INFO + 16], eax         ; column
        movzx eax, dh
        mov [es:INFO + 20], eax         ; row

        cli
        mov al, 0x80                    ; no NMI until the kernel has its IDT
        out 0x70, al
        lgdt [gdt_pointer]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp dword 0x08:KERNEL

; Fills the map at ES:MAP and its count; without E820, one range made of AX=E801h or AH=88h.
memory_map:
        xor ebx, ebx
        xor ebp, ebp                    ; entries
        mov di, MAP
.next:  mov dword [es:di + 20], 1       ; ACPI 3.0 attribute: valid, unless the firmware says otherwise
        mov eax, 0xE820
        mov edx, 0x534D4150             ; "SMAP"
        mov ecx, 24
        int 0x15
        jc .end
        cmp eax, 0x534D4150
        jne .end
        jcxz .skip
        inc bp
        add di, 24
        cmp bp, MAX
        je .end
.skip:  test ebx, ebx
        jnz .next
.end:   mov [es:INFO + 8], ebp

        mov ax, 0xE801                  ; AX/CX: KiB from 1 MiB to 16 MiB, BX/DX: 64 KiB blocks above
        xor cx, cx
        xor dx, dx
        int 0x15
        jc .old
        test cx, cx
        jnz .cxdx
        mov cx, ax
        mov dx, bx
.cxdx:  movzx eax, cx
        movzx edx, dx
        shl edx, 6
        add eax, edx
        jmp .store
.old:   mov ah, 0x88
        int 0x15
        movzx eax, ax
.store: mov [es:INFO + 12], eax         ; KiB above 1 MiB
        ret

; Opens address line 20: firmware, then port 92h, then the keyboard controller, each only if still needed.
a20:    call a20_open
        jne .done
        mov ax, 0x2401
        int 0x15
        call a20_open
        jne .done
        in al, 0x92
        or al, 2
        and al, 0xFE                    ; bit 0 would reset the machine
        out 0x92, al
        call a20_open
        jne .done
        call kbc_wait
        mov al, 0xD1
        out 0x64, al
        call kbc_wait
        mov al, 0xDF
        out 0x60, al
        call kbc_wait
        call a20_open
        jne .done
        mov si, closed
        call print
.stop:  hlt
        jmp .stop
.done:  ret

kbc_wait:                               ; until the controller takes a byte, but not for ever
        xor cx, cx
.busy:  in al, 0x64
        test al, 2
        loopnz .busy
        ret

a20_open:                               ; ZF = 0 if FFFF:0510 and 0000:0500 are different bytes
        push ds
        mov ax, 0xFFFF
        mov ds, ax
        mov al, [es:INFO]
        mov ah, [ds:INFO + 16]
        push ax
        mov byte [ds:INFO + 16], 0x5A
        mov byte [es:INFO], 0xA5
        cmp byte [ds:INFO + 16], 0xA5
        pop ax
        mov [ds:INFO + 16], ah
        mov [es:INFO], al
        pop ds
        ret

print:  lodsb
        test al, al
        jz .end
        mov ah, 0x0E
        mov bx, 7
        int 0x10
        jmp print
.end:   ret

newline db 13, 10, 0
closed  db " Address line 20 stays closed.", 13, 10, 0

        align 8, db 0
gdt     dq 0
        dq 0x00CF9A000000FFFF           ; 08: code
        dq 0x00CF92000000FFFF           ; 10: data
gdt_pointer:
        dw $ - gdt - 1
        dd LINEAR + gdt

        times 2048 - ($ - $$) db 0
