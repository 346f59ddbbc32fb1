BITS 16
org 0x7c00
start: xor ax,ax
mov ds,ax
mov ax,0xb800
mov es,ax
cli
mov word [9*4], key
mov word [9*4+2], 0
mov al,0
out 0xe9,al
; PIT reads
mov cx,1000
p: in al,0x40
loop p
mov al,1
out 0xe9,al
; text writes
mov cx,1000
t: mov word [es:160],0x0741
loop t
mov al,2
out 0xe9,al
; disk: 8 sectors PIO, 20 times
mov si,20
d: mov dx,0x1f6
mov al,0xe0
out dx,al
mov dx,0x1f2
mov al,8
out dx,al
inc dx
mov al,16
out dx,al
inc dx
mov al,0
out dx,al
inc dx
out dx,al
mov dx,0x3f6
mov al,2
out dx,al
mov dx,0x1f7
mov al,0x20
out dx,al
mov bp,8
s: mov dx,0x1f7
w: in al,dx
and al,0x88
cmp al,8
jne w
mov dx,0x1f0
mov cx,256
mov di,0
push es
push word 0x2000
pop es
rep insw
pop es
dec bp
jnz s
dec si
jnz d
mov al,3
out 0xe9,al
; keys
sti
k: hlt
jmp k
key: push ax
in al,0x60
mov al,0x20
out 0x20,al
mov al,4
out 0xe9,al
pop ax
iret
times 510-($-$$) db 0
dw 0xaa55
