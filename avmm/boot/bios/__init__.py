"""The BIOS services of the VMM's own firmware: tiny ROM stubs in the guest, the work done here on the machine's devices and disk.

Each module is one service or one part of what POST leaves behind; ``rom`` says how a stub calls its service.
"""
