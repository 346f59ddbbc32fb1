"""``python -m avmm_console`` is ``avmm``."""

from .cli import main

main()
