"""Debugging a machine: the debugger behind the console's commands, and the server that gdb talks to."""
