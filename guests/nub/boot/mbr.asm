; The boot sector: loads setup and kernel (KERNEL_SECTORS sectors from LBA 1) to 0x10000 and jumps to 1000:0000.
;
; It knows nothing but int 13h, so it always runs on the emulated disk: by the extensions (AH=42h, 16 sectors a call)
; where the firmware has them, else by AH=02h, one sector a call. A dot is printed for every 16 sectors.

        bits 16
        org 0x7C00

%ifndef KERNEL_SECTORS
%error "assemble with -DKERNEL_SECTORS=n"
%endif
CHUNK   equ 16
TARGET  equ 0x1000                      ; segment

start:  jmp 0:.flat
.flat:  cli
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, 0x7C00
        sti
        cld
        mov [drive], dl
        mov ax, 0x0003                  ; 80x25 colour text, cleared
        int 0x10
        mov si, loading
        call print

        mov ah, 0x41                    ; are the extensions there?
        mov bx, 0x55AA
        mov dl, [drive]
        int 0x13
        jc geometry
        cmp bx, 0xAA55
        jne geometry
        test cl, 1
        jz geometry

next_chunk:
        mov ax, KERNEL_SECTORS
        sub ax, [done]
        jz loaded
        cmp ax, CHUNK
        jbe .fits
        mov ax, CHUNK
.fits:  mov [packet.count], ax
        mov bx, [done]
        inc bx                          ; the kernel starts at LBA 1
        mov [packet.lba], bx
        mov cx, [target]
        mov [packet.target], cx
        mov si, packet
        mov ah, 0x42
        mov dl, [drive]
        int 0x13
        jc geometry                     ; no luck with the extensions: go on from here the old way
        mov ax, [packet.count]          ; the firmware leaves here what it did read
        test ax, ax
        jz geometry
        add [done], ax
        shl ax, 5                       ; sectors -> paragraphs
        add [target], ax
        call dot
        jmp next_chunk

geometry:                               ; AH=08h: heads and sectors per track
        push es
        mov ah, 0x08
        mov dl, [drive]
        xor di, di
        int 0x13
        pop es
        jc fail
        and cx, 63
        jz fail
        mov [sectors], cx
        movzx ax, dh
        inc ax
        mov [heads], ax

next_sector:
        mov ax, [done]
        cmp ax, KERNEL_SECTORS
        je loaded
        inc ax                          ; LBA
        xor dx, dx
        div word [sectors]
        mov cx, dx
        inc cx                          ; CL = sector, from 1
        xor dx, dx
        div word [heads]                ; AX = cylinder, DX = head
        mov dh, dl
        mov ch, al
        shl ah, 6
        or cl, ah
        mov byte [tries], 3
.again: mov es, [target]
        xor bx, bx
        mov dl, [drive]
        mov ax, 0x0201
        push cx
        push dx
        int 0x13
        pop dx
        pop cx
        jnc .read
        xor ax, ax                      ; reset the disk system, then try again
        int 0x13
        dec byte [tries]
        jnz .again
        jmp fail
.read:  add word [target], 0x20
        inc word [done]
        test word [done], CHUNK - 1
        jnz next_sector
        call dot
        jmp next_sector

loaded: mov dl, [drive]
        jmp TARGET:0

fail:   mov si, failed
        call print
.stop:  hlt
        jmp .stop

dot:    mov si, a_dot
print:  lodsb                           ; DS:SI, zero terminated, through int 10h
        test al, al
        jz .end
        mov ah, 0x0E
        mov bx, 7
        int 0x10
        jmp print
.end:   ret

loading db "Loading", 0
a_dot   db ".", 0
failed  db " The disk cannot be read.", 13, 10, 0

done    dw 0                            ; sectors loaded so far
target  dw TARGET
sectors dw 0
heads   dw 0
tries   db 0
drive   db 0x80

        align 4, db 0
packet  db 16, 0                        ; disk address packet of AH=42h
.count  dw 0
        dw 0
.target dw TARGET
.lba    dq 1

%if ($ - $$) > 440
%error "the boot code reaches into the partition table"
%endif
        times 440 - ($ - $$) db 0
        dd 0x3042554E                   ; disk signature, "NUB0"
        dw 0
        db 0x80, 0xFE, 0xFF, 0xFF       ; one active partition of type DAh (data, no file system): all after this sector
        db 0xDA, 0xFE, 0xFF, 0xFF
        dd 1, IMAGE_SECTORS - 1
        times 510 - ($ - $$) db 0
        dw 0xAA55
