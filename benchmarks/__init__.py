"""Measurements against QEMU, and of one path of ours against another, in one run. Nothing here is a test: machines are noisy."""
