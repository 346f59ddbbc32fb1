"""The command line and the console of avmm: the guest's screen and keyboard in a terminal. Uses avmm's public API only."""
