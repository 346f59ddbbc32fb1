"""The serial port as one that can be virtualized."""
